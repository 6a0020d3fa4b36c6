// `vm read-memory|write-memory`.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.cli.code_page;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 20;

std::string HexLine(std::uint64_t address, std::string_view bytes) {
  std::string line = absl::StrCat("0x", absl::Hex(address, absl::kZeroPad16), " ");
  for (std::size_t i = 0; i < 16; ++i) {
    if (i == 8) line += ' ';
    if (i >= bytes.size()) {
      line += "   ";
      continue;
    }
    absl::StrAppend(&line, " ", absl::Hex(static_cast<unsigned char>(bytes[i]), absl::kZeroPad2));
  }
  line += "  ";
  for (const char c : bytes) line += c >= ' ' && c <= '~' ? c : '.';
  return line + "\n";
}

absl::StatusOr<int> ReadMemory(const ParsedCommand& parsed) {
  const auto form =
      ParseChoice("--output", parsed.Value("output", "table"), {"table", "json", "raw"});
  if (!form.ok()) return Usage(form.status());
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const auto gpa = AddressOf("GPA", parsed.operands()[1]);
  if (!gpa.ok()) return gpa.status();
  const auto size = ParseNumber("--size", parsed.Value("size", "64"), 1, kMaxBytes);
  if (!size.ok()) return Usage(size.status());
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::ReadMemoryRequest request;
  request.set_name(*name);
  request.set_gpa(*gpa);
  request.set_size_bytes(static_cast<std::int64_t>(*size));
  const auto response = (*client)->Call(request);
  if (!response.ok()) return response.status();
  if (*form == 1) {
    PrintJson(*response);
  } else if (*form == 2) {
    Print(response->data());
  } else {
    const std::string_view data = response->data();
    for (std::size_t i = 0; i < data.size(); i += 16) Print(HexLine(*gpa + i, data.substr(i, 16)));
  }
  return int{kDone};
}

// The text mode's buffer: 25 rows of 80 characters, each with a byte of attributes.
constexpr std::uint64_t kScreen = 0xb8000;
constexpr std::size_t kScreenRows = 25, kScreenColumns = 80;

absl::StatusOr<int> PrintScreen(const ParsedCommand& parsed) {
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::ReadMemoryRequest request;
  request.set_name(*name);
  request.set_gpa(kScreen);
  request.set_size_bytes(kScreenRows * kScreenColumns * 2);
  const auto response = (*client)->Call(request);
  if (!response.ok()) return response.status();
  for (std::size_t row = 0; row < kScreenRows; ++row) {
    std::string line;
    for (std::size_t column = 0; column < kScreenColumns; ++column) {
      const char c = response->data()[(row * kScreenColumns + column) * 2];
      line += CodePage437(static_cast<unsigned char>(c));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    Print(line + "\n");
  }
  return int{kDone};
}

absl::StatusOr<std::string> BytesOfHex(const std::string& digits) {
  if (digits.empty() || digits.size() % 2 != 0 ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
    return Usage(absl::InvalidArgumentError(
        absl::StrCat("--hex=", digits, ": must be pairs of hexadecimal digits")));
  }
  return absl::HexStringToBytes(digits);
}

absl::StatusOr<std::string> BytesOfFile(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::string bytes(kMaxBytes + 1, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  if (!bytes.empty() && bytes.size() <= kMaxBytes) return bytes;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": must have from 1 to ", kMaxBytes, " bytes"));
}

absl::StatusOr<std::string> BytesOfNumbers(const std::vector<std::string>& numbers) {
  std::string bytes;
  for (const std::string& text : numbers) {
    const auto number = AddressOf("--u64", text);
    if (!number.ok()) return number.status();
    for (unsigned shift = 0; shift < 64; shift += 8) {
      bytes += static_cast<char>(*number >> shift & 0xff);
    }
  }
  return bytes;
}

absl::StatusOr<std::string> BytesToWrite(const ParsedCommand& parsed) {
  if (parsed.Has("hex") + parsed.Has("file") + parsed.Has("u64") != 1) {
    return Usage(absl::InvalidArgumentError("one of --hex, --file and --u64 must be given"));
  }
  if (parsed.Has("hex")) return BytesOfHex(parsed.Value("hex"));
  if (parsed.Has("file")) return BytesOfFile(parsed.Value("file"));
  return BytesOfNumbers(parsed.Values("u64"));
}

absl::StatusOr<int> WriteMemory(const ParsedCommand& parsed) {
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const auto gpa = AddressOf("GPA", parsed.operands()[1]);
  if (!gpa.ok()) return gpa.status();
  auto bytes = BytesToWrite(parsed);
  if (!bytes.ok()) return bytes.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::WriteMemoryRequest request;
  request.set_name(*name);
  request.set_gpa(*gpa);
  request.set_data(*std::move(bytes));
  if (const auto done = (*client)->Call(request); !done.ok()) return done.status();
  return int{kDone};
}

}  // namespace

std::vector<Command> MemoryCommands() {
  const OperandSpec gpa = {.name = "GPA", .help = "guest-physical address"};
  return {{.spec = {.name = "pagesawctl vm read-memory",
                    .summary = "Prints guest-physical memory.",
                    .operands = {kVmOperand, gpa},
                    .options = {{.name = "size",
                                 .placeholder = "64",
                                 .help = "bytes, 1 to 1048576; default: 64"},
                                {.name = "output",
                                 .placeholder = "table|json|raw",
                                 .help = "how to print; default: table"},
                                kSocketOption},
                    .details = "",
                    .example = "pagesawctl vm read-memory demo 0x1000 --size=4096"},
           .run = ReadMemory},
          {.spec = {.name = "pagesawctl vm screen",
                    .summary = "Prints the text on the guest's screen.",
                    .operands = {kVmOperand},
                    .options = {kSocketOption},
                    .details = "The 80x25 text buffer at 0xb8000, code page 437 as UTF-8.",
                    .example = "pagesawctl vm screen demo"},
           .run = PrintScreen},
          {.spec = {.name = "pagesawctl vm write-memory",
                    .summary = "Writes guest-physical memory.",
                    .operands = {kVmOperand, gpa},
                    .options = {{.name = "hex", .placeholder = "0FF0", .help = "bytes"},
                                {.name = "file", .placeholder = "FILE", .help = "bytes of a file"},
                                {.name = "u64",
                                 .placeholder = "0x2003",
                                 .help = "a 64-bit number, little endian",
                                 .repeatable = true},
                                kSocketOption},
                    .details = "",
                    .example = "pagesawctl vm write-memory demo 0x1000 --u64=0x2003"},
           .run = WriteMemory}};
}

}  // namespace pagesaw
