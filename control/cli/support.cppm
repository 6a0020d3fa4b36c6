// What the commands share: values checked, a client, and output as a table or as JSON.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "control/cli/client.h"
module pagesaw.control.cli.commands:support;

import pagesaw.control.command_line;

namespace pagesaw {

// Marks an error as one of usage: exit status 2.
absl::Status Usage(const absl::Status& status);
bool IsUsage(const absl::Status& status);

// Options that several commands have.
inline constexpr OptionSpec kSocketOption = {
    .name = "socket", .placeholder = "unix:PATH", .help = "the daemon's socket"};
inline constexpr OptionSpec kOutputOption = {
    .name = "output", .placeholder = "table|json", .help = "how to print; default: table"};
inline constexpr OptionSpec kVcpuOption = {
    .name = "vcpu", .placeholder = "0", .help = "the vCPU; default: 0"};
inline constexpr OptionSpec kMmuOption = {
    .name = "mmu", .placeholder = "root_mmu|guest_mmu", .help = "the shadow MMU; default: all"};
inline constexpr OptionSpec kAccessOption = {
    .name = "access", .placeholder = "read|write|fetch", .help = "default: read"};
inline constexpr OptionSpec kUserOption = {
    .name = "user", .placeholder = "", .help = "access in user mode; default: supervisor"};
inline constexpr OperandSpec kVmOperand = {.name = "VM", .help = "name of a virtual machine"};

// Values of those options and operands. Errors are of usage.
absl::StatusOr<std::string> EndpointOf(const ParsedCommand& parsed);
absl::StatusOr<bool> WantsJson(const ParsedCommand& parsed);
// `vms/{vm}` of a name with or without that prefix.
absl::StatusOr<std::string> VmNameOf(const std::string& operand);
// `vms/{vm}/vcpus/{vcpu}` of the first operand and --vcpu.
absl::StatusOr<std::string> VcpuNameOf(const ParsedCommand& parsed);
// The name of --mmu; empty if it is not given.
absl::StatusOr<std::string> MmuOf(const ParsedCommand& parsed);
absl::StatusOr<control::v1::Access> AccessOf(const ParsedCommand& parsed);
absl::StatusOr<std::uint64_t> AddressOf(std::string_view where, std::string_view text);

// A client of the daemon that --socket names. Unavailable if none listens there.
absl::StatusOr<std::unique_ptr<Client>> Connect(const ParsedCommand& parsed);

// What a command begins with that tells something of one resource.
struct Inquiry {
  bool json = false;
  std::string name;  // of the resource
  std::unique_ptr<Client> client;
};
// `name`: the resource's, or why it has none.
absl::StatusOr<Inquiry> Inquire(const ParsedCommand& parsed, absl::StatusOr<std::string> name);

// The answers to a list request with all its pages in one.
template <class Request>
auto CallForAll(Client& client, Request request) -> decltype(client.Call(request)) {
  decltype(client.Call(request)) all = client.Call(request);
  while (all.ok() && !all->next_page_token().empty()) {
    request.set_page_token(all->next_page_token());
    auto page = client.Call(request);
    if (!page.ok()) return page;
    all->clear_next_page_token();
    all->MergeFrom(*page);
  }
  return all;
}

// stdout.
void Print(std::string_view text);
void PrintJson(const google::protobuf::Message& message);
// As one document with the fields of all, whose names differ.
void PrintJson(std::initializer_list<const google::protobuf::Message*> messages);

// Texts.
std::string HexText(std::uint64_t value);
std::string HexText16(std::uint64_t value);  // all 16 digits
std::string LevelText(int level);            // 4 PML4E
std::string RightsText(const control::v1::Rights& rights);
std::string RoleText(const control::v1::ShadowRole& role);
std::string BytesText(std::int64_t bytes);  // 512M
// The last part of a resource name.
std::string LastPart(std::string_view name);
// "RUNNING" -> "running", "DEBUG_EXIT" -> "debug exit".
std::string EnumText(std::string_view name);

}  // namespace pagesaw
