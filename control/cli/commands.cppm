// The commands of `pagesawctl`: which there are, and running one. Each group of verbs has a file.
module;
#include <absl/status/statusor.h>

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.control.cli.commands;

import pagesaw.control.command_line;

export namespace pagesaw {

// Exit statuses of `pagesawctl`. `run` has those of the guest besides.
enum ExitStatus : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,
  kTimeLimit = 124,    // `run`: the time limit is over
  kInterrupted = 130,  // `run`: ended by Ctrl-C
};

struct Command {
  CommandSpec spec;
  // Does it and says with which status to exit. Errors that `Usage` made are the user's.
  std::function<absl::StatusOr<int>(const ParsedCommand&)> run;
};

// Every command, in the order of the help.
std::vector<Command> AllCommands();

// What a command would print and return.
struct Outcome {
  int exit_status = kDone;
  std::string out;    // to stdout beyond what the command printed while it ran
  std::string error;  // to stderr
};

// Finds the command that `arguments` (without the program's name) ask for, and runs it.
Outcome RunCommand(std::span<const std::string_view> arguments);

}  // namespace pagesaw

namespace pagesaw {

// The groups.
std::vector<Command> RunCommands();
std::vector<Command> VmCommands();
std::vector<Command> ConsoleCommands();
std::vector<Command> MemoryCommands();
std::vector<Command> SlotCommands();
std::vector<Command> RegisterCommands();
std::vector<Command> AttributeCommands();
std::vector<Command> WalkCommands();
std::vector<Command> ShadowCommands();
std::vector<Command> FormatCommands();

}  // namespace pagesaw
