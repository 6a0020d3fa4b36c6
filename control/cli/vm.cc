// `vm create|list|get|start|pause|resume|stop|delete`.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <string>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import :vm_settings;
import pagesaw.control.cli.table;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

// How it ended, or what holds it.
std::string EndText(const v1::Vm& vm) {
  if (vm.has_exit()) return vm.exit().description();
  if (vm.violations().empty()) return "-";
  return "held: " + vm.violations(0).description();
}

void PrintVms(const std::vector<v1::Vm>& vms) {
  Table table({"NAME", "STATE", "VENDOR", "TDP", "MEMORY", "CPUS", "IMAGE", "EXIT"});
  for (const v1::Vm& vm : vms) {
    const v1::VmConfig& config = vm.config();
    table.AddRow({LastPart(vm.name()), EnumText(v1::Vm::State_Name(vm.state())), config.vendor(),
                  config.tdp() == v1::VmConfig::TDP_OFF ? "off" : "on",
                  BytesText(config.memory_bytes()), absl::StrCat(config.cpu_count()),
                  config.image_path().empty() ? "-" : config.image_path(), EndText(vm)});
  }
  Print(table.Text());
}

absl::StatusOr<int> PrintVm(const absl::StatusOr<v1::Vm>& vm, bool json) {
  if (!vm.ok()) return vm.status();
  if (json) {
    PrintJson(*vm);
  } else {
    PrintVms({*vm});
  }
  return int{kDone};
}

absl::StatusOr<int> Create(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const std::string image = parsed.operands().size() > 1 ? parsed.operands()[1] : "";
  const auto config = VmConfigOf(parsed, image);
  if (!config.ok()) return config.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::CreateVmRequest request;
  request.set_vm_id(LastPart(*name));
  *request.mutable_config() = *config;
  return PrintVm((*client)->Call(request), *json);
}

absl::StatusOr<int> List(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::ListVmsRequest request;
  const auto all = CallForAll(**client, request);
  if (!all.ok()) return all.status();
  if (*json) {
    PrintJson(*all);
  } else {
    PrintVms({all->vms().begin(), all->vms().end()});
  }
  return int{kDone};
}

// A verb whose request is a name and whose answer is the VM.
template <typename Request>
absl::StatusOr<int> DoToVm(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VmNameOf(parsed.operands()[0]));
  if (!inquiry.ok()) return inquiry.status();
  Request request;
  request.set_name(inquiry->name);
  return PrintVm(inquiry->client->Call(request), inquiry->json);
}

absl::StatusOr<int> Delete(const ParsedCommand& parsed) {
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::DeleteVmRequest request;
  request.set_name(*name);
  if (const auto done = (*client)->Call(request); !done.ok()) return done.status();
  return int{kDone};
}

CommandSpec VerbSpec(std::string_view name, std::string_view summary, std::string_view example) {
  return {.name = name,
          .summary = summary,
          .operands = {kVmOperand},
          .options = {kOutputOption, kSocketOption},
          .details = "",
          .example = example};
}

CommandSpec CreateSpec() {
  std::vector<OptionSpec> options = VmSettingOptions();
  options.push_back(kOutputOption);
  options.push_back(kSocketOption);
  return {
      .name = "pagesawctl vm create",
      .summary = "Makes a VM; it does not run yet.",
      .operands =
          {{.name = "VM", .help = "its name, [a-z][a-z0-9-]{0,62}"},
           {.name = "IMAGE",
            .help = "ELF (multiboot, PVH) or Linux kernel; without one, memory and registers are "
                    "written from outside",
            .optional = true}},
      .options = std::move(options),
      .details = "",
      .example = "pagesawctl vm create demo bazel-bin/guests/tour.elf --memory=64M"};
}

}  // namespace

std::vector<Command> VmCommands() {
  return {
      {.spec = CreateSpec(), .run = Create},
      {.spec = {.name = "pagesawctl vm list",
                .summary = "Lists VMs.",
                .operands = {},
                .options = {kOutputOption, kSocketOption},
                .details = "",
                .example = "pagesawctl vm list --output=json"},
       .run = List},
      {.spec = VerbSpec("pagesawctl vm get", "Shows one VM.", "pagesawctl vm get demo"),
       .run = DoToVm<v1::GetVmRequest>},
      {.spec = VerbSpec("pagesawctl vm start", "Starts a VM that was never started.",
                        "pagesawctl vm start demo"),
       .run = DoToVm<v1::StartVmRequest>},
      {.spec = VerbSpec("pagesawctl vm pause", "Holds a running VM.", "pagesawctl vm pause demo"),
       .run = DoToVm<v1::PauseVmRequest>},
      {.spec = VerbSpec("pagesawctl vm resume", "Lets a paused VM run on.",
                        "pagesawctl vm resume demo"),
       .run = DoToVm<v1::ResumeVmRequest>},
      {.spec = VerbSpec("pagesawctl vm stop", "Stops a VM for good.", "pagesawctl vm stop demo"),
       .run = DoToVm<v1::StopVmRequest>},
      {.spec = {.name = "pagesawctl vm delete",
                .summary = "Stops a VM and forgets it.",
                .operands = {kVmOperand},
                .options = {kSocketOption},
                .details = "",
                .example = "pagesawctl vm delete demo"},
       .run = Delete},
  };
}

}  // namespace pagesaw
