// `vm console`.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdio>
#include <string>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

absl::Status TypeLine(Client& client, const std::string& name, const std::string& line) {
  v1::WriteConsoleRequest request;
  request.set_name(name);
  request.set_data(line + "\n");
  return client.Call(request).status();
}

absl::StatusOr<int> Console(const ParsedCommand& parsed) {
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  if (parsed.Has("type")) {
    if (auto status = TypeLine(**client, *name, parsed.Value("type")); !status.ok()) return status;
    if (!parsed.Has("follow")) return int{kDone};
  }
  const auto status = (*client)->StreamConsole(*name, [](const v1::StreamConsoleResponse& message) {
    if (message.has_exit()) {
      std::fprintf(stderr, "pagesawctl: %s\n", message.exit().description().c_str());
      return true;
    }
    Print(message.data());
    return std::fflush(stdout) == 0;
  });
  if (!status.ok()) return status;
  return int{kDone};
}

}  // namespace

std::vector<Command> ConsoleCommands() {
  return {{.spec = {.name = "pagesawctl vm console",
                    .summary = "Prints a VM's console, and goes on until the VM stops.",
                    .operands = {kVmOperand},
                    .options = {{.name = "type",
                                 .placeholder = "LINE",
                                 .help = "type a line into the console, and print nothing"},
                                {.name = "follow",
                                 .placeholder = "",
                                 .help = "with --type: print the console all the same"},
                                kSocketOption},
                    .details = "Ctrl-C ends the printing, not the VM.",
                    .example = "pagesawctl vm console demo"},
           .run = Console}};
}

}  // namespace pagesaw
