module;
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.memory;

import pagesaw.cpu.hardware_walk;
import pagesaw.cpu.intercept;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kPageMask = 0xfff;

Access ShadowStackAccess(const Core& core, By by, bool write) {
  const Privilege privilege =
      by == By::kUserShadowStack ? Privilege::kUser : Privilege::kSupervisor;
  // Without paging no page is a shadow stack's, and none is refused.
  if ((core.cr0 & kCr0Pg) == 0) return write ? Access::Write(privilege) : Access::Read(privilege);
  return write ? Access::ShadowStackWrite(privilege) : Access::ShadowStackRead(privilege);
}

bool IsToShadowStack(By by) {
  return by == By::kSupervisorShadowStack || by == By::kUserShadowStack;
}

Access AccessFor(const Core& core, By by, bool write) {
  if (IsToShadowStack(by)) return ShadowStackAccess(core, by, write);
  if (by == By::kProgram && core.cpl == 3) {
    return write ? Access::Write(Privilege::kUser) : Access::Read(Privilege::kUser);
  }
  const Access access =
      write ? Access::Write(Privilege::kSupervisor) : Access::Read(Privilege::kSupervisor);
  return by == By::kProgram && (core.rflags & kFlagAc) != 0 ? access.WithSmapWaived() : access;
}

// Bits high:48 or high:57 of a pointer, without bit 63.
constexpr std::uint64_t kTagAbove48 = 0x7fff'0000'0000'0000;
constexpr std::uint64_t kTagAbove57 = 0x7e00'0000'0000'0000;

bool IsUserPointer(std::uint64_t linear) { return linear >> 63 == 0; }

// Whether `linear` is a pointer whose bits 62:48 are a tag; then bit 47 must repeat bit 63 though
// linear addresses be wider.
bool HasUser48Mask(const Core& core, std::uint64_t linear) {
  return IsUserPointer(linear) && (core.cr3 & kCr3LamU48) != 0;
}

// `linear` with its tag replaced by copies of bit 63, in 64-bit mode.
// [intel/vol1] "Linear Address Masking"
std::uint64_t Untagged(const Core& core, std::uint64_t linear) {
  if (IsUserPointer(linear)) {
    if ((core.cr3 & kCr3LamU48) != 0) return linear & ~kTagAbove48;
    return (core.cr3 & kCr3LamU57) != 0 ? linear & ~kTagAbove57 : linear;
  }
  if ((core.cr4 & kCr4LamSup) == 0) return linear;
  return linear | ((core.cr4 & kCr4La57) != 0 ? kTagAbove57 : kTagAbove48);
}

TlbBank& BankFor(Core& core, By by) {
  switch (by) {
    case By::kProgram:
      return *core.bank;
    case By::kSupervisorShadowStack:
      return core.tlb.bank(BankName::kSupervisorShadowStack);
    case By::kUserShadowStack:
      return core.tlb.bank(BankName::kUserShadowStack);
    case By::kProcessor:
      break;
  }
  return core.tlb.bank(BankName::kSupervisor);
}

void Fill(Core& core, By by, std::uint64_t linear, const HostPage& page) {
  TlbBank& bank = BankFor(core, by);
  if (&bank == &core.tlb.bank(BankName::kChecked)) return;
  if (core.breakpoints.any_data() && core.breakpoints.WatchesDataIn(linear)) return;
  // A program that names this very address by a pointer means another one.
  if (core.masks_pointers && Untagged(core, linear) != linear) return;
  TlbEntry& entry = bank.At(linear);
  const std::uint64_t tag = linear & ~kPageMask;
  const std::uint64_t addend = page.host - linear;
  // A right that the entry has from an earlier walk of the same page stays.
  if (entry.addend != addend) entry = TlbEntry{};
  if (entry.fetch_tag != tag) entry.fetch_tag = kNoTag;
  entry.addend = addend;
  entry.read_tag = page.readable ? tag : kNoTag;
  entry.write_tag = kNoTag;
  if (page.writable) entry.write_tag = core.code->HoldsCode(page.host) ? tag | kAnnounced : tag;
  NoteInTlb(core, bank, linear, page);
}

bool IsFinalTableFault(const Core& core) {
  return core.stop == Stop::kExit && core.exit.reason == ExitReason::kTableFault &&
         core.exit.fault.stage == Stage::kFinal;
}

// Finds out where [linear, linear + bytes), in one page, is. False: a fault for the guest, or a
// table fault, which may turn out to be a device's: then `core.exit.fault.bus` says which access it
// is. `bytes` 0 only asks whether the access could be made.
bool Locate(Core& core, std::uint64_t linear, unsigned bytes, bool write, By by, std::byte*& host) {
  TlbEntry& entry = BankFor(core, by).At(linear);
  if ((linear & ~kPageMask) == (write ? entry.write_tag & ~kAnnounced : entry.read_tag)) {
    host = reinterpret_cast<std::byte*>(linear + entry.addend);
    if (write && !core.code->HoldsCode(linear + entry.addend)) entry.write_tag &= ~kAnnounced;
    return true;
  }
  HostPage page;
  if (WalkHardware(core, linear, AccessFor(core, by, write), page)) {
    if (IsApicPage(core, page.host)) [[unlikely]] {
      host = AccessApicPage(core, write ? PageAccess::Kind::kWrite : PageAccess::Kind::kRead,
                            linear, bytes);
      return host != nullptr;
    }
    Fill(core, by, linear, page);
    host = reinterpret_cast<std::byte*>(page.host);
    return true;
  }
  if (!IsFinalTableFault(core)) return false;  // a fault on a guest's table has its own question
  if (write || IsToShadowStack(by)) {
    host = core.replay.Lent(linear);
    if (host != nullptr) {
      core.stop = Stop::kNone;
      return true;
    }
  }
  core.exit.fault.bus = {.kind = write ? BusAccess::Kind::kMmioWrite : BusAccess::Kind::kMmioRead,
                         .bytes = static_cast<std::uint8_t>(bytes),
                         .address = core.exit.fault.address.bits()};
  return false;
}

// Whether the table fault that Locate met is a device access that the outside has answered: then it
// is forgotten and `value` holds the answer.
bool Answered(Core& core, std::uint64_t to_write, std::uint64_t& value) {
  if (!IsFinalTableFault(core)) return false;
  core.exit.fault.bus.value = to_write;
  const BusAccess* answer = core.replay.Take(core.exit.fault.bus);
  if (answer == nullptr) return false;
  core.stop = Stop::kNone;
  value = answer->value;
  return true;
}

// Whether Locate met the mark of a device page: forgets the fault.
bool KnownDevice(Core& core) {
  if (!IsFinalTableFault(core) || !core.exit.fault.malformed) return false;
  core.stop = Stop::kNone;
  return true;
}

// The bytes of an access that lie in the page of `linear`, at most 8.
unsigned PieceAt(std::uint64_t linear, unsigned bytes) {
  const auto to_end = static_cast<unsigned>(kPageMask + 1 - (linear & kPageMask));
  return std::min({bytes, to_end, 8u});
}

template <class T>
void Move(std::byte* to, const std::byte* from) {
  StoreHost<T>(to, LoadHost<T>(from));
}

// Moves 1 to 8 bytes, in one access where they are a power of two and aligned.
void MoveBytes(std::byte* to, const std::byte* from, unsigned bytes) {
  switch (bytes) {
    case 1:
      return Move<std::uint8_t>(to, from);
    case 2:
      return Move<std::uint16_t>(to, from);
    case 4:
      return Move<std::uint32_t>(to, from);
    case 8:
      return Move<std::uint64_t>(to, from);
    default:
      CopyHost(to, from, bytes);
  }
}

bool LoadPiece(Core& core, std::uint64_t linear, std::byte* to, unsigned bytes, By by) {
  std::byte* host = nullptr;
  if (Locate(core, linear, bytes, false, by, host)) {
    MoveBytes(to, host, bytes);
    return true;
  }
  std::uint64_t value = 0;
  if (!Answered(core, 0, value)) return false;
  std::memcpy(to, &value, bytes);
  return true;
}

bool SameBytes(const std::byte* host, const std::byte* from, unsigned bytes) {
  std::uint64_t held = 0, wanted = 0;
  MoveBytes(reinterpret_cast<std::byte*>(&held), host, bytes);
  MoveBytes(reinterpret_cast<std::byte*>(&wanted), from, bytes);
  return held == wanted;
}

void StoreToMemory(Core& core, std::byte* host, const std::byte* from, unsigned bytes) {
  // Programs write what is there already to where their code is. Code need not be forgotten for
  // that; the store has then been made when its bytes were compared, behind all before it.
  if (SameBytes(host, from, bytes) && core.code->HoldsCode(reinterpret_cast<std::uint64_t>(host))) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (SameBytes(host, from, bytes)) return;
  }
  core.code->Changed(reinterpret_cast<std::uint64_t>(host), bytes);
  MoveBytes(host, from, bytes);
}

bool StorePiece(Core& core, std::uint64_t linear, const std::byte* from, unsigned bytes, By by) {
  std::byte* host = nullptr;
  if (Locate(core, linear, bytes, true, by, host)) {
    StoreToMemory(core, host, from, bytes);
    return true;
  }
  std::uint64_t value = 0;
  std::memcpy(&value, from, bytes);
  std::uint64_t ignored = 0;
  return Answered(core, value, ignored);
}

// The alignment that data of `bytes` bytes must have. [intel/vol3] "Alignment Check Exception
// (#AC)"
unsigned AlignmentOf(unsigned bytes) {
  switch (bytes) {
    case 10:  // x87 extended precision
      return 8;
    case 28:  // x87 environment and state, 32 bits
    case 108:
      return 4;
    case 14:  // the same, 16 bits
    case 94:
      return 2;
    default:
      return std::has_single_bit(bytes) ? bytes : 1;
  }
}

// Whether an access at CPL 3 under alignment checking is misaligned.
bool Misaligned(const Core& core, std::uint64_t linear, unsigned bytes, By by) {
  const TlbBank* checked = &const_cast<Core&>(core).tlb.bank(BankName::kChecked);
  return by == By::kProgram && core.bank == checked && (linear & (AlignmentOf(bytes) - 1)) != 0;
}

// Tells the breakpoints of an access. False: it must be made again.
bool Watched(Core& core, std::uint64_t linear, unsigned bytes, bool write) {
  return !core.breakpoints.any_data() ||
         core.NoteBreakpoints(core.breakpoints.Data(linear, bytes, write));
}

// Whether every page of the access could be accessed now.
bool ProbeRange(Core& core, std::uint64_t linear, unsigned bytes, bool write, By by) {
  const std::uint64_t last = linear + bytes - 1;
  for (std::uint64_t at = linear;; at = last & ~kPageMask) {
    std::byte* host = nullptr;
    std::uint64_t ignored = 0;
    if (!Locate(core, at, 0, write, by, host) && !KnownDevice(core) &&
        !Answered(core, 0, ignored)) {
      return false;
    }
    if ((at & ~kPageMask) == (last & ~kPageMask)) return true;
  }
}

bool InLimit(const Segment& segment, std::uint64_t offset, unsigned bytes) {
  const std::uint64_t last = offset + bytes - 1;
  const bool expand_down = !segment.is_code() && (segment.type() & 4) != 0;
  if (!expand_down) return last <= segment.limit && last >= offset;
  const std::uint64_t top = segment.big() ? 0xffff'ffff : 0xffff;
  return offset > segment.limit && last <= top;
}

// [intel/vol3] "Type Checking": what may be done to a data or code segment.
bool TypeAllows(const Segment& segment, bool write) {
  if (write) return !segment.is_code() && (segment.type() & 2) != 0;
  return !segment.is_code() || (segment.type() & 2) != 0;
}

}  // namespace

bool Linear(Core& core, SegmentName name, std::uint64_t offset, unsigned bytes, bool write,
            std::uint64_t& linear) {
  const Segment& segment = core.segments[name];
  if (core.code_64()) {
    linear = offset + (name == kFs || name == kGs ? segment.base : 0);
    unsigned width = (core.cr4 & kCr4La57) != 0 ? 57 : 48;
    if (core.masks_pointers) {
      if (HasUser48Mask(core, linear)) width = 48;
      linear = Untagged(core, linear);
    }
    if (!IsCanonical(Gva(linear), width) || !IsCanonical(Gva(linear + bytes - 1), width)) {
      return core.RaiseSegmentFault(name);
    }
    return true;
  }
  const bool checked = core.protected_mode() && !core.virtual_8086();
  if (checked && (!segment.present() || !TypeAllows(segment, write))) {
    return core.RaiseSegmentFault(name);
  }
  if (!InLimit(segment, offset, bytes)) return core.RaiseSegmentFault(name);
  linear = static_cast<std::uint32_t>(segment.base + offset);
  return true;
}

bool LoadSlow(Core& core, std::uint64_t linear, void* to, unsigned bytes, By by) {
  if (Misaligned(core, linear, bytes, by)) return core.Raise(kAcVector, 0);
  if (!Watched(core, linear, bytes, false)) return false;
  // A load within a page is single.
  if (bytes <= 8 && PieceAt(linear, bytes) == bytes) {
    return LoadPiece(core, linear, static_cast<std::byte*>(to), bytes, by);
  }
  for (unsigned done = 0; done < bytes;) {
    const unsigned piece = PieceAt(linear + done, bytes - done);
    if (!LoadPiece(core, linear + done, static_cast<std::byte*>(to) + done, piece, by)) {
      return false;
    }
    done += piece;
  }
  return true;
}

bool StoreSlow(Core& core, std::uint64_t linear, const void* from, unsigned bytes, By by) {
  if (Misaligned(core, linear, bytes, by)) return core.Raise(kAcVector, 0);
  if (!Watched(core, linear, bytes, true)) return false;
  if (bytes <= 8 && PieceAt(linear, bytes) == bytes) {
    return StorePiece(core, linear, static_cast<const std::byte*>(from), bytes, by);
  }
  if (!ProbeWrite(core, linear, bytes, by)) return false;
  for (unsigned done = 0; done < bytes;) {
    const unsigned piece = PieceAt(linear + done, bytes - done);
    if (!StorePiece(core, linear + done, static_cast<const std::byte*>(from) + done, piece, by)) {
      return false;
    }
    done += piece;
  }
  return true;
}

bool ProbeWrite(Core& core, std::uint64_t linear, unsigned bytes, By by) {
  return ProbeRange(core, linear, bytes, true, by);
}

bool ProbeRead(Core& core, std::uint64_t linear, unsigned bytes, By by) {
  return ProbeRange(core, linear, bytes, false, by);
}

bool HostForModify(Core& core, std::uint64_t linear, unsigned bytes, std::byte*& host, By by) {
  host = nullptr;
  if (Misaligned(core, linear, bytes, by)) return core.Raise(kAcVector, 0);
  if (!Watched(core, linear, bytes, true)) return false;
  if ((linear & (bytes - 1)) != 0 && (linear & kPageMask) + bytes > kPageMask + 1) {
    return ProbeWrite(core, linear, bytes, by);
  }
  if (Locate(core, linear, 0, true, by, host)) {
    core.code->Changed(reinterpret_cast<std::uint64_t>(host), bytes);
    return true;
  }
  std::uint64_t ignored = 0;
  host = nullptr;
  return KnownDevice(core) || Answered(core, 0, ignored);
}

bool StackAddress(Core& core, std::int64_t offset, unsigned bytes, bool write,
                  std::uint64_t& linear) {
  const std::uint64_t sp = core.gpr[kRsp] + static_cast<std::uint64_t>(offset);
  if (core.stack_64) return Linear(core, kSs, sp, bytes, write, linear);
  return Linear(core, kSs, core.stack_32 ? static_cast<std::uint32_t>(sp) : sp & 0xffff, bytes,
                write, linear);
}

}  // namespace pagesaw::cpu
