module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.machine.inspector;

import pagesaw.core.guest_memory;
import pagesaw.core.nested_paging;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.second_stage_rights;

namespace pagesaw {
namespace {

using Kind = WalkFault::Kind;
using Taker = Verdict::Taker;

constexpr std::string_view kCpuWalk = "cpu_walk", kTdpWalk = "tdp_walk";

// What nested tables look like, in the words for the paging of linear addresses.
PagingMode ModeOf(const NestedPaging& nested) {
  if (nested.root_has_pdptes) return PagingMode::kPae;
  if (nested.format.layout.entry_bytes == 4) return PagingMode::k32Bit;
  return nested.level == Level::kPml5 ? PagingMode::k5Level : PagingMode::k4Level;
}

WalkerInfo TdpWalkInfo(const NestedPaging& nested) {
  return {.name = std::string(kTdpWalk),
          .format_name = std::string(nested.format_name),
          .format = nested.format,
          .mode = ModeOf(nested),
          .root_level = Number(nested.level),
          .root_register = nested.root_register};
}

// `access`, made to a page that a guest's tables grant `guest`, as an attribute judges it: by whose
// page it is, or, where that is how SPTEs tell fetches apart, by who fetches.
Access JudgedByHost(const PageFormat& sptes, Rights guest, bool paging, Access access) {
  if (sptes.second_stage) return SecondStageAccess(sptes, guest, paging, access);
  if (!access.is_fetch()) return access;
  return Access::Fetch(!paging || guest.user() ? Privilege::kUser : Privilege::kSupervisor);
}

}  // namespace

std::vector<WalkerInfo> Inspector::Walkers() const {
  const CpuWalker cpu_walk(parts_.memory->slots(), snapshot_.paging);
  const PagingMode mode = snapshot_.paging.mode();
  std::vector<WalkerInfo> walkers = {{.name = std::string(cpu_walk.name()),
                                      .format_name = std::string(PagingModeName(mode)),
                                      .format = cpu_walk.format(),
                                      .mode = mode,
                                      .root_level = cpu_walk.root_level(),
                                      .root_register = cpu_walk.root_register()}};
  if (snapshot_.nested) walkers.push_back(TdpWalkInfo(*snapshot_.nested));
  return walkers;
}

std::vector<ShadowMmuInfo> Inspector::ShadowMmus() const {
  std::vector<ShadowMmuInfo> mmus;
  const auto add = [&](const ShadowMmu& mmu, const std::string& format_name) {
    mmus.push_back({.name = std::string(mmu.name()),
                    .format_name = format_name,
                    .format = mmu.format(),
                    .role = mmu.root_role(),
                    .walker = std::string(mmu.walker().name()),
                    .active = &mmu == &active_mmu()});
  };
  add(*parts_.root_mmu, parts_.root_format);
  if (parts_.guest_mmu != nullptr) add(*parts_.guest_mmu, parts_.guest_format);
  return mmus;
}

absl::StatusOr<const ShadowMmu*> Inspector::FindShadowMmu(std::string_view name) const {
  for (const ShadowMmu* mmu : {parts_.root_mmu, parts_.guest_mmu}) {
    if (mmu != nullptr && mmu->name() == name) return mmu;
  }
  return absl::NotFoundError(absl::StrCat("shadow MMU '", std::string(name), "': ", parts_.owner,
                                          " has only root_mmu",
                                          parts_.guest_mmu != nullptr ? " and guest_mmu" : ""));
}

absl::StatusOr<WalkReport> Inspector::Walk(std::string_view walker, InputAddress address,
                                           Access access) const {
  const bool linear = walker == kCpuWalk;
  if (!linear && (walker != kTdpWalk || !snapshot_.nested)) {
    return absl::NotFoundError(absl::StrCat("walker '", std::string(walker), "': ", parts_.owner,
                                            " has now only cpu_walk",
                                            snapshot_.nested ? " and tdp_walk" : ""));
  }
  const NestedPaging* const nested = snapshot_.nested ? &*snapshot_.nested : nullptr;
  InspectedWalk walk;
  {
    const auto hold = parts_.memory->Hold();
    const GuestMemory& memory = parts_.memory->slots();
    walk = linear ? InspectLinear(memory, snapshot_.paging, nested, address, access)
                  : InspectPhysical(memory, *nested, address, access);
  }
  WalkReport report = {.result = walk.result,
                       .trace = walk.trace,
                       .format = linear
                                     ? CpuWalker(parts_.memory->slots(), snapshot_.paging).format()
                                     : nested->format,
                       .guest_mode = snapshot_.guest_mode};
  if (std::optional<Verdict> host = HostVerdict(walk, linear, access)) {
    report.verdict = *std::move(host);
  } else if (!walk.result && linear) {
    report.verdict = FaultVerdict(walk);
  } else if (!walk.result) {
    report.verdict =
        NestedVerdict({.address = address, .access = access, .result = walk.result}, nullptr);
  }
  if (nested != nullptr) report.nested_format = nested->format;
  report.nested = std::move(walk.nested);
  return report;
}

// The first thing that the host has to say to what a walk met, which comes before what refused the
// walk. That the tables themselves lie in no memory the walk has found.
std::optional<Verdict> Inspector::HostVerdict(const InspectedWalk& walk, bool linear,
                                              Access access) const {
  for (const MetAccess& met : walk.met) {
    Access judged = met.access;
    const bool final = met.stage == Stage::kFinal;
    if (final) {
      const Rights rights = walk.result ? walk.result->rights : walk.result.fault().rights;
      const bool paging = snapshot_.paging.paging();
      judged = linear ? JudgedByHost(active_mmu().format(), rights, paging, access) : access;
    }
    Verdict verdict = {.taker = Taker::kHost, .address = met.gpa.bits()};
    const MemoryAttribute attribute = parts_.attributes->Of(GfnOf(met.gpa));
    if (attribute.Refuses(judged) && attribute.policy != ViolationPolicy::kLog) {
      verdict.event = "memory attribute";
      verdict.attribute = attribute;
      return verdict;
    }
    const MemorySlot* const slot = parts_.memory->slots().Find(GfnOf(met.gpa));
    if (final && slot == nullptr) {
      verdict.event = "no memory";
      return verdict;
    }
    if (final && judged.is_write() && slot->read_only) {
      verdict.event = "read-only memory slot";
      return verdict;
    }
  }
  return std::nullopt;
}

Verdict Inspector::FaultVerdict(const InspectedWalk& walk) const {
  const WalkFault& fault = walk.result.fault();
  switch (fault.kind) {
    case Kind::kSecondStage:
      return NestedVerdict(walk.nested.back(), &walk);
    case Kind::kNoMemory: {
      // Nested tables may have translated its address.
      const bool translated = !walk.nested.empty() && walk.nested.back().result;
      return {.taker = Taker::kHost,
              .event = "no memory",
              .address = translated ? walk.nested.back().result->output.bits()
                                    : fault.stage_address.bits()};
    }
    case Kind::kNonCanonical:
      return {.taker = Taker::kGuest, .event = "#GP or #SS", .address = fault.address.bits()};
    case Kind::kNotPresent:
    case Kind::kMalformed:
    case Kind::kRights:
    case Kind::kProtectionKey:
      break;
  }
  return PageFaultVerdict(fault);
}

// `linear`: the walk of a linear address that led to it.
Verdict Inspector::NestedVerdict(const NestedWalk& walk, const InspectedWalk* linear) const {
  const NestedFault met = NestedFaultOf(walk, linear, snapshot_.paging);
  const TableFault fault = {.address = walk.address,
                            .access = met.access,
                            .stage = met.stage,
                            .present = met.present,
                            .malformed = met.malformed,
                            .rights = met.rights,
                            .linear = met.linear,
                            .linear_valid = met.linear_valid,
                            .guest_rights = met.guest_rights};
  const ExitDescription told = parts_.extension->Describe(fault, snapshot_.nested->format);
  return {.taker = Taker::kHypervisor,
          .event = told.name,
          .code_name = told.qualification_name,
          .code = told.qualification,
          .address = walk.address.bits()};
}

Verdict Inspector::PageFaultVerdict(const WalkFault& fault) const {
  Verdict verdict = {.taker = Taker::kGuest,
                     .event = "#PF",
                     .code_name = "error code",
                     .code = fault.code.bits(),
                     .address = fault.address.bits()};
  std::array<std::byte, kStructureBytes> bytes;
  if (!snapshot_.guest_mode || !snapshot_.structure ||
      !parts_.memory->Read(*snapshot_.structure, bytes).ok()) {
    return verdict;
  }
  if (parts_.extension->InterceptsPageFault(bytes, fault.code)) verdict.taker = Taker::kHypervisor;
  return verdict;
}

NestedState Inspector::Nested() const {
  NestedState state = {.guest_mode = snapshot_.guest_mode,
                       .structure_name = std::string(parts_.extension->structure_name()),
                       .structure = snapshot_.structure};
  if (snapshot_.nested) {
    state.tdp_walk = TdpWalkInfo(*snapshot_.nested);
    state.tag = snapshot_.nested->tag;
  }
  std::array<std::byte, kStructureBytes> bytes;
  if (snapshot_.structure && parts_.memory->Read(*snapshot_.structure, bytes).ok()) {
    state.fields = parts_.extension->FieldsOf(bytes);
  }
  return state;
}

}  // namespace pagesaw
