module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.control.cli.commands;
import :support;

namespace pagesaw {
namespace {

std::string Overview(const std::vector<Command>& commands) {
  std::string text =
      "usage: pagesawctl COMMAND [operands] [options]\n\n"
      "Runs virtual machines and looks into their memory virtualization.\n\ncommands:\n";
  std::size_t width = 0;
  const std::size_t prefix = std::string_view("pagesawctl ").size();
  for (const Command& command : commands) {
    width = std::max(width, command.spec.name.size() - prefix);
  }
  for (const Command& command : commands) {
    const std::string name(command.spec.name.substr(prefix));
    absl::StrAppend(&text, "  ", name, std::string(width - name.size() + 2, ' '),
                    std::string(command.spec.summary), "\n");
  }
  return text + "\n'pagesawctl COMMAND --help' tells more. VM is the name of a virtual machine.\n";
}

// Words that a command's name has behind the program's.
std::vector<std::string_view> WordsOf(const Command& command) {
  std::vector<std::string_view> words;
  std::string_view rest = command.spec.name;
  for (std::size_t blank = rest.find(' '); blank != std::string_view::npos;
       blank = rest.find(' ')) {
    rest.remove_prefix(blank + 1);
    words.push_back(rest.substr(0, rest.find(' ')));
  }
  return words;
}

bool StartsWith(std::span<const std::string_view> arguments,
                const std::vector<std::string_view>& words) {
  return arguments.size() >= words.size() &&
         std::equal(words.begin(), words.end(), arguments.begin());
}

Outcome UsageError(std::string message) {
  return {.exit_status = kUsage, .out = "", .error = absl::StrCat("error: ", message, "\n")};
}

Outcome UnknownCommand(std::span<const std::string_view> arguments,
                       const std::vector<Command>& commands) {
  std::string verbs;
  for (const Command& command : commands) {
    const auto words = WordsOf(command);
    if (words.size() == 2 && words[0] == arguments[0]) {
      absl::StrAppend(&verbs, verbs.empty() ? "" : ", ", std::string(words[1]));
    }
  }
  const std::string noun(arguments[0]);
  if (verbs.empty()) {
    return UsageError(absl::StrCat(noun, ": unknown command; see 'pagesawctl --help'"));
  }
  if (arguments.size() < 2 || arguments[1].starts_with('-')) {
    return UsageError(absl::StrCat(noun, ": needs one of: ", verbs));
  }
  return UsageError(absl::StrCat(noun, " ", std::string(arguments[1]),
                                 ": unknown command; must be one of: ", verbs));
}

Outcome RunParsed(const Command& command, std::span<const std::string_view> arguments) {
  const auto parsed = ParseCommand(command.spec, arguments);
  if (!parsed.ok()) return UsageError(std::string(parsed.status().message()));
  if (parsed->help()) return {.exit_status = kDone, .out = HelpText(command.spec), .error = ""};
  const auto result = command.run(*parsed);
  if (result.ok()) return {.exit_status = *result, .out = "", .error = ""};
  Outcome outcome = UsageError(std::string(result.status().message()));
  if (!IsUsage(result.status())) outcome.exit_status = kFailed;
  return outcome;
}

}  // namespace

std::vector<Command> AllCommands() {
  std::vector<Command> all;
  for (auto* group :
       {RunCommands, VmCommands, ConsoleCommands, MemoryCommands, SlotCommands, RegisterCommands,
        AttributeCommands, WalkCommands, ShadowCommands, FormatCommands}) {
    for (Command& command : group()) all.push_back(std::move(command));
  }
  return all;
}

Outcome RunCommand(std::span<const std::string_view> arguments) {
  const std::vector<Command> commands = AllCommands();
  if (arguments.empty()) return UsageError("no command; see 'pagesawctl --help'");
  if (arguments[0] == "--help")
    return {.exit_status = kDone, .out = Overview(commands), .error = ""};
  for (const Command& command : commands) {
    const auto words = WordsOf(command);
    if (StartsWith(arguments, words)) return RunParsed(command, arguments.subspan(words.size()));
  }
  return UnknownCommand(arguments, commands);
}

}  // namespace pagesaw
