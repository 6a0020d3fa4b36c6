// `walk` and `spte`: a walk, level by level.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

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

std::string NoteText(const v1::WalkStep& step) {
  if (!step.present()) return "not present";
  if (step.reserved_bits() != 0) return "reserved: " + HexText(step.reserved_bits());
  if (step.malformed()) return "malformed";
  return step.leaf() ? "leaf" : "table";
}

template <typename Steps>
void PrintSteps(const Steps& steps) {
  if (steps.empty()) return;
  Table table({"LEVEL", "ENTRY AT", "ENTRY", "BITS", "RIGHTS", "IS"});
  for (const v1::WalkStep& step : steps) {
    const std::string bits = absl::StrJoin(step.bits(), " ");
    table.AddRow({LevelText(step.level()), HexText(step.entry_address()), HexText16(step.entry()),
                  bits.empty() ? "-" : bits, step.present() ? RightsText(step.rights()) : "-",
                  NoteText(step)});
  }
  Print(table.Text());
}

// The outcome of a walk whose entries are printed. What nested tables refuse is no page fault and
// has no error code: `is_page_fault` is false then.
template <typename Response>
void PrintOutcome(const Response& response, bool is_page_fault = true) {
  if (response.has_translation()) {
    const v1::Translation& translation = response.translation();
    Print(absl::StrCat("result: ", HexText(translation.output()), ", rights ",
                       RightsText(translation.rights()), ", page of ",
                       BytesText(translation.page_bytes()), "\n"));
  } else if (response.has_fault()) {
    const v1::WalkFault& fault = response.fault();
    const std::string bits = absl::StrJoin(fault.error_code_bits(), " ");
    const std::string code = absl::StrCat(", error code ", HexText(fault.error_code()),
                                          bits.empty() ? "" : absl::StrCat(" (", bits, ")"));
    Print(absl::StrCat("result: fault, ", EnumText(v1::WalkFault::Kind_Name(fault.kind())),
                       " at level ", fault.level(), is_page_fault ? code : "", "\n"));
  }
  Print(absl::StrCat(response.explanation(), "\n"));
}

// "PML4E", "final address": what a walk of nested tables is for.
std::string PurposeText(const v1::NestedWalk& walk) {
  if (walk.level() == 0) return "final address";
  return LevelText(walk.level()).substr(2);
}

// The nested walks, one to a line.
void PrintFolded(const v1::WalkResponse& response) {
  Table table({"OF", "FOR", "ENTRIES, ROOT FIRST", "RIGHTS", "IS"});
  for (const v1::NestedWalk& walk : response.nested_walks()) {
    std::vector<std::string> entries;
    for (const v1::WalkStep& step : walk.steps()) entries.push_back(HexText(step.entry()));
    const bool found = walk.has_translation();
    const v1::Translation& to = walk.translation();
    table.AddRow(
        {HexText(walk.address()), PurposeText(walk),
         entries.empty() ? "-" : absl::StrJoin(entries, " "),
         RightsText(found ? to.rights() : walk.fault().rights()),
         found ? absl::StrCat(HexText(to.output()), " in ", BytesText(to.page_bytes())) : "fault"});
  }
  Print(absl::StrCat("\nsecond stage, by the hypervisor's tables (tdp_walk; --unfold shows each)\n",
                     table.Text()));
}

void PrintUnfolded(const v1::WalkResponse& response) {
  for (const v1::NestedWalk& walk : response.nested_walks()) {
    Print(absl::StrCat("\ntdp_walk of ", HexText(walk.address()), " (", PurposeText(walk), ")\n"));
    PrintSteps(walk.steps());
    PrintOutcome(walk, false);
  }
}

void PrintWalk(const v1::WalkResponse& response, std::uint64_t address, bool unfold) {
  Print(absl::StrCat(response.walker(), " of ", HexText(address),
                     response.guest_mode() ? ", in guest mode (L2)" : "", "\n"));
  PrintSteps(response.steps());
  const bool nested = response.fault().kind() == v1::WalkFault::SECOND_STAGE;
  PrintOutcome(response, response.walker() == "cpu_walk" && !nested);
  if (unfold) {
    PrintUnfolded(response);
  } else if (response.nested_walks_size() != 0) {
    PrintFolded(response);
    // Why it was refused its levels say.
    const v1::NestedWalk& last = *response.nested_walks().rbegin();
    if (last.has_fault()) Print(absl::StrCat(last.explanation(), "\n"));
  }
  const v1::Verdict& verdict = response.verdict();
  if (verdict.taker() != v1::Verdict::TAKER_UNSPECIFIED) Print(verdict.description() + "\n");
}

absl::StatusOr<int> Walk(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  v1::WalkRequest request;
  const auto vcpu = VcpuNameOf(parsed);
  if (!vcpu.ok()) return vcpu.status();
  const auto address = AddressOf("ADDRESS", parsed.operands()[1]);
  if (!address.ok()) return address.status();
  const auto access = AccessOf(parsed);
  if (!access.ok()) return access.status();
  request.set_vcpu(*vcpu);
  request.set_address(*address);
  request.set_walker(parsed.Value("walker", "cpu_walk"));
  *request.mutable_access() = *access;
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  const auto response = (*client)->Call(request);
  if (!response.ok()) return response.status();
  if (*json) {
    PrintJson(*response);
    return int{kDone};
  }
  PrintWalk(*response, *address, parsed.Has("unfold"));
  return int{kDone};
}

void PrintSptes(const v1::WalkSptesResponse& response, std::uint64_t address) {
  if (response.has_guest_walk()) {
    PrintWalk(response.guest_walk(), address, false);
    if (!response.guest_walk().has_translation()) return;
    Print("\n");
  }
  Print(
      absl::StrCat("SPTEs of ", response.shadow_mmu(), " for ", HexText(response.address()), "\n"));
  PrintSteps(response.steps());
  PrintOutcome(response);
}

absl::StatusOr<int> Spte(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  v1::WalkSptesRequest request;
  const auto vcpu = VcpuNameOf(parsed);
  if (!vcpu.ok()) return vcpu.status();
  const auto address = AddressOf("ADDRESS", parsed.operands()[1]);
  if (!address.ok()) return address.status();
  const auto space = ParseChoice("--space", parsed.Value("space", "gpa"), {"gpa", "gva"});
  if (!space.ok()) return Usage(space.status());
  const auto access = AccessOf(parsed);
  if (!access.ok()) return access.status();
  const auto mmu = MmuOf(parsed);
  if (!mmu.ok()) return mmu.status();
  request.set_shadow_mmu(*mmu);
  request.set_vcpu(*vcpu);
  request.set_address(*address);
  request.set_space(*space == 0 ? v1::WalkSptesRequest::GPA : v1::WalkSptesRequest::GVA);
  *request.mutable_access() = *access;
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  const auto response = (*client)->Call(request);
  if (!response.ok()) return response.status();
  if (*json) {
    PrintJson(*response);
  } else {
    PrintSptes(*response, *address);
  }
  return int{kDone};
}

}  // namespace

std::vector<Command> WalkCommands() {
  const OperandSpec address = {.name = "ADDRESS", .help = "decimal or with 0x"};
  return {{.spec = {.name = "pagesawctl walk",
                    .summary = "Walks the guest's tables for an address.",
                    .operands = {kVmOperand, address},
                    .options = {kVcpuOption,
                                {.name = "walker",
                                 .placeholder = "cpu_walk|tdp_walk",
                                 .help = "default: cpu_walk"},
                                kAccessOption,
                                kUserOption,
                                {.name = "unfold",
                                 .placeholder = "",
                                 .help = "every level of every walk of nested tables"},
                                kOutputOption,
                                kSocketOption},
                    .details = "Changes nothing: no accessed or dirty bit is set. A fault is an "
                               "answer: exit status 0. While the guest of a guest runs with nested "
                               "paging, cpu_walk walks its linear addresses, and tdp_walk its "
                               "physical ones by its hypervisor's tables; of what refuses the "
                               "access the last line tells who hears of it.",
                    .example = "pagesawctl walk demo 0x400000 --access=write --user"},
           .run = Walk},
          {.spec = {.name = "pagesawctl spte",
                    .summary = "Walks the SPTEs for an address.",
                    .operands = {kVmOperand, address},
                    .options = {kVcpuOption,
                                {.name = "space",
                                 .placeholder = "gpa|gva",
                                 .help = "what ADDRESS is: guest physical (default) or virtual"},
                                {.name = "mmu",
                                 .placeholder = "root_mmu|guest_mmu",
                                 .help = "the shadow MMU; default: the active one"},
                                kAccessOption,
                                kUserOption,
                                kOutputOption,
                                kSocketOption},
                    .details = "A guest-virtual address is translated by cpu_walk first where "
                               "SPTEs are second-stage tables. Addresses are those of the guest "
                               "that the SPTEs are for: to guest_mmu the guest of a guest, else "
                               "the guest.",
                    .example = "pagesawctl spte demo 0x400000 --space=gva"},
           .run = Spte}};
}

}  // namespace pagesaw
