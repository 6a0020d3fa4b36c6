module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>
module pagesaw.tests.mmu.random_vm;

import pagesaw.core.access;
import pagesaw.core.guest_memory;
import pagesaw.core.page_walker;
import pagesaw.core.processor;
import pagesaw.cpu.core;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.plugins.mbec.split_formats;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.ept_format;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMemoryBytes = 8u << 20;
constexpr std::uint64_t kReadOnlyBase = 0x1000'0000;
constexpr std::uint64_t kMovingBase = 0x1020'0000;
constexpr std::uint64_t kMovingBytes = 2u << 20;
constexpr unsigned kTables = 12;      // the first frames hold tables
constexpr unsigned kUpperTables = 8;  // and the first of them those above the lowest level
const svm::SvmExtension& Amd() {
  static const svm::SvmExtension extension;
  return extension;
}

}  // namespace

const char* RandomVm::NameOf(unsigned kind) {
  static constexpr const char* kNames[kKinds] = {"shadow", "ept", "ept-mbec", "npt", "npt-gmet"};
  return kNames[kind];
}

RandomVm::RandomVm(unsigned kind, unsigned vcpu_count, Choices& choices)
    : kind_(kind),
      choices_(&choices),
      model_(MakeModel()),
      memory_(kMemoryBytes),
      tables_(memory_, model_.paging()),
      pages_(SpteCodec(SpteFormat()), *this, choices.Chance(3) ? 32 : 400,
             shadows() ? &tables_ : nullptr) {
  memory_.AddSlot(Gpa(kReadOnlyBase), 1u << 20, true);
  cpus_.resize(vcpu_count);
  for (Cpu& cpu : cpus_) {
    cpu.cpu = std::make_unique<VirtualCpu>(VirtualCpu::Machine{
        .model = model_,
        .memory = memory_,
        .pages = pages_,
        .tables = shadows() ? &tables_ : nullptr,
        .two_stages = !shadows(),
    });
  }
  current_ = &cpus_.front();
  // All at once, so that a fuzzer's bytes are left for what happens then.
  Choices first(choices.Word());
  choices_ = &first;
  ordered_ = !first.Chance(4);
  for (unsigned i = 0; i < kTables * 40; ++i) {
    const std::uint64_t table = first.Below(kTables);
    memory_.Write(Gpa((table << 12) + std::uint64_t{RandomIndex(512)} * 8), RandomEntry(table));
  }
  choices_ = &choices;
  for (Cpu& cpu : cpus_) ChangeMode(cpu);
}

RandomVm::~RandomVm() { ending_ = true; }

PageFormat RandomVm::SpteFormat() const {
  constexpr unsigned kHostBits = 47;
  switch (kind_) {
    case 0:
      return LinearSpteFormat();
    case 1:
      return vmx::MakeEptFormat({.physical_bits = kHostBits});
    case 2:
      return mbec::MakeEptMbecFormat(kHostBits);
    case 3:
      return svm::MakeNptFormat(kHostBits);
    default:
      return mbec::MakeNptGmetFormat(kHostBits);
  }
}

cpu::CpuModel RandomVm::MakeModel() {
  cpu::CpuModel model = std::get<cpu::CpuModel>(
      cpu::MakeModel({.extension = choices_->Chance(2) ? &Amd() : nullptr}));
  model.set_physical_bits(static_cast<std::uint8_t>(36 + choices_->Below(17)));
  model.Set(cpu::Feature::kGbPages, !choices_->Chance(4));
  for (const cpu::Feature feature : {cpu::Feature::kLa57, cpu::Feature::kPku, cpu::Feature::kPks,
                                     cpu::Feature::kSmep, cpu::Feature::kSmap, cpu::Feature::kPcid,
                                     cpu::Feature::kNx, cpu::Feature::kPse, cpu::Feature::kPge}) {
    model.Set(feature, true);
  }
  return model;
}

void RandomVm::FlushAll() {
  if (ending_) return;
  for (Cpu& cpu : cpus_) cpu.cpu->Flush();
}

// -- steps

std::optional<std::string> RandomVm::Step() {
  Cpu& cpu = cpus_[choices_->Below(cpus_.size())];
  current_ = &cpu;
  std::optional<std::string> complaint;
  const std::uint64_t what = choices_->Below(64);
  if (what == 0) {
    ChangeMode(cpu);
  } else if (what < 4) {
    FlipControlBits(cpu);
  } else if (what < 7) {
    complaint = LoadCr3(cpu);
  } else if (what < 9) {
    cpu.cpu->SetKeys(choices_->Chance(2) ? 0 : static_cast<std::uint32_t>(choices_->Word()),
                     choices_->Chance(2) ? 0 : static_cast<std::uint32_t>(choices_->Word()));
  } else if (what < 14) {
    complaint = Invalidate(cpu);
  } else if (what < 17) {
    HostWrites();
  } else if (what == 17) {
    if (choices_->Chance(4)) ChangeSlot();
  } else if (what < 28) {
    complaint = GuestWrites(cpu);
  } else {
    complaint = CheckedAccess(cpu, RandomLinear(cpu));
  }
  if (complaint || !choices_->Chance(16)) return complaint;
  const ShadowPages::Lock lock = pages_.Acquire();
  return pages_.Audit();
}

void RandomVm::ChangeMode(Cpu& cpu) {
  LoadRegisters(cpu, choices_->Below(9));
  FlipControlBits(cpu);
  cpu.all_since = history_.now();
  // What nobody can use any more need not be remembered.
  std::uint64_t oldest = history_.now();
  for (const Cpu& other : cpus_) oldest = std::min(oldest, other.all_since);
  history_.ForgetBefore(oldest);
}

void RandomVm::LoadRegisters(Cpu& cpu, std::uint64_t mode) {
  PagingState state = StateOf(cpu);
  state.cr0 = kCr0Pe | (mode == 0 ? 0 : kCr0Pg);
  state.cr4 = (mode >= 3 ? kCr4Pae : 0) | (mode >= 7 ? kCr4La57 : 0);
  state.efer = mode >= 5 ? kEferLme | kEferLma : 0;
  if (choices_->Chance(2)) state.efer |= kEferNxe;
  state.cr3 = RandomRoot(state.mode());
  for (unsigned i = 0; i < state.pdptes.size(); ++i) {
    // Well-formed: the processor refuses others.
    state.pdptes[i] = WordAt((state.cr3 & 0xffff'ffe0) + 8 * i) & 0x0000'000f'ffff'f001;
  }
  cpu.cpu->SetPaging(state);
}

// [intel/vol3] "Operations that Invalidate TLBs and Paging-Structure Caches"
std::optional<std::string> RandomVm::LoadCr3(Cpu& cpu) {
  const PagingState before = StateOf(cpu);
  std::uint64_t value = RandomRoot(before.mode());
  const bool pcids = (before.cr4 & kCr4Pcide) != 0;
  if (pcids) value |= choices_->Below(3);
  const bool keep = pcids && choices_->Chance(2);
  if (!cpu.cpu->MovToControl(3, value | (keep ? std::uint64_t{1} << 63 : 0))) return std::nullopt;
  // Global translations stay.
  if (!keep && (before.cr4 & kCr4Pge) == 0) cpu.space_since[PcidOf(cpu)] = history_.now();
  const PagingState after = StateOf(cpu);
  for (unsigned i = 0; i < 4 && after.mode() == PagingMode::kPae; ++i) {
    if (after.pdptes[i] != MemoryAt((after.cr3 & 0xffff'ffe0) + 8 * i)) {
      return "a PDPTE register is not what memory says";
    }
  }
  return std::nullopt;
}

void RandomVm::FlipControlBits(Cpu& cpu) {
  const PagingState before = StateOf(cpu);
  if ((before.cr0 & kCr0Pg) != 0) {
    (void)cpu.cpu->MovToControl(0, before.cr0 ^ (choices_->Chance(2) ? kCr0Wp : 0));
  }
  std::uint64_t cr4 = before.cr4;
  for (std::uint64_t bit : {kCr4Smep, kCr4Smap, kCr4Pke, kCr4Pks, kCr4Pse, kCr4Pge, kCr4Pcide}) {
    const bool rare = bit == kCr4Pse || bit == kCr4Pge || bit == kCr4Pcide;
    if (choices_->Chance(rare ? 8 : 2)) cr4 ^= bit;
  }
  if (!cpu.cpu->MovToControl(4, cr4)) return;
  const std::uint64_t changed = before.cr4 ^ cr4;
  if ((changed & (kCr4Pse | kCr4Pge)) != 0 || (changed & ~cr4 & kCr4Pcide) != 0) {
    cpu.all_since = history_.now();
  }
}

// One address, as often as not, is what is used next.
std::optional<std::string> RandomVm::Invalidate(Cpu& cpu) {
  const std::uint64_t linear = RandomLinear(cpu);
  if (choices_->Chance(2)) {
    if (cpu.cpu->Invlpg(linear)) cpu.page_since[{PcidOf(cpu), linear >> 12}] = history_.now();
    return choices_->Chance(2) ? CheckedAccess(cpu, linear) : std::nullopt;
  }
  const PagingState state = StateOf(cpu);
  const auto pcid = static_cast<unsigned>((state.cr4 & kCr4Pcide) != 0 ? choices_->Below(3) : 0);
  static constexpr Invalidation::Scope kScopes[] = {Invalidation::Scope::kAddress,
                                                    Invalidation::Scope::kAddressSpace,
                                                    Invalidation::Scope::kEverything};
  const Invalidation::Scope scope = kScopes[choices_->Below(3)];
  cpu.cpu->Invpcid(
      {.scope = scope, .pcid = static_cast<std::uint16_t>(pcid), .linear = Gva(linear)});
  if (scope == Invalidation::Scope::kEverything) {
    cpu.all_since = history_.now();
  } else if ((state.cr4 & kCr4Pge) != 0) {
    // Global translations stay.
  } else if (scope == Invalidation::Scope::kAddressSpace) {
    cpu.space_since[pcid] = history_.now();
  } else {
    cpu.page_since[{pcid, linear >> 12}] = history_.now();
  }
  return choices_->Chance(2) ? CheckedAccess(cpu, linear) : std::nullopt;
}

// Shadow paging hears of the host's writes; translations that the processor's own walk has cached
// stay as they would beside a device that writes memory.
void RandomVm::HostWrites() {
  unsigned bytes = 8;
  const Gpa at = RandomEntryAddress(*current_, bytes);
  const std::uint64_t word = at.bits() & ~std::uint64_t{7};
  if (shadows()) {
    history_.Forget(word, word);
  } else {
    history_.Changes(word, WordAt(word));
  }
  const std::uint64_t entry = RandomEntry(at.bits() >> 12);
  if (bytes == 4) {
    memory_.Write(at, static_cast<std::uint32_t>(entry));
  } else {
    memory_.Write(at, entry);
  }
  current_->cpu->mmu().GuestWrote(at, bytes);
}

// The slot at kMovingBase goes, and perhaps comes back over other memory, or read-only.
void RandomVm::ChangeSlot() {
  if (slot_state_ != 0) memory_.RemoveSlot(GfnOf(Gpa(kMovingBase)));
  pages_.SlotsChanged(GfnOf(Gpa(kMovingBase)), kMovingBytes / kPageBytes);
  slot_state_ = static_cast<unsigned>(choices_->Below(3));
  if (slot_state_ != 0) {
    memory_.AddSlot(Gpa(kMovingBase), kMovingBytes, slot_state_ == 2);
    pages_.SlotsChanged(GfnOf(Gpa(kMovingBase)), kMovingBytes / kPageBytes);
  }
  history_.Forget(kMovingBase, kMovingBase + kMovingBytes - 1);
}

std::optional<std::string> RandomVm::CheckedAccess(Cpu& cpu, std::uint64_t linear) {
  const Asked asked = RandomAsked();
  const AllowedOutcomes before = Allowed(cpu, linear, asked);
  bool from_tlb = false;
  const Outcome got = MakeAccess(cpu, linear, asked, from_tlb);
  ++accesses_;
  // Setting A or D may change the very entries that were used, where a table names itself.
  const AllowedOutcomes after = Allowed(cpu, linear, asked);
  if (!before.complete || !after.complete) {
    ++unchecked_;
    return std::nullopt;
  }
  const auto lists = [got](const AllowedOutcomes& allowed) {
    return std::find(allowed.outcomes.begin(), allowed.outcomes.end(), got) !=
           allowed.outcomes.end();
  };
  if (!lists(before) && !lists(after)) {
    return Words(cpu, linear, asked, from_tlb ? "(by the TLB)" : "(by a walk)", got, before);
  }
  if (before.certain && after.certain && got.kind == Outcome::Kind::kHost &&
      !HasAccessedDirty(cpu, linear, asked)) {
    return Words(cpu, linear, asked, "without A or D", got, before);
  }
  return std::nullopt;
}

// The guest stores an entry wherever some linear address leads it.
std::optional<std::string> RandomVm::GuestWrites(Cpu& cpu) {
  const std::uint64_t page = RandomLinear(cpu) & ~std::uint64_t{0xfff};
  const std::uint64_t linear = page | std::uint64_t{RandomIndex(512)} * 8;
  const Asked asked = {.kind = Asked::Kind::kWrite, .by = Asked::By::kSupervisorWithAc};
  bool from_tlb = false;
  const Outcome got = MakeAccess(cpu, linear, asked, from_tlb);
  if (got.kind != Outcome::Kind::kHost) return std::nullopt;
  const std::optional<std::uint64_t> gpa = GpaOfHost(got.value);
  if (!gpa) return "a write to memory that is not the guest's";
  if (shadows() && cpu.cpu->lent()) {
    history_.Forget(*gpa, *gpa);
  } else {
    history_.Changes(*gpa, WordAt(*gpa));
  }
  const std::uint64_t entry = RandomEntry(*gpa >> 12);
  cpu.cpu->Store(linear, entry);
  if (WordAt(*gpa) != entry) return "a write did not arrive where its probe did";
  return std::nullopt;
}

Outcome RandomVm::MakeAccess(Cpu& cpu, std::uint64_t linear, Asked asked, bool& from_tlb) {
  if (StateOf(cpu).mode() != PagingMode::k32Bit)
    return cpu.cpu->MakeAccess(linear, asked, from_tlb);
  // A and D of a 4-byte entry may be address bits of the 8-byte entry that another mode sees.
  WalkTrace trace;
  (void)cpu.cpu->walker().Inspect(InputAddress(linear), Access::Read(Privilege::kSupervisor),
                                  &trace);
  std::map<std::uint64_t, std::uint64_t> words;
  for (const WalkStep& step : trace.steps()) {
    const std::uint64_t word = step.entry_address.bits() & ~std::uint64_t{7};
    words[word] = WordAt(word);
  }
  const Outcome outcome = cpu.cpu->MakeAccess(linear, asked, from_tlb);
  for (const auto& [word, old] : words) {
    if (WordAt(word) != old) history_.Changes(word, old);
  }
  return outcome;
}

// -- chance

// What an entry of the table in frame `table` leads to. Most often tables have an order: two for
// each of the levels 5 to 2, then those of the lowest level, whose entries lead to data, and to
// tables.
std::uint64_t RandomVm::RandomFrame(std::uint64_t table) {
  if (choices_->Chance(40)) return (kReadOnlyBase >> 12) + choices_->Below(4);
  if (choices_->Chance(30)) return (kMovingBase >> 12) + choices_->Below(4);
  if (choices_->Chance(40)) return 0x5'0000 + choices_->Below(4);
  if (!ordered_ || choices_->Chance(50)) {
    return choices_->Chance(2) ? choices_->Below(kTables) : choices_->Below(64);
  }
  if (table < kUpperTables - 2) return (table & ~std::uint64_t{1}) + 2 + choices_->Below(2);
  return kUpperTables + choices_->Below(table < kUpperTables || choices_->Chance(2) ? 4 : 32);
}

std::uint64_t RandomVm::RandomEntry(std::uint64_t table) {
  // How often an entry is not what makes most accesses succeed.
  const unsigned rare = ordered_ ? 3 : 1;
  std::uint64_t entry = RandomFrame(table) << 12;
  if (!choices_->Chance(12 * rare)) entry |= 1;
  if (!choices_->Chance(4 * rare)) entry |= 2;
  if (!choices_->Chance(4 * rare)) entry |= 4;
  if (!choices_->Chance(3)) entry |= 0x20;
  if (!choices_->Chance(3)) entry |= 0x40;
  if (choices_->Chance(6 * rare)) {
    entry = (entry & ~std::uint64_t{0x1f'f000}) | 0x80;
    if (choices_->Chance(4)) entry |= kReadOnlyBase;  // and the frames behind, which move
  }
  if (choices_->Chance(20 * rare)) entry |= 0x100;
  if (choices_->Chance(10 * rare)) entry |= std::uint64_t{1} << 63;
  if (choices_->Chance(10)) entry |= choices_->Below(16) << 59;
  if (choices_->Chance(60)) entry |= std::uint64_t{1} << (13 + choices_->Below(39));
  return entry;
}

unsigned RandomVm::RandomIndex(unsigned count) {
  return choices_->Chance(4) ? count - 1 : static_cast<unsigned>(choices_->Below(4));
}

std::uint64_t RandomVm::RandomRoot(PagingMode mode) {
  if (choices_->Chance(30)) return 0x5000'0000;
  if (!ordered_ || choices_->Chance(8)) return choices_->Below(5) << 12;
  static constexpr std::uint64_t kFirst[] = {0, 6, 4, 2, 0};
  return (kFirst[static_cast<unsigned>(mode)] + choices_->Below(2)) << 12;
}

// Often one that was used a short while ago: what goes wrong does so between uses of one address.
std::uint64_t RandomVm::RandomLinear(const Cpu& cpu) {
  std::uint64_t& recent = recent_[choices_->Below(recent_.size())];
  const bool again = choices_->Chance(2);
  const PagingState state = StateOf(cpu);
  if (!again && state.mode() == PagingMode::k32Bit) {
    recent = std::uint64_t{RandomIndex(1024)} << 22 | std::uint64_t{RandomIndex(1024)} << 12;
  } else if (!again) {
    recent = 0;
    for (unsigned level = 1; level <= 5; ++level) {
      recent |= std::uint64_t{RandomIndex(512)} << (12 + 9 * (level - 1));
    }
  }
  const std::uint64_t linear = recent | choices_->Below(4096);
  if (!state.long_mode()) return linear & 0xffff'ffff;
  const unsigned shift = 64 - state.linear_bits();
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(linear << shift) >> shift);
}

Asked RandomVm::RandomAsked() {
  return {.kind = static_cast<Asked::Kind>(choices_->Below(3)),
          .by = static_cast<Asked::By>(choices_->Below(4))};
}

Gpa RandomVm::RandomEntryAddress(const Cpu& cpu, unsigned& bytes) {
  bytes = StateOf(cpu).mode() == PagingMode::k32Bit || choices_->Chance(8) ? 4 : 8;
  const unsigned index = RandomIndex(4096 / bytes);
  return Gpa((choices_->Below(kTables) << 12) + std::uint64_t{index} * bytes);
}

}  // namespace pagesaw
