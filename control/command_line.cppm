// Command lines: operands and long options, parsed strictly. An option is `--name=value` or a
// switch
// `--name`; one that is given twice, is unknown or lacks its value is an error. What the values
// mean is checked by the functions at the end, before anything starts.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.control.command_line;

export namespace pagesaw {

struct OptionSpec {
  std::string_view name;         // without the dashes
  std::string_view placeholder;  // of the value, in the help; empty: a switch
  std::string_view help;
  bool repeatable = false;
};

struct OperandSpec {
  std::string_view name;  // in capitals, as the help prints it
  std::string_view help;
  bool optional = false;
  bool repeatable = false;  // the last one only: one or more
};

// What a program or one of its verbs accepts.
struct CommandSpec {
  std::string_view name;     // all words before the operands, e.g. "pagesawctl vm create"
  std::string_view summary;  // one line
  std::vector<OperandSpec> operands;
  std::vector<OptionSpec> options;
  std::string_view details;  // paragraphs below the options; may be empty
  std::string_view example;  // a command line that works as it stands
};

class ParsedCommand {
 public:
  bool help() const { return help_; }
  const std::vector<std::string>& operands() const { return operands_; }
  bool Has(std::string_view option) const { return options_.find(option) != options_.end(); }
  // The value of an option, or `otherwise` if it is not given.
  std::string Value(std::string_view option, std::string_view otherwise = "") const;
  // Every value of a repeatable option, in the order given.
  std::vector<std::string> Values(std::string_view option) const;

 private:
  friend absl::StatusOr<ParsedCommand> ParseCommand(const CommandSpec&,
                                                    std::span<const std::string_view>);
  bool help_ = false;
  std::vector<std::string> operands_;
  std::map<std::string, std::vector<std::string>, std::less<>> options_;
};

// Parses the arguments behind the command's name. Stops at `--help`; after `--` all are operands.
// InvalidArgument with a sentence that names the argument refused.
absl::StatusOr<ParsedCommand> ParseCommand(const CommandSpec& spec,
                                           std::span<const std::string_view> arguments);

// The help text of a command, ending with a newline.
std::string HelpText(const CommandSpec& spec);

// Values. `where` is what the user wrote it for, e.g. "--memory" or "ADDRESS"; errors are
// InvalidArgument and begin with it.

// A decimal or 0x number, whole.
absl::StatusOr<std::uint64_t> ParseNumber(std::string_view where, std::string_view text,
                                          std::uint64_t min, std::uint64_t max);
// A decimal count of bytes, or one with K, M or G behind it: 1 or more, below 2^63.
absl::StatusOr<std::uint64_t> ParseBytes(std::string_view where, std::string_view text);
// A count with ms, s, m or h behind it: more than 0, at most 24 hours.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view where,
                                                        std::string_view text);
// The index of `text` in `choices`.
absl::StatusOr<std::size_t> ParseChoice(std::string_view where, std::string_view text,
                                        std::initializer_list<std::string_view> choices);

}  // namespace pagesaw
