module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/string_view.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>
module pagesaw.control.command_line;

namespace pagesaw {
namespace {

// Debian's Abseil has a string_view of its own.
absl::string_view Text(std::string_view text) { return {text.data(), text.size()}; }

absl::Status Refuse(std::string_view where, std::string_view text, std::string_view must) {
  return absl::InvalidArgumentError(
      absl::StrCat(Text(where), where.starts_with("--") ? "=" : " ", Text(text), ": ", Text(must)));
}

const OptionSpec* FindOption(const CommandSpec& spec, std::string_view name) {
  for (const OptionSpec& option : spec.options) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

std::string SeeHelp(const CommandSpec& spec) {
  return absl::StrCat("; see '", Text(spec.name), " --help'");
}

absl::Status CheckOperands(const CommandSpec& spec, const std::vector<std::string>& given) {
  std::size_t index = 0;
  for (const OperandSpec& operand : spec.operands) {
    if (index >= given.size() && !operand.optional) {
      return absl::InvalidArgumentError(
          absl::StrCat(Text(operand.name), ": missing", SeeHelp(spec)));
    }
    if (index < given.size() && given[index].empty()) {
      return absl::InvalidArgumentError(absl::StrCat(Text(operand.name), ": must not be empty"));
    }
    index = operand.repeatable ? std::max(given.size(), index + 1) : index + 1;
  }
  if (given.size() > index) {
    return absl::InvalidArgumentError(
        absl::StrCat(given[index], ": one argument too many", SeeHelp(spec)));
  }
  return absl::OkStatus();
}

absl::Status CheckOptionUse(const CommandSpec& spec, std::string_view argument,
                            const OptionSpec* option, bool has_value, bool given_before) {
  if (option == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(Text(argument), ": unknown option", SeeHelp(spec)));
  }
  if (option->placeholder.empty() && has_value) {
    return absl::InvalidArgumentError(absl::StrCat(Text(argument), ": this option takes no value"));
  }
  if (!option->placeholder.empty() && !has_value) {
    return absl::InvalidArgumentError(absl::StrCat("--", Text(option->name),
                                                   ": needs a value, as in --", Text(option->name),
                                                   "=", Text(option->placeholder)));
  }
  if (given_before && !option->repeatable) {
    return absl::InvalidArgumentError(absl::StrCat("--", Text(option->name), ": given twice"));
  }
  return absl::OkStatus();
}

// The number at the start of `text`, which is shortened by it. False if there is none that fits.
bool TakeDecimal(std::string_view& text, std::uint64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

void AppendColumns(std::string& out, const std::vector<std::pair<std::string, std::string>>& rows) {
  std::size_t width = 0;
  for (const auto& [left, right] : rows) width = std::max(width, left.size());
  for (const auto& [left, right] : rows) {
    absl::StrAppend(&out, "  ", left, std::string(width - left.size() + 2, ' '), right, "\n");
  }
}

std::string UsageLine(const CommandSpec& spec) {
  std::string line = absl::StrCat("usage: ", Text(spec.name));
  for (const OperandSpec& operand : spec.operands) {
    const std::string name = absl::StrCat(Text(operand.name), operand.repeatable ? "..." : "");
    absl::StrAppend(&line, " ", operand.optional ? absl::StrCat("[", name, "]") : name);
  }
  if (!spec.options.empty()) absl::StrAppend(&line, " [options]");
  return line + "\n";
}

}  // namespace

std::string ParsedCommand::Value(std::string_view option, std::string_view otherwise) const {
  const auto found = options_.find(option);
  return found == options_.end() ? std::string(otherwise) : found->second.front();
}

std::vector<std::string> ParsedCommand::Values(std::string_view option) const {
  const auto found = options_.find(option);
  return found == options_.end() ? std::vector<std::string>() : found->second;
}

absl::StatusOr<ParsedCommand> ParseCommand(const CommandSpec& spec,
                                           std::span<const std::string_view> arguments) {
  ParsedCommand parsed;
  bool options_over = false;
  for (const std::string_view argument : arguments) {
    if (options_over || argument.size() < 2 || argument.front() != '-') {
      parsed.operands_.emplace_back(argument);
      continue;
    }
    if (argument == "--") {
      options_over = true;
      continue;
    }
    if (argument == "--help") {
      parsed.help_ = true;
      return parsed;
    }
    const std::size_t equals = argument.find('=');
    const bool has_value = equals != std::string_view::npos;
    const std::string_view name =
        argument.starts_with("--") ? argument.substr(2, has_value ? equals - 2 : equals) : "";
    const OptionSpec* option = FindOption(spec, name);
    if (auto status = CheckOptionUse(spec, argument, option, has_value, parsed.Has(name));
        !status.ok()) {
      return status;
    }
    parsed.options_[std::string(name)].emplace_back(has_value ? argument.substr(equals + 1) : "");
  }
  if (auto status = CheckOperands(spec, parsed.operands_); !status.ok()) return status;
  return parsed;
}

std::string HelpText(const CommandSpec& spec) {
  std::string out = UsageLine(spec);
  absl::StrAppend(&out, "\n", Text(spec.summary), "\n");
  if (!spec.operands.empty()) {
    std::vector<std::pair<std::string, std::string>> rows;
    for (const OperandSpec& operand : spec.operands) {
      rows.emplace_back(operand.name, operand.help);
    }
    absl::StrAppend(&out, "\n");
    AppendColumns(out, rows);
  }
  if (!spec.options.empty()) {
    std::vector<std::pair<std::string, std::string>> rows;
    for (const OptionSpec& option : spec.options) {
      const char* separator = option.placeholder.empty() ? "" : "=";
      rows.emplace_back(
          absl::StrCat("--", Text(option.name), separator, Text(option.placeholder)),
          absl::StrCat(Text(option.help), option.repeatable ? " (may be repeated)" : ""));
    }
    absl::StrAppend(&out, "\noptions:\n");
    AppendColumns(out, rows);
  }
  if (!spec.details.empty()) absl::StrAppend(&out, "\n", Text(spec.details), "\n");
  if (!spec.example.empty()) absl::StrAppend(&out, "\nexample:\n  ", Text(spec.example), "\n");
  return out;
}

absl::StatusOr<std::uint64_t> ParseNumber(std::string_view where, std::string_view text,
                                          std::uint64_t min, std::uint64_t max) {
  std::string_view digits = text;
  const bool hex = digits.starts_with("0x") || digits.starts_with("0X");
  if (hex) digits.remove_prefix(2);
  std::uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), number, hex ? 16 : 10);
  if (error != std::errc() || end != digits.data() + digits.size() || number < min ||
      number > max) {
    const bool any = min == 0 && max == UINT64_MAX;
    return Refuse(where, text,
                  any ? std::string("must be a 64-bit number, decimal or with 0x")
                      : absl::StrCat("must be a number from ", min, " to ", max));
  }
  return number;
}

absl::StatusOr<std::uint64_t> ParseBytes(std::string_view where, std::string_view text) {
  constexpr std::string_view kMust =
      "must be a positive number of bytes, as in 4096, 64K, 512M or 2G";
  std::string_view rest = text;
  std::uint64_t number = 0;
  if (!TakeDecimal(rest, number) || number == 0) return Refuse(where, text, kMust);
  unsigned shift = 0;
  if (rest == "K") {
    shift = 10;
  } else if (rest == "M") {
    shift = 20;
  } else if (rest == "G") {
    shift = 30;
  } else if (!rest.empty()) {
    return Refuse(where, text, kMust);
  }
  if (number > (UINT64_MAX >> 1) >> shift)
    return Refuse(where, text, "must be less than 2^63 bytes");
  return number << shift;
}

absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view where,
                                                        std::string_view text) {
  constexpr std::string_view kMust = "must be a time from 1ms to 24h, as in 500ms, 60s, 5m or 1h";
  constexpr std::uint64_t kMaxMs = std::uint64_t{24} * 3600 * 1000;
  std::string_view rest = text;
  std::uint64_t number = 0;
  if (!TakeDecimal(rest, number)) return Refuse(where, text, kMust);
  std::uint64_t unit_ms = 0;
  if (rest == "ms") unit_ms = 1;
  if (rest == "s") unit_ms = 1000;
  if (rest == "m") unit_ms = 60 * 1000;
  if (rest == "h") unit_ms = 3600 * 1000;
  if (unit_ms == 0 || number == 0 || number > kMaxMs / unit_ms) return Refuse(where, text, kMust);
  return std::chrono::milliseconds(number * unit_ms);
}

absl::StatusOr<std::size_t> ParseChoice(std::string_view where, std::string_view text,
                                        std::initializer_list<std::string_view> choices) {
  const auto* found = std::find(choices.begin(), choices.end(), text);
  if (found != choices.end()) return static_cast<std::size_t>(found - choices.begin());
  std::vector<std::string> words(choices.begin(), choices.end());
  return Refuse(where, text, absl::StrCat("must be one of: ", absl::StrJoin(words, ", ")));
}

}  // namespace pagesaw
