module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/ascii.h>
#include <absl/strings/cord.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.endpoint;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

constexpr const char* kUsageMark = "pagesaw/usage";

}  // namespace

absl::Status Usage(const absl::Status& status) {
  absl::Status marked = status;
  marked.SetPayload(kUsageMark, absl::Cord());
  return marked;
}

bool IsUsage(const absl::Status& status) { return status.GetPayload(kUsageMark).has_value(); }

absl::StatusOr<std::string> EndpointOf(const ParsedCommand& parsed) {
  std::string endpoint = parsed.Value("socket", DefaultEndpoint());
  const auto path = SocketPathOf(endpoint);
  if (path.ok()) return endpoint;
  return Usage(absl::InvalidArgumentError(absl::StrCat("--socket=", path.status().message())));
}

absl::StatusOr<bool> WantsJson(const ParsedCommand& parsed) {
  const auto choice = ParseChoice("--output", parsed.Value("output", "table"), {"table", "json"});
  if (!choice.ok()) return Usage(choice.status());
  return *choice == 1;
}

absl::StatusOr<std::string> VmNameOf(const std::string& operand) {
  const std::string id = operand.starts_with("vms/") ? operand.substr(4) : operand;
  const bool plain =
      id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
  if (id.empty() || id.size() > 63 || !plain || id[0] < 'a') {
    return Usage(absl::InvalidArgumentError(
        absl::StrCat("VM ", operand, ": must be a name like [a-z][a-z0-9-]{0,62}")));
  }
  return absl::StrCat("vms/", id);
}

absl::StatusOr<std::string> VcpuNameOf(const ParsedCommand& parsed) {
  const auto vm = VmNameOf(parsed.operands()[0]);
  if (!vm.ok()) return vm.status();
  const auto vcpu = ParseNumber("--vcpu", parsed.Value("vcpu", "0"), 0, 4095);
  if (!vcpu.ok()) return Usage(vcpu.status());
  return absl::StrCat(*vm, "/vcpus/", *vcpu);
}

absl::StatusOr<std::string> MmuOf(const ParsedCommand& parsed) {
  if (!parsed.Has("mmu")) return std::string();
  static constexpr const char* kNames[] = {"root_mmu", "guest_mmu"};
  const auto choice = ParseChoice("--mmu", parsed.Value("mmu"), {kNames[0], kNames[1]});
  if (!choice.ok()) return Usage(choice.status());
  return std::string(kNames[*choice]);
}

absl::StatusOr<v1::Access> AccessOf(const ParsedCommand& parsed) {
  const auto kind =
      ParseChoice("--access", parsed.Value("access", "read"), {"read", "write", "fetch"});
  if (!kind.ok()) return Usage(kind.status());
  v1::Access access;
  access.set_kind(static_cast<v1::Access::Kind>(v1::Access::READ + *kind));
  access.set_user(parsed.Has("user"));
  return access;
}

absl::StatusOr<std::uint64_t> AddressOf(std::string_view where, std::string_view text) {
  const auto address = ParseNumber(where, text, 0, UINT64_MAX);
  if (!address.ok()) return Usage(address.status());
  return *address;
}

absl::StatusOr<std::unique_ptr<Client>> Connect(const ParsedCommand& parsed) {
  const auto endpoint = EndpointOf(parsed);
  if (!endpoint.ok()) return endpoint.status();
  if (!IsListening(*SocketPathOf(*endpoint))) {
    return absl::UnavailableError(absl::StrCat("no daemon listens at ", *endpoint,
                                               "; start one: pagesawd --listen=", *endpoint));
  }
  return std::make_unique<Client>(*endpoint);
}

absl::StatusOr<Inquiry> Inquire(const ParsedCommand& parsed, absl::StatusOr<std::string> name) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  if (!name.ok()) return name.status();
  auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  return Inquiry{.json = *json, .name = *std::move(name), .client = *std::move(client)};
}

void Print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::string JsonText(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) json.clear();
  return json;
}

void PrintJson(const google::protobuf::Message& message) { Print(JsonText(message)); }

void PrintJson(std::initializer_list<const google::protobuf::Message*> messages) {
  google::protobuf::Struct all;
  for (const google::protobuf::Message* message : messages) {
    google::protobuf::Struct one;
    if (!google::protobuf::util::JsonStringToMessage(JsonText(*message), &one).ok()) continue;
    all.mutable_fields()->insert(one.fields().begin(), one.fields().end());
  }
  PrintJson(all);
}

std::string HexText(std::uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

std::string HexText16(std::uint64_t value) {
  return absl::StrCat("0x", absl::Hex(value, absl::kZeroPad16));
}

std::string LevelText(int level) {
  static constexpr const char* kNames[] = {"PTE", "PDE", "PDPTE", "PML4E", "PML5E"};
  if (level < 1 || level > static_cast<int>(std::size(kNames))) return absl::StrCat(level);
  return absl::StrCat(level, " ", kNames[level - 1]);
}

std::string RightsText(const v1::Rights& rights) {
  std::vector<std::string> names;
  if (rights.read()) names.emplace_back("R");
  if (rights.write()) names.emplace_back("W");
  if (rights.exec_supervisor()) names.emplace_back("XS");
  if (rights.exec_user()) names.emplace_back("XU");
  if (rights.user()) names.emplace_back("U");
  if (rights.shadow_stack()) names.emplace_back("SS");
  return names.empty() ? "-" : absl::StrJoin(names, " ");
}

std::string RoleText(const v1::ShadowRole& role) {
  std::vector<std::string> words = {absl::StrCat("level ", role.level())};
  const auto add = [&words](bool set, const char* word) {
    if (set) words.emplace_back(word);
  };
  add(role.direct(), "direct");
  if (role.has_4_byte_entries()) words.push_back(absl::StrCat("quadrant ", role.quadrant()));
  add(role.guest_mode(), "guest-mode");
  add(role.smep(), role.direct() ? "split-execute" : "smep");
  add(role.smap_without_wp(), "smap-without-wp");
  add(!role.write_protect(), "no-wp");
  add(!role.no_execute(), "no-nx");
  add(role.accessed_dirty_off(), "no-ad");
  add(role.passthrough(), "passthrough");
  add(role.invalid(), "invalid");
  return absl::StrJoin(words, " ");
}

std::string BytesText(std::int64_t bytes) {
  static constexpr const char* kUnits[] = {"", "K", "M", "G", "T"};
  unsigned unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrCat(bytes, kUnits[unit]);
}

std::string LastPart(std::string_view name) {
  return std::string(name.substr(name.rfind('/') + 1));
}

std::string EnumText(std::string_view name) {
  std::string text(name);
  for (char& c : text) c = c == '_' ? ' ' : absl::ascii_tolower(static_cast<unsigned char>(c));
  return text;
}

}  // namespace pagesaw
