// `mmu list`, `nested show`, `root list`, `page list`, `stats`: what the shadow MMUs hold.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <string>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.cli.table;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

absl::StatusOr<int> Roots(const ParsedCommand& parsed) {
  const auto mmu = MmuOf(parsed);
  if (!mmu.ok()) return mmu.status();
  const auto inquiry = Inquire(parsed, VcpuNameOf(parsed));
  if (!inquiry.ok()) return inquiry.status();
  v1::ListRootsRequest request;
  request.set_parent(inquiry->name);
  request.set_shadow_mmu(*mmu);
  const auto response = inquiry->client->Call(request);
  if (!response.ok()) return response.status();
  if (inquiry->json) {
    PrintJson(*response);
    return int{kDone};
  }
  Table table({"SHADOW MMU", "TABLE", "LEVEL", "ROOT REGISTER", "CURRENT", "ROLE"});
  for (const v1::Root& root : response->roots()) {
    table.AddRow({root.shadow_mmu(), HexText(root.table()), absl::StrCat(root.level()),
                  root.role().direct() ? "-" : HexText(root.root_register()),
                  root.current() ? "yes" : "no", RoleText(root.role())});
  }
  Print(table.Text());
  return int{kDone};
}

absl::StatusOr<int> Pages(const ParsedCommand& parsed) {
  const auto mmu = MmuOf(parsed);
  if (!mmu.ok()) return mmu.status();
  const auto inquiry = Inquire(parsed, VmNameOf(parsed.operands()[0]));
  if (!inquiry.ok()) return inquiry.status();
  v1::ListShadowPagesRequest request;
  request.set_parent(inquiry->name);
  request.set_shadow_mmu(*mmu);
  request.set_page_size(1000);
  const auto all = CallForAll(*inquiry->client, request);
  if (!all.ok()) return all.status();
  if (inquiry->json) {
    PrintJson(*all);
    return int{kDone};
  }
  Table table({"ID", "TABLE", "GFN", "PRESENT", "PARENTS", "ROOTS", "UNSYNC", "ACCESS", "ROLE"});
  for (const v1::ShadowPage& page : all->shadow_pages()) {
    table.AddRow({absl::StrCat(page.id()), HexText(page.table()), HexText(page.gfn()),
                  absl::StrCat(page.present_count()), absl::StrCat(page.parent_count()),
                  absl::StrCat(page.root_count()), page.unsync() ? "yes" : "no",
                  RightsText(page.role().access()), RoleText(page.role())});
  }
  Print(table.Text());
  return int{kDone};
}

// The bits that entries have: "R W XS XU A D PS". A and D are left out where they are not kept.
std::string BitsText(const v1::Format& format) {
  std::vector<std::string> names;
  for (const v1::FormatBit& bit : format.bits()) {
    const bool accessed_dirty = bit.name() == "A" || bit.name() == "D";
    if (format.accessed_dirty() || !accessed_dirty) names.push_back(bit.name());
  }
  return absl::StrJoin(names, " ");
}

void PrintMmus(const v1::ListWalkersResponse& walkers, const v1::ListShadowMmusResponse& mmus) {
  Table walker_table({"WALKER", "PAGING", "FORMAT", "BITS", "ROOT LEVEL", "ROOT REGISTER"});
  for (const v1::Walker& walker : walkers.walkers()) {
    walker_table.AddRow({walker.name(), walker.paging_mode(), LastPart(walker.format().name()),
                         BitsText(walker.format()), absl::StrCat(walker.root_level()),
                         HexText(walker.root_register())});
  }
  Table mmu_table({"SHADOW MMU", "WALKER", "FORMAT", "BITS", "ACTIVE", "ROLE"});
  for (const v1::ShadowMmu& mmu : mmus.shadow_mmus()) {
    mmu_table.AddRow({mmu.name(), mmu.walker(), LastPart(mmu.format().name()),
                      BitsText(mmu.format()), mmu.active() ? "yes" : "no",
                      RoleText(mmu.root_role())});
  }
  Print(absl::StrCat(walker_table.Text(), "\n", mmu_table.Text()));
}

void PrintNested(const v1::NestedState& state) {
  Print(absl::StrCat("guest mode        ", state.guest_mode() ? "yes" : "no", "\n"));
  if (state.has_tdp_walk()) {
    const v1::Walker& walk = state.tdp_walk();
    Print(absl::StrCat("nested paging     ", LastPart(walk.format().name()), ", ",
                       walk.paging_mode(), ", root ", HexText(walk.root_register()), ", tag ",
                       state.tag(), "\n"));
  } else {
    Print("nested paging     no\n");
  }
  if (!state.has_structure_gpa()) return;
  Print(absl::StrCat("control structure ", state.structure(), " at ",
                     HexText(state.structure_gpa()),
                     state.fields().empty() ? ", where there is no memory" : "", "\n"));
  if (state.fields().empty()) return;
  Table table({"FIELD", "VALUE", "MEANS"});
  for (const v1::StructureField& field : state.fields()) {
    table.AddRow(
        {field.name(), HexText(field.value()), field.meaning().empty() ? "-" : field.meaning()});
  }
  Print(absl::StrCat("\n", table.Text()));
}

absl::StatusOr<int> Nested(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VcpuNameOf(parsed));
  if (!inquiry.ok()) return inquiry.status();
  v1::GetNestedStateRequest request;
  request.set_name(inquiry->name);
  const auto response = inquiry->client->Call(request);
  if (!response.ok()) return response.status();
  if (inquiry->json) {
    PrintJson(*response);
  } else {
    PrintNested(*response);
  }
  return int{kDone};
}

absl::StatusOr<int> Mmus(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VcpuNameOf(parsed));
  if (!inquiry.ok()) return inquiry.status();
  v1::ListWalkersRequest walkers_request;
  walkers_request.set_parent(inquiry->name);
  const auto walkers = inquiry->client->Call(walkers_request);
  if (!walkers.ok()) return walkers.status();
  v1::ListShadowMmusRequest mmus_request;
  mmus_request.set_parent(inquiry->name);
  const auto mmus = inquiry->client->Call(mmus_request);
  if (!mmus.ok()) return mmus.status();
  if (inquiry->json) {
    PrintJson({&*walkers, &*mmus});
  } else {
    PrintMmus(*walkers, *mmus);
  }
  return int{kDone};
}

void PrintStatistics(const v1::Statistics& statistics) {
  Table table({"COUNTER", "VALUE"});
  const auto add = [&table](std::string name, std::int64_t value) {
    table.AddRow({std::move(name), absl::StrCat(value)});
  };
  // Every counter of the message, so that a new one shows without a change here.
  const auto& descriptor = *v1::Statistics::descriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const auto* field = descriptor.field(i);
    if (field->is_repeated()) continue;
    add(field->name(), statistics.GetReflection()->GetInt64(statistics, field));
  }
  const auto& vcpu_descriptor = *v1::VcpuStatistics::descriptor();
  for (int vcpu = 0; vcpu < statistics.vcpus_size(); ++vcpu) {
    const v1::VcpuStatistics& row = statistics.vcpus(vcpu);
    for (int i = 0; i < vcpu_descriptor.field_count(); ++i) {
      const auto* field = vcpu_descriptor.field(i);
      add(absl::StrCat("vcpu ", vcpu, " ", field->name()),
          row.GetReflection()->GetInt64(row, field));
    }
  }
  Print(table.Text());
}

absl::StatusOr<int> Stats(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VmNameOf(parsed.operands()[0]));
  if (!inquiry.ok()) return inquiry.status();
  v1::GetStatisticsRequest request;
  request.set_name(inquiry->name);
  const auto response = inquiry->client->Call(request);
  if (!response.ok()) return response.status();
  if (inquiry->json) {
    PrintJson(*response);
  } else {
    PrintStatistics(*response);
  }
  return int{kDone};
}

}  // namespace

std::vector<Command> ShadowCommands() {
  const std::vector<OptionSpec> of_vcpu = {kVcpuOption, kOutputOption, kSocketOption};
  const std::vector<OptionSpec> of_vm = {kOutputOption, kSocketOption};
  return {
      {.spec = {.name = "pagesawctl mmu list",
                .summary = "Lists the walkers and shadow MMUs of a vCPU.",
                .operands = {kVmOperand},
                .options = of_vcpu,
                .details = "",
                .example = "pagesawctl mmu list demo"},
       .run = Mmus},
      {.spec = {.name = "pagesawctl nested show",
                .summary = "Shows guest mode and what a hypervisor says of its guest's memory.",
                .operands = {kVmOperand},
                .options = of_vcpu,
                .details = "Of the VMCS or VMCB of the guest's guest that runs or ran last, the "
                           "fields that matter to memory, as they are in memory now.",
                .example = "pagesawctl nested show demo"},
       .run = Nested},
      {.spec = {.name = "pagesawctl root list",
                .summary = "Lists the roots that a vCPU's shadow MMUs hold.",
                .operands = {kVmOperand},
                .options = {kVcpuOption, kMmuOption, kOutputOption, kSocketOption},
                .details = "",
                .example = "pagesawctl root list demo"},
       .run = Roots},
      {.spec = {.name = "pagesawctl page list",
                .summary = "Lists the shadow pages of a VM.",
                .operands = {kVmOperand},
                .options = {kMmuOption, kOutputOption, kSocketOption},
                .details = "",
                .example = "pagesawctl page list demo --output=json"},
       .run = Pages},
      {.spec = {.name = "pagesawctl stats",
                .summary = "Prints the counters of a VM.",
                .operands = {kVmOperand},
                .options = of_vm,
                .details = "",
                .example = "pagesawctl stats demo"},
       .run = Stats}};
}

}  // namespace pagesaw
