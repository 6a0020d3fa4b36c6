module;
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
module pagesaw.cpu.core;

import pagesaw.cpu.control_bits;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.permission_table;

namespace pagesaw::cpu {
namespace {

bool IsMemory(const BusAccess& access) {
  return access.kind == BusAccess::Kind::kMmioRead || access.kind == BusAccess::Kind::kMmioWrite;
}

// What answers the same question: an access made again must ask for the same thing.
bool SameQuestion(const BusAccess& one, const BusAccess& other) {
  // The error is new only as long as it was not told.
  constexpr auto kX87Error = BusAccess::Kind::kX87Error;
  if (one.kind == kX87Error && other.kind == kX87Error) return true;
  if (one.kind != other.kind || one.bytes != other.bytes || one.address != other.address) {
    return false;
  }
  // A walk asks whether it may update an entry; the answer is a value.
  if (one.kind == BusAccess::Kind::kMmioWrite && one.bytes == 0) return true;
  switch (one.kind) {
    case BusAccess::Kind::kMmioWrite:
    case BusAccess::Kind::kPortOut:
    case BusAccess::Kind::kMsrWrite:
    case BusAccess::Kind::kTprWrite:
      return one.value == other.value;
    default:
      return true;
  }
}

// How a processor in `paging` judges SPTEs of `format` that stand for linear addresses: layout and
// reserved bits are those of the tables, SMEP, SMAP and protection keys its own. R/W and XD of an
// SPTE say what they say whatever the guest's CR0.WP and EFER.NXE: whoever built the SPTE minded
// them. The leaf SPTE of a page has the page's protection key.
PageFormat JudgedFormat(const PageFormat& tables, const PagingState& paging) {
  PageFormat format = tables;
  const bool on = paging.paging();
  const bool keys = paging.mode() == PagingMode::k4Level || paging.mode() == PagingMode::k5Level;
  format.refused = MakePermissionTable({
      .split_execute = on && (paging.cr4 & kCr4Smep) != 0,
      .smap = on && (paging.cr4 & kCr4Smap) != 0,
  });
  format.protection_key_mask =
      MakeProtectionKeyMask({.user_keys = keys && (paging.cr4 & kCr4Pke) != 0,
                             .supervisor_keys = keys && (paging.cr4 & kCr4Pks) != 0,
                             .write_protect = paging.write_protect()});
  format.shadow_stacks = on && (paging.cr4 & kCr4Cet) != 0;
  return format;
}

constexpr std::uint64_t kGenerationStep = 0x100;  // the mode stands in bits 7:0 of the context

}  // namespace

bool Replay::Add(const BusAccess& access) {
  if (count_ == answers_.size()) return false;
  answers_[count_++] = access;
  return true;
}

const BusAccess* Replay::Take(const BusAccess& asked) {
  if (next_ < count_ && SameQuestion(answers_[next_], asked)) return &answers_[next_++];
  // The walk of its fetch or operands asks about an entry of the guest's tables, which may not be
  // mapped now: the instruction's own answers stay. What the walk was told came behind them.
  if (next_ < count_ && IsMemory(asked) && !IsMemory(answers_[next_])) {
    const auto rest = answers_.begin() + next_, end = answers_.begin() + count_;
    const auto told = std::find_if(
        rest, end, [&](const BusAccess& answer) { return SameQuestion(answer, asked); });
    if (told == end) return nullptr;
    std::rotate(rest, told, told + 1);
    return &answers_[next_++];
  }
  // What the instruction does now differs from what it did when it asked: old answers are void.
  count_ = next_;
  return nullptr;
}

void Replay::Lend(std::uint64_t linear, std::uint64_t host) {
  constexpr std::uint64_t kPageMask = 0xfff;
  const LentPage page = {.linear = linear & ~kPageMask, .host = host & ~kPageMask};
  for (unsigned i = 0; i < lent_count_; ++i) {
    if (lent_[i].linear == page.linear) {
      lent_[i] = page;
      return;
    }
  }
  if (lent_count_ == lent_.size()) {
    std::move(lent_.begin() + 1, lent_.end(), lent_.begin());
    --lent_count_;
  }
  lent_[lent_count_++] = page;
}

std::byte* Replay::Lent(std::uint64_t linear) const {
  constexpr std::uint64_t kPageMask = 0xfff;
  for (unsigned i = 0; i < lent_count_; ++i) {
    if (lent_[i].linear == (linear & ~kPageMask)) {
      return reinterpret_cast<std::byte*>(lent_[i].host | (linear & kPageMask));
    }
  }
  return nullptr;
}

void Core::UpdateMode() {
  if (real_mode()) {
    cpl = 0;
  } else {
    cpl = virtual_8086() ? 3 : static_cast<std::uint8_t>(segments[kSs].dpl());
  }
  const Segment& cs = segments[kCs];
  if (long_mode() && cs.long_mode()) {
    code_size = CodeSize::k64;
  } else {
    code_size = cs.big() ? CodeSize::k32 : CodeSize::k16;
  }
  stack_64 = code_64();
  stack_32 = !stack_64 && segments[kSs].big();
  shadow_stack = !virtual_8086() && ShadowStackEnabled(cpl);
  branch_tracking = !virtual_8086() && BranchTrackingEnabled(cpl);

  const bool ac = (rflags & kFlagAc) != 0;
  BankName name = BankName::kSupervisor;
  if (cpl == 3) {
    name = ac && (cr0 & kCr0Am) != 0 ? BankName::kChecked : BankName::kUser;
  } else if (ac && (cr4 & kCr4Smap) != 0) {
    name = BankName::kSupervisorSmapWaived;
  }
  bank = &tlb.bank(name);

  std::uint64_t generation = context / kGenerationStep;
  if (generation == 0) generation = 1;  // a context of 0 matches an empty entry
  context = generation * kGenerationStep | static_cast<std::uint64_t>(code_size) |
            (protected_mode() ? 4u : 0) | (virtual_8086() ? 8u : 0) | (cpl == 3 ? 16u : 0) |
            (enforces_control_flow() ? 32u : 0);
}

void Core::UpdatePaging() {
  paging = Paging();
  guest_format = MakeLegacyFormat(paging);
  if (!tables.second_stage && tables.format != nullptr) {
    spte_format = JudgedFormat(*tables.format, paging);
    legacy_sptes = spte_format.layout == kLegacy64Layout;
  }
  masks_pointers =
      long_mode() && ((cr3 & (kCr3LamU48 | kCr3LamU57)) != 0 || (cr4 & kCr4LamSup) != 0);
  paging_changed = true;
  FlushTranslations();
}

void Core::UpdateBreakpoints() {
  breakpoints = Breakpoints(dr, dr7, (cr4 & kCr4De) != 0);
  // What is watched now may be in the TLB and in the jump cache as if it were not.
  if (breakpoints.any()) FlushTranslations();
}

bool Core::NoteBreakpoints(BreakpointSet met) {
  if (met == 0) return true;
  if (!alone) {
    stop = Stop::kAlone;
    return false;
  }
  debug_causes |= met;
  return true;
}

void Core::SetProtectionKeys(std::uint32_t& keys, std::uint32_t value) {
  const std::uint32_t changed = keys ^ value;
  keys = value;
  paging.pkru = pkru;
  paging.pkrs = pkrs;
  paging_changed = true;
  unsigned changed_keys = 0;
  for (unsigned key = 0; key < 16; ++key) {
    if ((changed >> (2 * key) & 3) != 0) changed_keys |= 1u << key;
  }
  tlb.FlushKeys(changed_keys);
}

void Core::ForgetJumps() {
  context += kGenerationStep;
  tlb.ForgetCode();
}

void Core::FlushTranslations() {
  tlb.Flush();
  paging_structures.Flush();
  ForgetJumps();
}

void Core::FlushPage(std::uint64_t linear) {
  paging_structures.Flush();
  if (tlb.FlushPage(linear)) ForgetJumps();
}

PagingState Core::Paging() const {
  PagingState state;
  state.cr0 = cr0;
  state.cr3 = cr3;
  state.cr4 = cr4;
  state.efer = efer;
  state.pkru = pkru;
  state.pkrs = pkrs;
  state.pdptes = pdptes;
  if (model != nullptr) state.features = model->paging();
  return state;
}

bool Core::Raise(Vector vector) {
  exception = Pending{.vector = vector};
  stop = Stop::kException;
  return false;
}

bool Core::Raise(Vector vector, std::uint32_t error_code) {
  exception = Pending{.vector = vector, .has_error_code = true, .error_code = error_code};
  stop = Stop::kException;
  return false;
}

bool Core::RaisePageFault(std::uint64_t linear, PageFaultCode error_code) {
  exception = Pending{
      .vector = kPfVector, .has_error_code = true, .error_code = error_code.bits(), .cr2 = linear};
  stop = Stop::kException;
  return false;
}

bool Core::RaiseSegmentFault(SegmentName segment) {
  return Raise(segment == kSs ? kSsVector : kGp, 0);
}

bool Core::LeaveWith(ExitReason reason) {
  exit.reason = reason;
  stop = Stop::kExit;
  return false;
}

bool Core::AskBus(BusAccess& access) {
  if (const BusAccess* answer = replay.Take(access); answer != nullptr) {
    if (answer->refused) return Raise(kGp, 0);
    access.value = answer->value;
    return true;
  }
  exit = Exit{};
  exit.bus = access;
  return LeaveWith(ExitReason::kBus);
}

}  // namespace pagesaw::cpu
