module;
#include <Zydis/Zydis.h>
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.strings;

import pagesaw.core.address;
import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

enum class Kind : std::uint8_t { kMovs, kStos, kLods, kCmps, kScas };
constexpr bool ReadsSource(Kind kind) {
  return kind == Kind::kMovs || kind == Kind::kLods || kind == Kind::kCmps;
}
constexpr bool UsesDestination(Kind kind) { return kind != Kind::kLods; }
constexpr bool Compares(Kind kind) { return kind == Kind::kCmps || kind == Kind::kScas; }

constexpr RegisterOffset kAccumulator = kRax * 8;

// The part of an address or count that the address size takes.
std::uint64_t Masked(const Op& op, std::uint64_t value) {
  const unsigned unused = 64 - 8u * op.address_bytes;
  return value << unused >> unused;
}
void SetMasked(Core& core, const Op& op, Gpr name, std::uint64_t value) {
  const auto offset = static_cast<RegisterOffset>(name * 8);
  switch (op.address_bytes) {
    case 2:
      core.Write<std::uint16_t>(offset, static_cast<std::uint16_t>(value));
      break;
    case 4:
      core.Write<std::uint32_t>(offset, static_cast<std::uint32_t>(value));
      break;
    default:
      core.Write<std::uint64_t>(offset, value);
      break;
  }
}
void Advance(Core& core, const Op& op, Gpr name, std::uint64_t bytes) {
  SetMasked(core, op, name, core.gpr[name] + bytes);
}

// One iteration without its count. Flags of a comparison go to `flags`.
template <Kind kKind, class T>
bool Once(Core& core, const Op& op, LazyFlags& flags) {
  std::uint64_t from = 0, to = 0;
  if (ReadsSource(kKind) && !Linear(core, static_cast<SegmentName>(op.segment),
                                    Masked(op, core.gpr[kRsi]), sizeof(T), false, from)) {
    return false;
  }
  constexpr bool kWrites = kKind == Kind::kMovs || kKind == Kind::kStos;
  if (UsesDestination(kKind) &&
      !Linear(core, kEs, Masked(op, core.gpr[kRdi]), sizeof(T), kWrites, to)) {
    return false;
  }
  T source = core.Read<T>(kAccumulator);
  if (ReadsSource(kKind) && !Load<T>(core, from, source)) return false;
  if constexpr (kWrites) {
    if (!Store<T>(core, to, source)) return false;
  } else if constexpr (Compares(kKind)) {
    T other;
    if (!Load<T>(core, to, other)) return false;
    flags.Set<T>(FlagMaker::kSub, static_cast<T>(source - other), source);
  } else {
    core.Write<T>(kAccumulator, source);
  }
  const std::uint64_t step =
      (core.rflags & kFlagDf) != 0 ? std::uint64_t{0} - sizeof(T) : std::uint64_t{sizeof(T)};
  if (ReadsSource(kKind)) Advance(core, op, kRsi, step);
  if (UsesDestination(kKind)) Advance(core, op, kRdi, step);
  return true;
}

template <Kind kKind, class T>
bool Single(Core& core, const Op& op) {
  return Once<kKind, T>(core, op, core.flags);
}

// How many of `count` elements of `bytes` bytes lie upwards from `offset` in one page, without
// wrapping and within the segment's limit; their first linear address. Takes the segment's rights
// for granted.
std::uint64_t ElementsInPage(const Core& core, const Op& op, SegmentName name, std::uint64_t offset,
                             unsigned bytes, std::uint64_t count, std::uint64_t& linear) {
  const Segment& segment = core.segments[name];
  if (core.code_64()) {
    linear = offset + (name == kFs || name == kGs ? segment.base : 0);
  } else {
    const bool expands_down = !segment.is_code() && (segment.type() & 4) != 0;
    if (expands_down || offset > segment.limit) return 0;
    linear = static_cast<std::uint32_t>(segment.base + offset);
    count = std::min<std::uint64_t>(count, (segment.limit - offset + 1) / bytes);
  }
  if (op.address_bytes < 8) {
    const std::uint64_t end = std::uint64_t{1} << (8u * op.address_bytes);
    count = std::min<std::uint64_t>(count, (end - offset) / bytes);
  }
  return std::min<std::uint64_t>(count, (kPageBytes - linear % kPageBytes) / bytes);
}

// The byte-by-byte forward copy that MOVS is, with what an overlap then repeats.
template <class T>
void CopyForward(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::uintptr_t distance =
      reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
  if (distance >= bytes) {
    CopyHost(to, from, bytes);
    return;
  }
  for (std::size_t i = 0; i < bytes; i += sizeof(T)) StoreHost<T>(to + i, LoadHost<T>(from + i));
}

template <class T>
void Fill(std::byte* to, T value, std::size_t bytes) {
  const auto low = static_cast<std::uint8_t>(value);
  if (value == static_cast<T>(low * (~T{0} / 0xff))) {
    FillHost(to, low, bytes);
    return;
  }
  for (std::size_t i = 0; i < bytes; i += sizeof(T)) StoreHost<T>(to + i, value);
}

// As many iterations of MOVS or STOS as one page on either side has, if the TLB knows both; else
// none. Returns their number.
template <Kind kKind, class T>
std::uint64_t Bulk(Core& core, const Op& op, std::uint64_t count) {
  std::uint64_t from = 0, to = 0;
  count = ElementsInPage(core, op, kEs, Masked(op, core.gpr[kRdi]), sizeof(T), count, to);
  const TlbEntry& target = core.bank->At(to);
  if (count == 0 || (to & ~std::uint64_t{0xfff}) != target.write_tag) return 0;
  auto* const host = reinterpret_cast<std::byte*>(to + target.addend);
  if constexpr (kKind == Kind::kMovs) {
    count = ElementsInPage(core, op, static_cast<SegmentName>(op.segment),
                           Masked(op, core.gpr[kRsi]), sizeof(T), count, from);
    const TlbEntry& source = core.bank->At(from);
    if (count == 0 || (from & ~std::uint64_t{0xfff}) != source.read_tag) return 0;
    CopyForward<T>(host, reinterpret_cast<const std::byte*>(from + source.addend),
                   count * sizeof(T));
    Advance(core, op, kRsi, count * sizeof(T));
  } else {
    Fill<T>(host, core.Read<T>(kAccumulator), count * sizeof(T));
  }
  Advance(core, op, kRdi, count * sizeof(T));
  return count;
}

// Whether a repeated instruction lets others have a turn between two iterations.
bool ShouldPause(const Core& core) {
  return core.budget <= 0 || (core.rflags & kFlagTf) != 0 || core.debug_causes != 0 ||
         core.attention.load(std::memory_order_relaxed);
}

// Iterations that succeed stay done, whatever becomes of later ones. RIP moves on with the last.
template <Kind kKind, class T>
bool Repeated(Core& core, const Op& op) {
  const std::uint64_t total = Masked(op, core.gpr[kRcx]);
  if (total == 0) return true;
  constexpr bool kHasBulk = kKind == Kind::kMovs || kKind == Kind::kStos;
  // Bulk takes the segments' rights for granted: outside 64-bit mode, one iteration checks them.
  bool bulk = kHasBulk && core.code_64() && (core.rflags & (kFlagDf | kFlagTf)) == 0;
  LazyFlags flags = core.flags;
  std::uint64_t left = total;
  bool ended = false;
  while (!ended) {
    std::uint64_t done = 0;
    if constexpr (kHasBulk) {
      if (bulk) done = Bulk<kKind, T>(core, op, left);
    }
    if (done == 0) {
      if (!Once<kKind, T>(core, op, flags)) return false;
      done = 1;
      bulk = kHasBulk && (core.rflags & (kFlagDf | kFlagTf)) == 0;
    }
    core.replay.Clear();
    left -= done;
    core.budget -= static_cast<std::int64_t>(done);
    SetMasked(core, op, kRcx, left);
    ended = left == 0 || (Compares(kKind) && flags.zero() != (op.repeat == 1));
    if (!ended && ShouldPause(core)) {
      core.in_repeat = true;
      core.rip = core.RipOf(&op);
      break;
    }
  }
  ++core.budget;  // the block paid for one
  if (Compares(kKind)) core.flags = flags;
  return true;
}

template <Kind kKind, class T>
Selection SelectKind(const Decoded& decoded, Op& op) {
  op.segment = SegmentOfImplicit(decoded, kRsi);
  if (op.repeat != 0) return {&Ending<&Repeated<kKind, T>>, true};
  return {&Plain<&Single<kKind, T>>};
}

}  // namespace

// MOVSD and CMPSD are also names of SSE2 instructions, which have operands.
Selection SelectString(const Decoded& decoded, Op& op) {
  if (decoded.instruction.operand_count_visible != 0) return {};
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
      return SelectKind<Kind::kMovs, std::uint8_t>(decoded, op);
    case ZYDIS_MNEMONIC_MOVSW:
      return SelectKind<Kind::kMovs, std::uint16_t>(decoded, op);
    case ZYDIS_MNEMONIC_MOVSD:
      return SelectKind<Kind::kMovs, std::uint32_t>(decoded, op);
    case ZYDIS_MNEMONIC_MOVSQ:
      return SelectKind<Kind::kMovs, std::uint64_t>(decoded, op);
    case ZYDIS_MNEMONIC_STOSB:
      return SelectKind<Kind::kStos, std::uint8_t>(decoded, op);
    case ZYDIS_MNEMONIC_STOSW:
      return SelectKind<Kind::kStos, std::uint16_t>(decoded, op);
    case ZYDIS_MNEMONIC_STOSD:
      return SelectKind<Kind::kStos, std::uint32_t>(decoded, op);
    case ZYDIS_MNEMONIC_STOSQ:
      return SelectKind<Kind::kStos, std::uint64_t>(decoded, op);
    case ZYDIS_MNEMONIC_LODSB:
      return SelectKind<Kind::kLods, std::uint8_t>(decoded, op);
    case ZYDIS_MNEMONIC_LODSW:
      return SelectKind<Kind::kLods, std::uint16_t>(decoded, op);
    case ZYDIS_MNEMONIC_LODSD:
      return SelectKind<Kind::kLods, std::uint32_t>(decoded, op);
    case ZYDIS_MNEMONIC_LODSQ:
      return SelectKind<Kind::kLods, std::uint64_t>(decoded, op);
    case ZYDIS_MNEMONIC_CMPSB:
      return SelectKind<Kind::kCmps, std::uint8_t>(decoded, op);
    case ZYDIS_MNEMONIC_CMPSW:
      return SelectKind<Kind::kCmps, std::uint16_t>(decoded, op);
    case ZYDIS_MNEMONIC_CMPSD:
      return SelectKind<Kind::kCmps, std::uint32_t>(decoded, op);
    case ZYDIS_MNEMONIC_CMPSQ:
      return SelectKind<Kind::kCmps, std::uint64_t>(decoded, op);
    case ZYDIS_MNEMONIC_SCASB:
      return SelectKind<Kind::kScas, std::uint8_t>(decoded, op);
    case ZYDIS_MNEMONIC_SCASW:
      return SelectKind<Kind::kScas, std::uint16_t>(decoded, op);
    case ZYDIS_MNEMONIC_SCASD:
      return SelectKind<Kind::kScas, std::uint32_t>(decoded, op);
    case ZYDIS_MNEMONIC_SCASQ:
      return SelectKind<Kind::kScas, std::uint64_t>(decoded, op);
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
