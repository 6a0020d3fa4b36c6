// `vm registers|set-registers`. The registers are the fields of the message, whatever it has.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.cli.table;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Every register's field, by number.
std::vector<const FieldDescriptor*> Fields(const google::protobuf::Descriptor& descriptor) {
  std::vector<const FieldDescriptor*> fields;
  for (int i = 0; i < descriptor.field_count(); ++i) fields.push_back(descriptor.field(i));
  return fields;
}

std::uint64_t NumberIn(const Message& message, const FieldDescriptor& field) {
  const auto& reflection = *message.GetReflection();
  return field.cpp_type() == FieldDescriptor::CPPTYPE_UINT32
             ? reflection.GetUInt32(message, &field)
             : reflection.GetUInt64(message, &field);
}

// A whole segment or table: "selector=0x8 attributes=0xa09b ...".
std::string PartsText(const Message& message) {
  std::string text;
  for (const FieldDescriptor* field : Fields(*message.GetDescriptor())) {
    absl::StrAppend(&text, text.empty() ? "" : " ", field->name(), "=",
                    HexText(NumberIn(message, *field)));
  }
  return text;
}

absl::StatusOr<int> PrintRegisters(const absl::StatusOr<v1::Registers>& registers, bool json) {
  if (!registers.ok()) return registers.status();
  if (json) {
    PrintJson(*registers);
    return int{kDone};
  }
  Table table({"REGISTER", "VALUE"});
  for (const FieldDescriptor* field : Fields(*v1::Registers::descriptor())) {
    const bool whole = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    table.AddRow(
        {field->name(), whole ? PartsText(registers->GetReflection()->GetMessage(*registers, field))
                              : HexText16(NumberIn(*registers, *field))});
  }
  Print(table.Text());
  return int{kDone};
}

absl::Status SetNumber(const std::string& option, std::string_view text, Message& message,
                       const FieldDescriptor& field) {
  const bool narrow = field.cpp_type() == FieldDescriptor::CPPTYPE_UINT32;
  const auto number = ParseNumber(option, text, 0, narrow ? UINT32_MAX : UINT64_MAX);
  if (!number.ok()) return Usage(number.status());
  if (narrow) {
    message.GetReflection()->SetUInt32(&message, &field, static_cast<std::uint32_t>(*number));
  } else {
    message.GetReflection()->SetUInt64(&message, &field, *number);
  }
  return absl::OkStatus();
}

// Sets the parts of a segment or table from numbers separated by commas.
absl::Status SetParts(const std::string& option, const std::string& text, Message& message) {
  const auto fields = Fields(*message.GetDescriptor());
  std::string_view rest = text;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const std::size_t comma = rest.find(',');
    const bool last = i + 1 == fields.size();
    if ((comma == std::string_view::npos) != last) {
      std::string names;
      for (const FieldDescriptor* field : fields) {
        absl::StrAppend(&names, names.empty() ? "" : ",", field->name());
      }
      return Usage(absl::InvalidArgumentError(
          absl::StrCat(option, "=", text, ": must be ", fields.size(), " numbers: ", names)));
    }
    auto status = SetNumber(option, rest.substr(0, comma), message, *fields[i]);
    if (!status.ok()) return status;
    rest.remove_prefix(last ? rest.size() : comma + 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Registers> RegistersOf(const ParsedCommand& parsed) {
  v1::Registers registers;
  bool any = false;
  for (const FieldDescriptor* field : Fields(*v1::Registers::descriptor())) {
    if (!parsed.Has(field->name())) continue;
    any = true;
    const std::string option = "--" + field->name();
    const std::string text = parsed.Value(field->name());
    const auto status =
        field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE
            ? SetParts(option, text, *registers.GetReflection()->MutableMessage(&registers, field))
            : SetNumber(option, text, registers, *field);
    if (!status.ok()) return status;
  }
  if (!any)
    return Usage(absl::InvalidArgumentError("a register to set must be given, as in --cr3=0x1000"));
  return registers;
}

absl::StatusOr<int> Get(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VcpuNameOf(parsed));
  if (!inquiry.ok()) return inquiry.status();
  v1::GetRegistersRequest request;
  request.set_name(inquiry->name);
  return PrintRegisters(inquiry->client->Call(request), inquiry->json);
}

absl::StatusOr<int> Set(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  const auto name = VcpuNameOf(parsed);
  if (!name.ok()) return name.status();
  const auto registers = RegistersOf(parsed);
  if (!registers.ok()) return registers.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::SetRegistersRequest request;
  request.set_name(*name);
  *request.mutable_registers() = *registers;
  return PrintRegisters((*client)->Call(request), *json);
}

std::vector<OptionSpec> SetOptions() {
  std::vector<OptionSpec> options = {kVcpuOption, kOutputOption, kSocketOption};
  for (const FieldDescriptor* field : Fields(*v1::Registers::descriptor())) {
    const bool whole = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    const bool segment = whole && field->message_type()->name() == "Segment";
    options.push_back({.name = field->name(),
                       .placeholder = segment ? "0x8,0xa09b,0xffffffff,0"
                                      : whole ? "0x1000,0xffff"
                                              : "0x1000",
                       .help = segment ? "selector,attributes,limit,base"
                               : whole ? "base,limit"
                                       : "a 64-bit value"});
  }
  return options;
}

}  // namespace

std::vector<Command> RegisterCommands() {
  return {{.spec = {.name = "pagesawctl vm registers",
                    .summary = "Prints the registers of a vCPU; the VM must not be running.",
                    .operands = {kVmOperand},
                    .options = {kVcpuOption, kOutputOption, kSocketOption},
                    .details = "",
                    .example = "pagesawctl vm registers demo"},
           .run = Get},
          {.spec = {.name = "pagesawctl vm set-registers",
                    .summary = "Sets registers of a vCPU; the VM must not be running.",
                    .operands = {kVmOperand},
                    .options = SetOptions(),
                    .details = "All are set, or none.",
                    .example = "pagesawctl vm set-registers demo --cr3=0x1000 --rip=0x400000"},
           .run = Set}};
}

}  // namespace pagesaw
