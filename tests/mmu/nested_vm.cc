module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>
module pagesaw.tests.mmu.nested_vm;

import pagesaw.core.access;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.mmu.attribute_limit;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.plugins.svm.plugin;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMemoryBytes = 8u << 20;
constexpr std::uint64_t kReadOnlyBase = 0x1000'0000;
constexpr std::uint64_t kMovingBase = 0x1020'0000;
constexpr std::uint64_t kMovingBytes = 2u << 20;
constexpr std::uint64_t kNoMemory = 0x5000'0000;

// Frames of L1: nested tables, two for each of the levels 5 to 2 and four of the lowest; the same
// for L2's tables, as L1 sees them; data, and among it L1's own tables.
constexpr unsigned kNestedTables = 12;
constexpr unsigned kGuestTables = 12;
constexpr unsigned kTables = kNestedTables + kGuestTables;
constexpr unsigned kLowest = 8;  // of 12 tables, the first of the lowest level
constexpr unsigned kFrames = 64;
constexpr unsigned kL1Tables = 44;
// Where all goes well L2's frame i is L1's frame kNestedTables + i.
constexpr unsigned kGuestFrames = 32;

constexpr std::uint64_t kLargeAddressBits = 0x1f'f000;
constexpr std::uint64_t kExecuteDisable = std::uint64_t{1} << 63;

const svm::SvmExtension& Amd() {
  static const svm::SvmExtension extension;
  return extension;
}

constexpr NestingKind KindOf(unsigned kind) {
  return {.amd = kind >= 2, .splits_execute = kind % 2 != 0};
}

// What L1's own tables say where nobody has spoilt them: every address is itself.
std::uint64_t OwnEntry(std::uint64_t table, unsigned index) {
  constexpr std::uint64_t kBits = 0x67;
  if (table == kL1Tables + 3) return std::uint64_t{index} << 12 | kBits;
  if (index == 0) return (table + 1) << 12 | kBits;
  if (table == kL1Tables + 2 && index < 4) return std::uint64_t{index} << 21 | kBits | 0x80;
  return 0;
}

bool IsOwnTable(std::uint64_t frame) { return frame >= kL1Tables && frame < kL1Tables + 4; }

}  // namespace

const char* NestedVm::NameOf(unsigned kind) {
  static constexpr const char* kNames[kKinds] = {"nested-ept", "nested-ept-mbec", "nested-npt",
                                                 "nested-npt-gmet"};
  return kNames[kind];
}

NestedVm::NestedVm(unsigned kind, unsigned vcpu_count, Choices& choices)
    : kind_(KindOf(kind)),
      choices_(&choices),
      two_stages_(choices.Chance(2)),
      model_(MakeModel()),
      memory_(kMemoryBytes),
      tables_(memory_, model_.paging(), &attributes_),
      nested_codec_(kind_.SpteFormat()),
      pages_(SpteCodec(two_stages_ ? kind_.SpteFormat() : LinearSpteFormat()), *this,
             choices.Chance(3) ? 40 + 16 * vcpu_count : 600, &tables_, &attributes_,
             &nested_codec_),
      log_(pages_, *memory_.Find(Gfn{0})),
      copy_(kFrames * 512) {
  memory_.AddSlot(Gpa(kReadOnlyBase), 1u << 20, true);
  cpus_.resize(vcpu_count);
  for (Cpu& cpu : cpus_) {
    cpu.cpu = std::make_unique<VirtualCpu>(VirtualCpu::Machine{.model = model_,
                                                               .memory = memory_,
                                                               .pages = pages_,
                                                               .tables = &tables_,
                                                               .two_stages = two_stages_,
                                                               .attributes = &attributes_,
                                                               .log_dirty = [&cpu](Gpa) {
                                                                 if (cpu.log_full) return false;
                                                                 ++cpu.logged;
                                                                 return true;
                                                               }});
  }
  current_ = &cpus_.front();
  // All at once, so that a fuzzer's bytes are left for what happens then.
  Choices first(choices.Word());
  choices_ = &first;
  habit_ = first.Word();
  ordered_ = !first.Chance(4);
  for (Cpu& cpu : cpus_) Choose(cpu);
  for (unsigned i = 0; i < 4 * 512; ++i) {
    memory_.Write(Gpa(kL1Tables * kPageBytes + std::uint64_t{i} * 8),
                  OwnEntry(kL1Tables + i / 512, i % 512));
  }
  for (unsigned i = 0; i < kTables * 60; ++i) {
    const Gpa at(SomeEntry(cpus_[first.Below(vcpu_count)]));
    memory_.Write(at, AnyEntry(*current_, at.bits()));
  }
  std::memcpy(copy_.data(), memory_.Find(Gfn{0})->host, kFrames * kPageBytes);
  for (Cpu& cpu : cpus_) ChangeL1(cpu);
  choices_ = &choices;
}

NestedVm::~NestedVm() { ending_ = true; }

cpu::CpuModel NestedVm::MakeModel() {
  cpu::CpuModel model =
      std::get<cpu::CpuModel>(cpu::MakeModel({.extension = kind_.amd ? &Amd() : nullptr}));
  model.set_physical_bits(static_cast<std::uint8_t>(36 + choices_->Below(17)));
  for (const cpu::Feature feature :
       {cpu::Feature::kGbPages, cpu::Feature::kLa57, cpu::Feature::kPku, cpu::Feature::kPks,
        cpu::Feature::kSmep, cpu::Feature::kSmap, cpu::Feature::kNx, cpu::Feature::kPse}) {
    model.Set(feature, true);
  }
  return model;
}

void NestedVm::FlushAll() {
  if (ending_) return;
  for (Cpu& cpu : cpus_) {
    if (cpu.cpu != nullptr) cpu.cpu->Flush();
  }
}

// -- steps

std::optional<std::string> NestedVm::Step() {
  Cpu& cpu = cpus_[choices_->Below(cpus_.size())];
  current_ = &cpu;
  cpu.logged = 0;
  cpu.log_full = choices_->Chance(8);
  Complaint complaint;
  const std::uint64_t what = choices_->Below(64);
  if (what < 2) {
    ChangeL2(cpu);
  } else if (what < 4) {
    ChangeNesting(cpu);
  } else if (what < 8) {
    EnterOrLeave(cpu);
  } else if (what < 14) {
    InvalidateNested(cpu);
  } else if (what < 16) {
    Invlpg(cpu);
  } else if (what < 19) {
    HostWrites();
  } else if (what == 19) {
    if (choices_->Chance(4)) ChangeSlot();
  } else if (what == 20) {
    SetAttribute();
  } else if (what == 21) {
    complaint = DriveLog();
  } else if (what == 22) {
    if (choices_->Chance(2)) (void)pages_.TestAndClearYoung(Gfn{0}, kFrames);
  } else if (what < 30) {
    LeaveL2(cpu);
    complaint = Writes(cpu, SomeEntry(cpu));
    if (!complaint && choices_->Chance(2)) InvalidateNested(cpu);
  } else if (what < 36) {
    EnterL2(cpu);
    complaint = Writes(cpu, (RandomLinear(cpu) & ~std::uint64_t{0xfff}) | RandomIndex(512) * 8);
  } else {
    if (!choices_->Chance(16)) EnterL2(cpu);
    const std::uint64_t linear = in_l2(cpu)
                                     ? RandomLinear(cpu)
                                     : choices_->Below(kFrames) << 12 | choices_->Below(kPageBytes);
    complaint = CheckedAccess(cpu, linear, RandomAsked());
  }
  if (!complaint && log_.logging()) complaint = log_.Check(kFrames);
  if (complaint || !choices_->Chance(16)) return complaint;
  const ShadowPages::Lock lock = pages_.Acquire();
  return pages_.Audit();
}

void NestedVm::Choose(Cpu& cpu) {
  cpu.l1.features = cpu.l2.features = model_.paging();
  cpu.nesting = AnyNesting(kind_, model_.paging(), habit_, 2, *choices_);
  ChangeL2(cpu);
}

void NestedVm::EnterL2(Cpu& cpu) {
  if (in_l2(cpu)) return;
  cpu.cpu->EnterNested(cpu.l2, cpu.nesting.paging);
  cpu.cpu->SetKeys(cpu.l2.pkru, cpu.l2.pkrs);
  cpu.linear_since = Now();
  cpu.page_since.clear();
}

void NestedVm::LeaveL2(Cpu& cpu) {
  if (!in_l2(cpu)) return;
  cpu.cpu->LeaveNested(cpu.l1);
  cpu.linear_since = Now();
  cpu.page_since.clear();
}

void NestedVm::EnterOrLeave(Cpu& cpu) {
  if (in_l2(cpu)) {
    LeaveL2(cpu);
    if (choices_->Chance(4)) ChangeL1(cpu);
  } else {
    EnterL2(cpu);
  }
}

// L1's tables, if it has any, are all the same.
void NestedVm::ChangeL1(Cpu& cpu) {
  const bool paging = choices_->Chance(2);
  cpu.l1.cr0 = kCr0Pe | (paging ? kCr0Pg | kCr0Wp : 0);
  cpu.l1.cr4 = paging ? kCr4Pae : 0;
  cpu.l1.efer = paging ? kEferLme | kEferLma | kEferNxe : 0;
  cpu.l1.cr3 = std::uint64_t{kL1Tables} << 12;
  if (in_l2(cpu)) return;
  cpu.cpu->SetPaging(cpu.l1);
  cpu.linear_since = Now();
  cpu.page_since.clear();
}

void NestedVm::ChangeL2(Cpu& cpu) {
  PagingState& state = cpu.l2;
  if (choices_->Chance(3) || state.cr0 == 0) {
    const std::uint64_t mode = choices_->Below(9);
    state.cr0 = kCr0Pe | (mode == 0 ? 0 : kCr0Pg);
    state.cr4 = (mode >= 3 ? kCr4Pae : 0) | (mode >= 7 ? kCr4La57 : 0);
    state.efer = (mode >= 5 ? kEferLme | kEferLma : 0) | (choices_->Chance(4) ? 0 : kEferNxe);
  }
  static constexpr std::uint64_t kFirst[] = {0, 6, 4, 2, 0};
  state.cr3 = WideFrame(kFirst[static_cast<unsigned>(state.mode())] + choices_->Below(2)) << 12;
  if (!ordered_ && choices_->Chance(2)) state.cr3 = choices_->Below(kGuestTables) << 12;
  if (state.mode() != PagingMode::k4Level && state.mode() != PagingMode::k5Level) {
    state.cr3 &= 0xffff'f000;
  }
  if (state.mode() == PagingMode::kPae) {
    state.cr3 |= choices_->Below(2) * 32;
    const std::uint64_t at = ((state.cr3 >> 12) % kGuestFrames + kNestedTables) << 12;
    for (unsigned i = 0; i < 4; ++i) {
      // Well-formed: VM entries refuse others.
      state.pdptes[i] = WordAt(at + 8 * i, true) & 0x0000'000f'ffff'f001;
    }
  }
  if (choices_->Chance(2)) state.cr0 ^= kCr0Wp;
  for (const std::uint64_t bit : {kCr4Smep, kCr4Smap, kCr4Pke, kCr4Pks, kCr4Pse}) {
    if (choices_->Chance(4)) state.cr4 ^= bit;
  }
  state.pkru = choices_->Chance(2) ? 0 : static_cast<std::uint32_t>(choices_->Word());
  state.pkrs = choices_->Chance(2) ? 0 : static_cast<std::uint32_t>(choices_->Word());
  if (!in_l2(cpu)) return;
  cpu.cpu->SetPaging(state);
  cpu.cpu->SetKeys(state.pkru, state.pkrs);
  cpu.linear_since = Now();
  cpu.page_since.clear();
}

// In guest mode this is a switch of pointers by the guest.
void NestedVm::ChangeNesting(Cpu& cpu) {
  if (kind_.amd || choices_->Chance(2)) LeaveL2(cpu);
  cpu.nesting = AnyNesting(kind_, model_.paging(), habit_, 2, *choices_);
  if (!in_l2(cpu)) return EnterL2(cpu);
  cpu.cpu->EnterNested(cpu.l2, cpu.nesting.paging);
  cpu.cpu->SetKeys(cpu.l2.pkru, cpu.l2.pkrs);
  cpu.linear_since = Now();
  cpu.page_since.clear();
}

// INVEPT, INVLPGA, or what VMRUN does before. Then L2 mostly goes on.
void NestedVm::InvalidateNested(Cpu& cpu) {
  LeaveL2(cpu);
  const NestedPaging& nested = cpu.nesting.paging;
  if (choices_->Chance(2)) {
    cpu.cpu->InvalidateNested({});
    cpu.nested_since = Now();
    cpu.root_since.clear();
    cpu.tag_since.clear();
  } else if (kind_.amd) {
    const std::uint16_t tag =
        choices_->Chance(4) ? static_cast<std::uint16_t>(1 + choices_->Below(2)) : nested.tag;
    cpu.cpu->InvalidateNested({.scope = NestedInvalidation::Scope::kTag, .tag = tag});
    cpu.tag_since[tag] = Now();
  } else {
    const Gpa root = choices_->Chance(4) ? Gpa(choices_->Below(4) << 12) : nested.root;
    cpu.cpu->InvalidateNested({.scope = NestedInvalidation::Scope::kRoot, .root = root});
    cpu.root_since[root.bits()] = Now();
  }
  // What nobody can use any more need not be remembered.
  Moment oldest = Now();
  for (const Cpu& other : cpus_) {
    for (const Moment& since : {other.linear_since, other.nested_since}) {
      oldest.told = std::min(oldest.told, since.told);
      oldest.untold = std::min(oldest.untold, since.untold);
    }
  }
  told_.ForgetBefore(oldest.told);
  untold_.ForgetBefore(oldest.untold);
  if (!choices_->Chance(4)) EnterL2(cpu);
}

void NestedVm::Invlpg(Cpu& cpu) {
  EnterL2(cpu);
  const std::uint64_t linear = RandomLinear(cpu);
  if (cpu.cpu->Invlpg(linear)) cpu.page_since[linear >> 12] = Now();
}

void NestedVm::HostWrites() {
  const Gpa at(SomeEntry(*current_));
  NoteChange(at.bits(), true);
  const std::uint64_t entry = AnyEntry(*current_, at.bits());
  memory_.Write(at, entry);
  copy_[at.bits() / 8] = entry;
  pages_.GuestWrote(at, 8);
}

// The slot at kMovingBase goes, and perhaps comes back over other memory, or read-only.
void NestedVm::ChangeSlot() {
  if (slot_state_ != 0) memory_.RemoveSlot(GfnOf(Gpa(kMovingBase)));
  pages_.SlotsChanged(GfnOf(Gpa(kMovingBase)), kMovingBytes / kPageBytes);
  slot_state_ = static_cast<unsigned>(choices_->Below(3));
  if (slot_state_ != 0) {
    memory_.AddSlot(Gpa(kMovingBase), kMovingBytes, slot_state_ == 2);
    pages_.SlotsChanged(GfnOf(Gpa(kMovingBase)), kMovingBytes / kPageBytes);
  }
  for (EntryHistory* history : {&told_, &untold_}) {
    history->Forget(kMovingBase, kMovingBase + kMovingBytes - 1);
  }
}

// As whoever sets attributes for people does: those that the VM's own SPTEs cannot say are refused.
void NestedVm::SetAttribute() {
  MemoryAttribute attribute;
  Gfn first{choices_->Below(kFrames)};
  std::uint64_t count = 1 + choices_->Below(3);
  if (choices_->Chance(3)) {
    attribute.rights = Rights(static_cast<unsigned>(choices_->Below(16)));
    if (choices_->Chance(3)) attribute.policy = ViolationPolicy::kLog;
  } else {
    first = Gfn{0};
    count = 1u << 21;
  }
  if (WhyInexpressible(pages_.codec(), attribute.rights)) return;
  if (attributes_.Set(first, count, attribute) == MemoryAttributes::Change::kRestricted) {
    pages_.AttributesChanged(first, count);
  }
}

NestedVm::Complaint NestedVm::DriveLog() {
  if (log_.logging()) {
    if (!choices_->Chance(6)) return log_.Take();
    log_.Stop();
  } else if (choices_->Chance(3) &&
             !log_.Start(choices_->Chance(2) ? DirtyLogMethod::kDirtyBits
                                             : DirtyLogMethod::kWriteProtect)) {
    return "a log could not be started";
  }
  return std::nullopt;
}

// An entry, wherever `linear` leads.
NestedVm::Complaint NestedVm::Writes(Cpu& cpu, std::uint64_t linear) {
  const Asked asked = {.kind = Asked::Kind::kWrite, .by = Asked::By::kSupervisorWithAc};
  bool from_tlb = false;
  const Outcome got = MakeAccess(cpu, linear, asked, from_tlb);
  if (Complaint complaint = NoteUpdates(cpu)) return complaint;
  if (got.kind != Outcome::Kind::kHost) return std::nullopt;
  const std::optional<std::uint64_t> gpa = GpaOfHost(got.value);
  if (!gpa) return "a write to memory that is not the guest's";
  NoteChange(*gpa, cpu.cpu->lent());
  const std::uint64_t entry = AnyEntry(cpu, *gpa);
  cpu.cpu->Store(linear, entry);
  if (Complaint complaint = NoteUpdates(cpu, *gpa)) return complaint;
  if (WordAt(*gpa, true) != entry) {
    // The walk that a lent write makes in the end may have changed entries that it goes by.
    const std::vector<Outcome> now = Allowed(cpu, linear, asked).outcomes;
    if (now.size() == 1 && now.front() == got) {
      return "a write did not arrive where its probe did";
    }
  }
  if (*gpa / 8 < copy_.size()) copy_[*gpa / 8] = WordAt(*gpa, true);
  return log_.CheckWritable(Hpa(got.value));
}

void NestedVm::NoteChange(std::uint64_t at, bool told) {
  const std::uint64_t word = at & ~std::uint64_t{7};
  untold_.Changes(word, WordAt(word, true));
  if (told) {
    told_.Forget(word, word);
  } else {
    told_.Changes(word, WordAt(word, true));
  }
}

Outcome NestedVm::MakeAccess(Cpu& cpu, std::uint64_t linear, Asked asked, bool& from_tlb) {
  Outcome outcome = cpu.cpu->MakeAccess(linear, asked, from_tlb);
  if (outcome.kind == Outcome::Kind::kNestedFault) {
    outcome.detail = cpu.nesting.InfoOf(cpu.cpu->nested_fault());
  }
  return outcome;
}

// Words that walks have changed, `but` one. That A or D is set changes no translation by the same
// kind of entry.
NestedVm::Complaint NestedVm::NoteUpdates(const Cpu& cpu, std::uint64_t but) {
  const MemorySlot& slot = *memory_.Find(Gfn{0});
  unsigned dirtied = 0;
  constexpr std::uint64_t kGuestBits = 0x60 | std::uint64_t{0x60} << 32;
  const bool pdptes_in_memory = std::any_of(cpus_.begin(), cpus_.end(), [&](const Cpu& other) {
    return other.nesting.paging.root_has_pdptes ||
           (kind_.amd && other.l2.mode() == PagingMode::kPae);
  });
  for (std::uint64_t frame = 0; frame < kFrames; ++frame) {
    std::uint64_t* const copy = copy_.data() + frame * 512;
    const auto* const now = reinterpret_cast<const std::uint64_t*>(slot.HostOf(GpaOf(Gfn{frame})));
    if (std::memcmp(copy, now, kPageBytes) == 0) continue;
    for (unsigned i = 0; i < 512; ++i) {
      const std::uint64_t set = now[i] & ~copy[i], gone = copy[i] & ~now[i];
      const auto only = [&](std::uint64_t bits) {
        return gone == 0 && (set & ~bits) == 0 && !pdptes_in_memory;
      };
      const std::uint64_t at = frame << 12 | std::uint64_t{i} * 8;
      const std::uint64_t nested_bits = cpu.nesting.accessed_dirty();
      if ((set | gone) == 0 || at == but) continue;
      if (!only(kGuestBits) && !only(nested_bits)) untold_.Changes(at, copy[i]);
      if (!only(nested_bits)) told_.Changes(at, copy[i]);
      if (!kind_.amd && (set & 0x200) != 0) ++dirtied;
      copy[i] = now[i];
    }
  }
  const bool logs = in_l2(cpu) && cpu.nesting.stage.logs_dirty && cpu.nesting.stage.accessed_dirty;
  if (logs && dirtied > cpu.logged) return "D was set and not logged";
  return std::nullopt;
}

// -- chance

// Where nothing in particular is wanted.
std::uint64_t NestedVm::HostFrame() {
  if (choices_->Chance(6)) return (kReadOnlyBase >> 12) + choices_->Below(4);
  if (choices_->Chance(5)) return (kMovingBase >> 12) + choices_->Below(4);
  if (choices_->Chance(5)) return (kNoMemory >> 12) + choices_->Below(4);
  return choices_->Below(kFrames);
}

// One of the frames from 0 whose lowest index is `low`.
std::uint64_t NestedVm::WideFrame(std::uint64_t low) {
  std::uint64_t frame = low;
  while (choices_->Chance(16)) {
    frame |= std::uint64_t{RandomIndex(512)} << (9 * (1 + choices_->Below(4)));
  }
  return frame;
}

unsigned NestedVm::RandomIndex(unsigned count) {
  return choices_->Chance(4) ? count - 1 : static_cast<unsigned>(choices_->Below(4));
}

// An entry of 8 bytes, or two of 4, for a table at `at` of L1's.
std::uint64_t NestedVm::AnyEntry(const Cpu& cpu, std::uint64_t at) {
  const std::uint64_t table = at >> 12;
  const auto index = static_cast<unsigned>(at >> 3 & 511);
  if (IsOwnTable(table)) {
    const std::uint64_t entry = OwnEntry(table, index);
    return choices_->Chance(4) ? entry & ~std::uint64_t{0x60} : entry;
  }
  const bool nested = table < kNestedTables || (table >= kTables && choices_->Chance(2));
  if (!nested) {
    if (cpu.l2.mode() != PagingMode::k32Bit) return GuestEntry(at);
    return (GuestEntry(at) & 0xffff'ffff) | GuestEntry(at) << 32;
  }
  if (cpu.nesting.stage.kind != oracle::SecondStage::Kind::kNpt || cpu.nesting.stage.npt.levels > 2)
    return NestedEntry(cpu, at);
  const std::uint64_t first = (at & ~std::uint64_t{0xfff}) | (at & 0xfff) * 2;
  return (NestedEntry(cpu, first) & 0xffff'ffff) | NestedEntry(cpu, first + 8) << 32;
}

// By index: bits 11:3 of `at`, or more.
std::uint64_t NestedVm::NestedEntry(const Cpu& cpu, std::uint64_t at) {
  const unsigned rare = ordered_ ? 4 : 1;
  const std::uint64_t table = at >> 12, index = at >> 3 & 511;
  const bool lowest = table >= kLowest;
  std::uint64_t frame = 0;
  if (choices_->Chance(12 * rare) || (!ordered_ && choices_->Chance(2))) {
    frame = HostFrame();
  } else if (table < kLowest - 2) {
    frame = (table & ~std::uint64_t{1}) + 2 + choices_->Below(2);
  } else if (!lowest) {
    frame = kLowest + choices_->Below(4);
  } else {
    frame = kNestedTables + (index < kGuestFrames ? index : choices_->Below(kGuestFrames));
  }
  std::uint64_t entry = frame << 12;
  const bool large = choices_->Chance(8 * rare);
  if (large) entry = (entry & ~kLargeAddressBits) | 0x80;
  if (kind_.amd) {
    for (const std::uint64_t bit : {1u, 2u, 4u}) {
      if (!choices_->Chance(10 * rare)) entry |= bit;
    }
    // Where supervisors' code traps in users' pages, they are not all users'.
    const bool trap = cpu.nesting.stage.npt.guest_mode_execute_trap;
    if (trap && choices_->Chance(3)) entry &= ~std::uint64_t{4};
    if (!choices_->Chance(3)) entry |= 0x20;
    if (!choices_->Chance(3)) entry |= 0x40;
    if (choices_->Chance(20 * rare)) entry |= 0x100;
    if (choices_->Chance(10 * rare)) entry |= kExecuteDisable;
  } else {
    for (const std::uint64_t bit : {1u, 2u, 4u, 0x400u}) {
      if (!choices_->Chance(8 * rare)) entry |= bit;
    }
    if (lowest || large || choices_->Chance(30 * rare)) entry |= 6u << 3;
    if (choices_->Chance(30 * rare)) entry |= choices_->Below(16) << 3;
    if (!choices_->Chance(3)) entry |= 0x100;
    if (!choices_->Chance(3)) entry |= 0x200;
    if (choices_->Chance(8)) entry |= choices_->Below(4096) << 52;
    if (choices_->Chance(8)) entry |= 0x800;
  }
  if (choices_->Chance(60)) entry |= std::uint64_t{1} << (12 + choices_->Below(40));
  return entry;
}

std::uint64_t NestedVm::GuestEntry(std::uint64_t at) {
  const unsigned rare = ordered_ ? 4 : 1;
  const std::uint64_t table = (at >> 12) - kNestedTables;
  std::uint64_t frame = 0;
  if (table < kLowest - 2) {
    frame = (table & ~std::uint64_t{1}) + 2 + choices_->Below(2);
  } else if (table < kLowest) {
    frame = kLowest + choices_->Below(4);
  } else {
    frame = choices_->Below(kGuestFrames);
  }
  if (choices_->Chance(12 * rare)) frame = choices_->Below(kGuestFrames);
  std::uint64_t entry = WideFrame(frame) << 12;
  if (!choices_->Chance(12 * rare)) entry |= 1;
  if (!choices_->Chance(4 * rare)) entry |= 2;
  if (!choices_->Chance(3)) entry |= 4;
  if (!choices_->Chance(3)) entry |= 0x20;
  if (!choices_->Chance(3)) entry |= 0x40;
  if (choices_->Chance(8 * rare)) entry = (entry & ~kLargeAddressBits) | 0x80;
  if (choices_->Chance(20 * rare)) entry |= 0x100;
  if (choices_->Chance(10 * rare)) entry |= kExecuteDisable;
  if (choices_->Chance(10)) entry |= choices_->Below(16) << 59;
  if (choices_->Chance(60)) entry |= std::uint64_t{1} << (13 + choices_->Below(39));
  return entry;
}

// The address of an 8-byte word of a table that may be used.
std::uint64_t NestedVm::SomeEntry(const Cpu&) {
  if (choices_->Chance(24)) {
    const std::uint64_t table = kL1Tables + choices_->Below(4);
    return table << 12 | (table == kL1Tables + 3 ? choices_->Below(kFrames) : RandomIndex(4)) * 8;
  }
  const std::uint64_t table = choices_->Chance(3) ? kNestedTables + choices_->Below(kGuestTables)
                                                  : choices_->Below(kNestedTables);
  const bool many = table >= kLowest && table < kNestedTables && !choices_->Chance(4);
  return table << 12 | (many ? choices_->Below(kGuestFrames) : RandomIndex(512)) * 8;
}

// Often one that was used a short while ago: what goes wrong does so between uses of one address.
std::uint64_t NestedVm::RandomLinear(const Cpu& cpu) {
  std::uint64_t& recent = recent_[choices_->Below(recent_.size())];
  const bool again = choices_->Chance(2);
  const PagingMode mode = cpu.l2.mode();
  if (!again && mode == PagingMode::kNone) {
    recent = WideFrame(choices_->Below(kGuestFrames)) << 12;
  } else if (!again && mode == PagingMode::k32Bit) {
    recent = std::uint64_t{RandomIndex(1024)} << 22 | std::uint64_t{RandomIndex(1024)} << 12;
  } else if (!again) {
    recent = 0;
    for (unsigned level = 1; level <= 5; ++level) {
      recent |= std::uint64_t{RandomIndex(512)} << (12 + 9 * (level - 1));
    }
  }
  const std::uint64_t linear = recent | choices_->Below(4096);
  if (!cpu.l2.long_mode()) return linear & 0xffff'ffff;
  const unsigned shift = 64 - cpu.l2.linear_bits();
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(linear << shift) >> shift);
}

Asked NestedVm::RandomAsked() {
  return {.kind = static_cast<Asked::Kind>(choices_->Below(3)),
          .by = static_cast<Asked::By>(choices_->Below(4))};
}

}  // namespace pagesaw
