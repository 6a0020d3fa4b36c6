// `attribute set|clear|list|violations`: what the guest may do with its memory.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>

#include <cstdint>
#include <string>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.cli.table;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

constexpr v1::MemoryAttribute::Policy kPolicies[] = {
    v1::MemoryAttribute::STOP, v1::MemoryAttribute::PAGE_FAULT,
    v1::MemoryAttribute::GENERAL_PROTECTION, v1::MemoryAttribute::LOG};

// "page-fault", as --policy has it.
std::string PolicyText(v1::MemoryAttribute::Policy policy) {
  std::string text = EnumText(v1::MemoryAttribute::Policy_Name(policy));
  for (char& c : text) c = c == ' ' ? '-' : c;
  return text;
}

// "R,XS", or "none".
absl::StatusOr<v1::Rights> RightsOf(const std::string& text) {
  v1::Rights rights;
  if (text == "none") return rights;
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(text, ','))) {
    if (name == "R") {
      rights.set_read(true);
    } else if (name == "W") {
      rights.set_write(true);
    } else if (name == "XS") {
      rights.set_exec_supervisor(true);
    } else if (name == "XU") {
      rights.set_exec_user(true);
    } else {
      return Usage(absl::InvalidArgumentError(absl::StrCat(
          "--rights=", text, ": must be none, or some of R, W, XS and XU with commas between")));
    }
  }
  return rights;
}

// The range that GPA and --size name.
absl::StatusOr<v1::MemoryAttribute> RangeOf(const ParsedCommand& parsed) {
  const auto gpa = AddressOf("GPA", parsed.operands()[1]);
  if (!gpa.ok()) return gpa.status();
  const auto size = ParseBytes("--size", parsed.Value("size", "4096"));
  if (!size.ok()) return Usage(size.status());
  v1::MemoryAttribute range;
  range.set_gpa(*gpa);
  range.set_size_bytes(static_cast<std::int64_t>(*size));
  return range;
}

absl::StatusOr<int> Send(const ParsedCommand& parsed, const v1::MemoryAttribute& attribute) {
  const auto name = VmNameOf(parsed.operands()[0]);
  if (!name.ok()) return name.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::SetMemoryAttributeRequest request;
  request.set_name(*name);
  *request.mutable_attribute() = attribute;
  if (const auto done = (*client)->Call(request); !done.ok()) return done.status();
  return int{kDone};
}

absl::StatusOr<int> Set(const ParsedCommand& parsed) {
  auto attribute = RangeOf(parsed);
  if (!attribute.ok()) return attribute.status();
  if (!parsed.Has("rights")) {
    return Usage(absl::InvalidArgumentError("--rights: missing; as in --rights=R,W,XS"));
  }
  const auto rights = RightsOf(parsed.Value("rights"));
  if (!rights.ok()) return rights.status();
  const auto policy = ParseChoice("--policy", parsed.Value("policy", "stop"),
                                  {"stop", "page-fault", "general-protection", "log"});
  if (!policy.ok()) return Usage(policy.status());
  *attribute->mutable_rights() = *rights;
  attribute->set_policy(kPolicies[*policy]);
  return Send(parsed, *attribute);
}

absl::StatusOr<int> Clear(const ParsedCommand& parsed) {
  auto attribute = RangeOf(parsed);
  if (!attribute.ok()) return attribute.status();
  *attribute->mutable_rights() = *RightsOf("R,W,XS,XU");
  return Send(parsed, *attribute);
}

absl::StatusOr<int> List(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VmNameOf(parsed.operands()[0]));
  if (!inquiry.ok()) return inquiry.status();
  v1::ListMemoryAttributesRequest request;
  request.set_parent(inquiry->name);
  request.set_page_size(1000);
  const auto all = CallForAll(*inquiry->client, request);
  if (!all.ok()) return all.status();
  if (inquiry->json) {
    PrintJson(*all);
    return int{kDone};
  }
  Table table({"GPA", "SIZE", "RIGHTS", "POLICY"});
  for (const v1::MemoryAttribute& range : all->attributes()) {
    table.AddRow({HexText(range.gpa()), BytesText(range.size_bytes()), RightsText(range.rights()),
                  PolicyText(range.policy())});
  }
  Print(table.Text());
  return int{kDone};
}

std::string AccessText(const v1::AttributeViolation& violation) {
  const v1::Access& access = violation.access();
  const std::string kind = EnumText(v1::Access::Kind_Name(access.kind()));
  if (violation.guest_table()) return absl::StrCat("table ", kind);
  return absl::StrCat(access.user() ? "user " : "supervisor ", kind);
}

absl::StatusOr<int> Violations(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VmNameOf(parsed.operands()[0]));
  if (!inquiry.ok()) return inquiry.status();
  v1::ListAttributeViolationsRequest request;
  request.set_parent(inquiry->name);
  const auto response = inquiry->client->Call(request);
  if (!response.ok()) return response.status();
  if (inquiry->json) {
    PrintJson(*response);
    return int{kDone};
  }
  Table table({"NUMBER", "VCPU", "RIP", "ACCESS", "GPA", "GVA", "MISSING", "RIGHTS", "POLICY"});
  for (const v1::AttributeViolation& violation : response->violations()) {
    table.AddRow({absl::StrCat(violation.number()), absl::StrCat(violation.vcpu()),
                  HexText(violation.rip()), AccessText(violation), HexText(violation.gpa()),
                  HexText(violation.gva()), RightsText(violation.missing()),
                  RightsText(violation.rights()), PolicyText(violation.policy())});
  }
  Print(table.Text());
  Print(absl::StrCat("stopped ", response->stop_count(), ", page faults ",
                     response->page_fault_count(), ", general protection faults ",
                     response->general_protection_count(), ", logged ", response->log_count(),
                     "\n"));
  return int{kDone};
}

}  // namespace

std::vector<Command> AttributeCommands() {
  const OperandSpec gpa = {.name = "GPA", .help = "guest-physical address of a 4 KiB page"};
  const OptionSpec size = {
      .name = "size", .placeholder = "4096", .help = "bytes, as in 4096 or 2M; default: 4096"};
  return {
      {.spec = {.name = "pagesawctl attribute set",
                .summary = "Limits what a guest may do with its memory.",
                .operands = {kVmOperand, gpa},
                .options = {size,
                            {.name = "rights",
                             .placeholder = "R,W,XS,XU",
                             .help = "what it may do: read, write, execute in supervisor and in "
                                     "user mode; or none"},
                            {.name = "policy",
                             .placeholder = "stop|page-fault|general-protection|log",
                             .help = "when it tries more; default: stop"},
                            kSocketOption},
                .details =
                    "Holds whatever the guest's own tables grant. stop pauses the VM before the\n"
                    "access; 'vm get' shows it, and after a wider 'attribute set' the VM can "
                    "be resumed.",
                .example = "pagesawctl attribute set demo 0x200000 --size=2M --rights=R,W,XS"},
       .run = Set},
      {.spec = {.name = "pagesawctl attribute clear",
                .summary = "Lets a guest do everything with its memory again.",
                .operands = {kVmOperand, gpa},
                .options = {size, kSocketOption},
                .details = "",
                .example = "pagesawctl attribute clear demo 0x200000 --size=2M"},
       .run = Clear},
      {.spec = {.name = "pagesawctl attribute list",
                .summary = "Lists ranges of memory that have limits.",
                .operands = {kVmOperand},
                .options = {kOutputOption, kSocketOption},
                .details = "",
                .example = "pagesawctl attribute list demo"},
       .run = List},
      {.spec = {.name = "pagesawctl attribute violations",
                .summary = "Lists accesses that attributes refused.",
                .operands = {kVmOperand},
                .options = {kOutputOption, kSocketOption},
                .details = "The newest 256, oldest first.",
                .example = "pagesawctl attribute violations demo"},
       .run = Violations}};
}

}  // namespace pagesaw
