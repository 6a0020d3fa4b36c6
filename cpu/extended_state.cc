module;
#include <Zydis/Zydis.h>
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
module pagesaw.cpu.extended_state;

import pagesaw.cpu.cet_registers;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.intercept;
import pagesaw.cpu.vector_operand;
import pagesaw.cpu.x87;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kX87 = 1, kSse = 2, kAvx = 4, kPkru = 1 << 9, kCetUser = 1 << 11,
                        kCetSupervisor = 1 << 12;
constexpr std::uint64_t kCompacted = std::uint64_t{1} << 63;
constexpr unsigned kLegacyBytes = 512, kHeaderBytes = 64, kAreaBytes = kLegacyBytes + kHeaderBytes;
constexpr unsigned kMxcsrOffset = 24, kStOffset = 32, kXmmOffset = 160;
constexpr std::uint32_t kMxcsrReserved = 0xffff'0000, kMxcsrInitial = 0x1f80;

bool Available(Core& core) { return (core.cr0 & kCr0Ts) == 0 || core.Raise(kNm); }

// Whole areas are moved by 16 bytes: no single access that alignment checks could mind.
constexpr unsigned kChunk = 16;
bool LoadArea(Core& core, std::uint64_t linear, void* to, unsigned bytes) {
  for (unsigned at = 0; at < bytes; at += kChunk) {
    const unsigned piece = bytes - at < kChunk ? bytes - at : kChunk;
    if (!LoadSlow(core, linear + at, static_cast<std::byte*>(to) + at, piece, By::kProgram)) {
      return false;
    }
  }
  return true;
}
bool StoreArea(Core& core, std::uint64_t linear, const void* from, unsigned bytes) {
  for (unsigned at = 0; at < bytes; at += kChunk) {
    const unsigned piece = bytes - at < kChunk ? bytes - at : kChunk;
    if (!StoreSlow(core, linear + at, static_cast<const std::byte*>(from) + at, piece,
                   By::kProgram)) {
      return false;
    }
  }
  return true;
}

unsigned XmmBytes(const Core& core) { return core.code_64() ? 256 : 128; }
bool Is64(const Op& op) { return op.operand_bytes == 8; }

// -- the legacy region

// `to` receives what FXSAVE would store. Selectors of old are not kept. [intel/vol2] "FXSAVE"
void PutLegacy(const ExtendedState& from, bool wide, ExtendedState& to) {
  to = from;
  to.mxcsr_mask = 0xffff;
  to.unused = 0;
  if (!wide) {
    to.fip = static_cast<std::uint32_t>(from.fip);
    to.fdp = static_cast<std::uint32_t>(from.fdp);
  }
}

void TakeX87(const ExtendedState& from, bool wide, ExtendedState& to) {
  const std::uint32_t mxcsr = to.mxcsr;
  std::memcpy(&to, &from, kXmmOffset);
  to.mxcsr = mxcsr;
  to.mxcsr_mask = 0xffff;
  to.fop &= 0x7ff;
  if (!wide) {
    to.fip = static_cast<std::uint32_t>(to.fip);
    to.fdp = static_cast<std::uint32_t>(to.fdp);
  }
  NormalizeX87(to);
}

bool LegalMxcsr(std::uint32_t mxcsr) { return (mxcsr & kMxcsrReserved) == 0; }

bool FxAddress(Core& core, const Op& op, bool write, std::uint64_t& linear) {
  if ((core.cr0 & (kCr0Em | kCr0Ts)) != 0) return core.Raise(kNm);
  return OperandAddress(core, op, kLegacyBytes, write, linear) &&
         ((linear & 15) == 0 || core.Raise(kGp, 0));
}

bool Fxsave(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  if (!FxAddress(core, op, true, linear)) return false;
  ExtendedState image;
  PutLegacy(core.extended, Is64(op), image);
  const unsigned bytes = kXmmOffset + XmmBytes(core);
  return ProbeWrite(core, linear, bytes, By::kProgram) && StoreArea(core, linear, &image, bytes);
}

bool Fxrstor(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  ExtendedState image;
  const unsigned bytes = kXmmOffset + XmmBytes(core);
  if (!FxAddress(core, op, false, linear) || !LoadArea(core, linear, &image, bytes)) return false;
  if (!LegalMxcsr(image.mxcsr)) return core.Raise(kGp, 0);
  TakeX87(image, Is64(op), core.extended);
  core.extended.mxcsr = image.mxcsr;
  std::memcpy(&core.extended.xmm, &image.xmm, XmmBytes(core));
  return true;
}

template <bool kVex>
bool Ldmxcsr(Core& core, const Op& op) {
  std::uint32_t value;
  if (!VectorReady<kVex>(core) || !LoadOperand<std::uint32_t>(core, op, value)) return false;
  if (!LegalMxcsr(value)) return core.Raise(kGp, 0);
  core.extended.mxcsr = value;
  return true;
}
template <bool kVex>
bool Stmxcsr(Core& core, const Op& op) {
  return VectorReady<kVex>(core) && StoreOperand<std::uint32_t>(core, op, core.extended.mxcsr);
}

// -- XSAVE. [intel/vol1] "Managing State Using the XSAVE Feature Set"

struct Header {
  std::uint64_t xstate_bv = 0;
  std::uint64_t xcomp_bv = 0;
  std::uint64_t reserved[6] = {};
};
static_assert(sizeof(Header) == kHeaderBytes);

// What XRSTOR reads, or XSAVE writes: components at their offsets in the standard format.
struct Components {
  alignas(64) ExtendedState legacy;
  ExtendedState::Vector ymm_high[16] = {};
  std::uint64_t pkru = 0;
  std::array<std::uint64_t, 2> cet_user = {};        // IA32_U_CET, IA32_PL3_SSP
  std::array<std::uint64_t, 3> cet_supervisor = {};  // IA32_PL0_SSP to IA32_PL2_SSP

  // Where a component behind the header is.
  void* At(std::uint64_t bit) {
    switch (bit) {
      case kAvx:
        return ymm_high;
      case kPkru:
        return &pkru;
      case kCetUser:
        return cet_user.data();
      default:
        return cet_supervisor.data();
    }
  }
};

// The components behind the header as the processor has them.
void Collect(const Core& core, Components& components) {
  std::memcpy(components.ymm_high, &core.extended.ymm_high, sizeof(components.ymm_high));
  components.pkru = core.pkru;
  const std::array<std::uint64_t, 4>& ssp = core.cet.privilege_ssp;
  components.cet_user = {core.cet.user, ssp[3]};
  components.cet_supervisor = {ssp[0], ssp[1], ssp[2]};
}

bool Ready(Core& core) {
  if ((core.cr4 & kCr4Osxsave) == 0) return core.Raise(kUd);
  return Available(core);
}

// What XSAVES and XRSTORS, which is `what`, check besides.
bool Supervises(Core& core, const Op& op, Intercept what) {
  if (core.guest.undefined.Has(Intercept::kXsaves)) return core.Raise(kUd);
  if (core.cpl != 0) return core.Raise(kGp, 0);
  return !Leaves(core, op, what);
}

std::uint64_t Requested(const Core& core) {
  return static_cast<std::uint32_t>(core.gpr[kRax]) | core.gpr[kRdx] << 32;
}

bool XsaveAddress(Core& core, const Op& op, unsigned bytes, bool write, std::uint64_t& linear) {
  return OperandAddress(core, op, bytes, write, linear) &&
         ((linear & 63) == 0 || core.Raise(kGp, 0));
}

template <class T>
bool IsZero(const T& value) {
  return value == T{};
}

// The components that are not in their initial configuration.
std::uint64_t InUse(const Core& core) {
  const ExtendedState& state = core.extended;
  std::uint64_t in_use = 0;
  if (state.fcw != 0x37f || state.fsw != 0 || state.ftw != 0 || state.fop != 0 || state.fip != 0 ||
      state.fdp != 0 || !IsZero(state.st)) {
    in_use |= kX87;
  }
  if (!IsZero(state.xmm)) in_use |= kSse;
  if (!IsZero(state.ymm_high)) in_use |= kAvx;
  if (core.pkru != 0) in_use |= kPkru;
  const std::array<std::uint64_t, 4>& ssp = core.cet.privilege_ssp;
  if ((core.cet.user | ssp[3]) != 0) in_use |= kCetUser;
  if ((ssp[0] | ssp[1] | ssp[2]) != 0) in_use |= kCetSupervisor;
  return in_use;
}

// Whether the processor runs code in which only half of the vector registers exist.
unsigned HighBytes(const Core& core) { return core.code_64() ? 256 : 128; }

// Calls visit(bit, offset, bytes) for the components of `map` behind the header; false if one call
// is.
template <class Visit>
bool ForComponents(std::uint64_t map, bool compacted, Visit visit) {
  unsigned next = kAreaBytes;
  for (const std::uint64_t bit : {kAvx, kPkru, kCetUser, kCetSupervisor}) {
    if ((map & bit) == 0) continue;
    const auto number = static_cast<unsigned>(std::countr_zero(bit));
    const XsaveComponent component = XsaveComponentOf(number);
    const unsigned offset = compacted ? next : component.offset;
    next += component.bytes;
    if (!visit(bit, offset, component.bytes)) return false;
  }
  return true;
}

// The pieces of the legacy region that hold `map`.
bool StoreLegacy(Core& core, std::uint64_t linear, const ExtendedState& image, std::uint64_t map,
                 bool mxcsr) {
  const auto* const from = reinterpret_cast<const std::byte*>(&image);
  if ((map & kX87) != 0) {
    if (!StoreArea(core, linear, from, kMxcsrOffset) ||
        !StoreArea(core, linear + kStOffset, from + kStOffset, kXmmOffset - kStOffset)) {
      return false;
    }
  }
  if (mxcsr && !StoreArea(core, linear + kMxcsrOffset, from + kMxcsrOffset, 8)) return false;
  return (map & kSse) == 0 ||
         StoreArea(core, linear + kXmmOffset, from + kXmmOffset, XmmBytes(core));
}

// How the four saving instructions differ.
enum class Save : std::uint8_t { kAll, kOptimized, kCompacted, kSupervisor };

template <Save kSave>
bool Xsave(Core& core, const Op& op) {
  constexpr bool kIsCompacted = kSave == Save::kCompacted || kSave == Save::kSupervisor;
  if (!Ready(core)) return false;
  if (kSave == Save::kSupervisor && !Supervises(core, op, Intercept::kXsaves)) return false;
  const std::uint64_t enabled = core.xcr0 | (kSave == Save::kSupervisor ? core.xss : 0);
  const std::uint64_t requested = Requested(core) & enabled;
  std::uint64_t in_use = InUse(core);
  // MXCSR belongs to SSE where the initial configuration is not stored.
  if (kIsCompacted && core.extended.mxcsr != kMxcsrInitial) in_use |= kSse;
  const std::uint64_t stored = kSave == Save::kAll ? requested : requested & in_use;
  unsigned bytes = kAreaBytes;
  ForComponents(requested, kIsCompacted, [&](std::uint64_t, unsigned offset, unsigned size) {
    bytes = offset + size > bytes ? offset + size : bytes;
    return true;
  });
  std::uint64_t linear = 0;
  if (!XsaveAddress(core, op, bytes, true, linear) ||
      !ProbeWrite(core, linear, bytes, By::kProgram)) {
    return false;
  }
  Header header;
  if constexpr (kIsCompacted) {
    header.xstate_bv = requested & in_use;
    header.xcomp_bv = requested | kCompacted;
  } else {
    if (!LoadArea(core, linear + kLegacyBytes, &header, 8)) return false;
    header.xstate_bv = (header.xstate_bv & ~requested) | (requested & in_use);
  }
  ExtendedState image;
  PutLegacy(core.extended, Is64(op), image);
  const bool mxcsr = kIsCompacted ? (stored & kSse) != 0 : (requested & (kSse | kAvx)) != 0;
  if (!StoreLegacy(core, linear, image, stored, mxcsr)) return false;
  Components components;
  Collect(core, components);
  const bool done =
      ForComponents(requested, kIsCompacted, [&](std::uint64_t bit, unsigned at, unsigned size) {
        if ((stored & bit) == 0) return true;
        const unsigned count = bit == kAvx ? HighBytes(core) : size;
        return StoreArea(core, linear + at, components.At(bit), count);
      });
  return done && StoreArea(core, linear + kLegacyBytes, &header, kIsCompacted ? 16 : 8);
}

// [intel/vol1] "Operation of XRSTOR", "Operation of XRSTORS"
bool LegalHeader(const Core& core, const Header& header, std::uint64_t enabled, bool supervisor) {
  const bool compacted = (header.xcomp_bv & kCompacted) != 0;
  if (!compacted) {
    return !supervisor && header.xcomp_bv == 0 && header.reserved[0] == 0 &&
           (header.xstate_bv & ~enabled) == 0;
  }
  if (!core.model->Has(Feature::kXsavec)) return false;
  for (const std::uint64_t reserved : header.reserved) {
    if (reserved != 0) return false;
  }
  return (header.xcomp_bv & ~enabled & ~kCompacted) == 0 &&
         (header.xstate_bv & ~header.xcomp_bv) == 0;
}

// Loads components `loaded` of the area at `linear`.
bool LoadComponents(Core& core, std::uint64_t linear, const Header& header, std::uint64_t loaded,
                    Components& components) {
  auto* const legacy = reinterpret_cast<std::byte*>(&components.legacy);
  if (!LoadArea(core, linear, legacy, kXmmOffset)) return false;
  if ((loaded & kSse) != 0 &&
      !LoadArea(core, linear + kXmmOffset, legacy + kXmmOffset, XmmBytes(core))) {
    return false;
  }
  const bool compacted = (header.xcomp_bv & kCompacted) != 0;
  return ForComponents(compacted ? header.xcomp_bv : loaded, compacted,
                       [&](std::uint64_t bit, unsigned at, unsigned size) {
                         if ((loaded & bit) == 0) return true;
                         const unsigned count = bit == kAvx ? HighBytes(core) : size;
                         return LoadArea(core, linear + at, components.At(bit), count);
                       });
}

// XRSTORS takes what WRMSR would take.
bool LegalCetState(const Core& core, const Components& components) {
  if (!IsLegalCet(core, components.cet_user[0]) || !IsLegalSsp(core, components.cet_user[1])) {
    return false;
  }
  return std::ranges::all_of(components.cet_supervisor,
                             [&core](std::uint64_t ssp) { return IsLegalSsp(core, ssp); });
}

void TakeCetState(Core& core, const Components& components, std::uint64_t requested) {
  std::array<std::uint64_t, 4>& ssp = core.cet.privilege_ssp;
  if ((requested & kCetUser) != 0) {
    core.cet.user = components.cet_user[0];
    ssp[3] = components.cet_user[1];
    core.UpdateMode();
  }
  if ((requested & kCetSupervisor) != 0) std::ranges::copy(components.cet_supervisor, ssp.begin());
}

template <bool kSupervisor>
bool Xrstor(Core& core, const Op& op) {
  if (!Ready(core)) return false;
  if (kSupervisor && !Supervises(core, op, Intercept::kXrstors)) return false;
  const std::uint64_t enabled = core.xcr0 | (kSupervisor ? core.xss : 0);
  const std::uint64_t requested = Requested(core) & enabled;
  std::uint64_t linear = 0;
  Header header;
  if (!XsaveAddress(core, op, kAreaBytes, false, linear) ||
      !LoadArea(core, linear + kLegacyBytes, &header, kHeaderBytes)) {
    return false;
  }
  if (!LegalHeader(core, header, enabled, kSupervisor)) return core.Raise(kGp, 0);
  const std::uint64_t loaded = requested & header.xstate_bv;
  Components components;  // initial
  components.legacy = ExtendedState();
  if (!LoadComponents(core, linear, header, loaded, components)) return false;
  const bool compacted = (header.xcomp_bv & kCompacted) != 0;
  const bool touches_mxcsr = compacted ? (requested & kSse) != 0 : (requested & (kSse | kAvx)) != 0;
  const bool loads_mxcsr = touches_mxcsr && (!compacted || (loaded & kSse) != 0);
  if (loads_mxcsr && !LegalMxcsr(components.legacy.mxcsr)) return core.Raise(kGp, 0);
  if (!LegalCetState(core, components)) return core.Raise(kGp, 0);

  ExtendedState& state = core.extended;
  if ((requested & kX87) != 0) {
    TakeX87((loaded & kX87) != 0 ? components.legacy : ExtendedState(), Is64(op), state);
  }
  if (touches_mxcsr) state.mxcsr = loads_mxcsr ? components.legacy.mxcsr : kMxcsrInitial;
  if ((requested & kSse) != 0) std::memcpy(&state.xmm, &components.legacy.xmm, XmmBytes(core));
  if ((requested & kAvx) != 0) std::memcpy(&state.ymm_high, components.ymm_high, HighBytes(core));
  if ((requested & kPkru) != 0 && core.pkru != static_cast<std::uint32_t>(components.pkru)) {
    core.pkru = static_cast<std::uint32_t>(components.pkru);
    core.UpdatePaging();
  }
  TakeCetState(core, components, requested);
  return true;
}

struct Row {
  ZydisMnemonic mnemonic;
  Feature feature;
  Selection selection;
};

}  // namespace

Selection SelectExtendedState(const Decoded& decoded, Op& op) {
  static constexpr Row kRows[] = {
      {ZYDIS_MNEMONIC_FXSAVE, Feature::kFxsr, {&Plain<&Fxsave>}},
      {ZYDIS_MNEMONIC_FXSAVE64, Feature::kFxsr, {&Plain<&Fxsave>}},
      {ZYDIS_MNEMONIC_FXRSTOR, Feature::kFxsr, {&Plain<&Fxrstor>}},
      {ZYDIS_MNEMONIC_FXRSTOR64, Feature::kFxsr, {&Plain<&Fxrstor>}},
      {ZYDIS_MNEMONIC_LDMXCSR, Feature::kSse, {&Plain<&Ldmxcsr<false>>}},
      {ZYDIS_MNEMONIC_STMXCSR, Feature::kSse, {&Plain<&Stmxcsr<false>>}},
      {ZYDIS_MNEMONIC_VLDMXCSR, Feature::kAvx, {&Plain<&Ldmxcsr<true>>}},
      {ZYDIS_MNEMONIC_VSTMXCSR, Feature::kAvx, {&Plain<&Stmxcsr<true>>}},
      {ZYDIS_MNEMONIC_XSAVE, Feature::kXsave, {&Plain<&Xsave<Save::kAll>>}},
      {ZYDIS_MNEMONIC_XSAVE64, Feature::kXsave, {&Plain<&Xsave<Save::kAll>>}},
      {ZYDIS_MNEMONIC_XSAVEOPT, Feature::kXsaveopt, {&Plain<&Xsave<Save::kOptimized>>}},
      {ZYDIS_MNEMONIC_XSAVEOPT64, Feature::kXsaveopt, {&Plain<&Xsave<Save::kOptimized>>}},
      {ZYDIS_MNEMONIC_XSAVEC, Feature::kXsavec, {&Plain<&Xsave<Save::kCompacted>>}},
      {ZYDIS_MNEMONIC_XSAVEC64, Feature::kXsavec, {&Plain<&Xsave<Save::kCompacted>>}},
      {ZYDIS_MNEMONIC_XSAVES, Feature::kXsaves, {&Plain<&Xsave<Save::kSupervisor>>}},
      {ZYDIS_MNEMONIC_XSAVES64, Feature::kXsaves, {&Plain<&Xsave<Save::kSupervisor>>}},
      // Protection keys may change with the state.
      {ZYDIS_MNEMONIC_XRSTOR, Feature::kXsave, {&Ending<&Xrstor<false>>, true}},
      {ZYDIS_MNEMONIC_XRSTOR64, Feature::kXsave, {&Ending<&Xrstor<false>>, true}},
      {ZYDIS_MNEMONIC_XRSTORS, Feature::kXsaves, {&Ending<&Xrstor<true>>, true}},
      {ZYDIS_MNEMONIC_XRSTORS64, Feature::kXsaves, {&Ending<&Xrstor<true>>, true}},
  };
  for (const Row& row : kRows) {
    if (row.mnemonic != decoded.instruction.mnemonic) continue;
    if (!decoded.model->Has(row.feature) || op.lock != 0) return UndefinedInstruction();
    op.operand_bytes = decoded.instruction.raw.rex.W != 0 ? 8 : 4;
    return row.selection;
  }
  return {};
}

}  // namespace pagesaw::cpu
