// What vector instructions share: when they may run, their registers, and their memory operands.
module;
#include <cstdint>
#include <cstring>
export module pagesaw.cpu.vector_operand;

import pagesaw.cpu.control_bits;
export import pagesaw.cpu.operand;

export namespace pagesaw::cpu {

// 32 bytes of a YMM register; an XMM register is its lower half.
struct alignas(32) WideVector {
  std::uint64_t lanes[4] = {};
};

// Whether an x87 exception that the control word does not mask is pending.
inline bool X87Pending(const ExtendedState& state) { return (state.fsw & ~state.fcw & 0x3f) != 0; }

// Whether the instructions may run now; raise what they raise if not.
// [intel/vol2] "Exception Conditions"; [amd/vol3] "Instruction Exceptions"
inline bool SseReady(Core& core) {
  if ((core.cr0 & kCr0Em) != 0 || (core.cr4 & kCr4Osfxsr) == 0) [[unlikely]] {
    return core.Raise(kUd);
  }
  return (core.cr0 & kCr0Ts) == 0 || core.Raise(kNm);
}
inline bool AvxReady(Core& core) {
  constexpr std::uint64_t kNeeded = 6;  // XCR0: SSE and AVX state
  if (!VexIsLegal(core)) return false;
  if ((core.cr4 & kCr4Osxsave) == 0 || (core.xcr0 & kNeeded) != kNeeded) [[unlikely]] {
    return core.Raise(kUd);
  }
  return (core.cr0 & kCr0Ts) == 0 || core.Raise(kNm);
}
// Meets an x87 error that waits: #MF, or with CR0.NE clear the outside is told and the instruction
// stands still until an interrupt, unless the outside says to ignore it.
// [intel/vol1] "MS-DOS Compatibility Sub-mode"
bool MeetX87Error(Core& core);
// Whether no x87 error stops an instruction that waits for such.
inline bool NoX87Error(Core& core) {
  if (X87Pending(core.extended)) [[unlikely]]
    return MeetX87Error(core);
  core.x87_error_told = false;
  return true;
}
inline bool MmxReady(Core& core) {
  if ((core.cr0 & kCr0Em) != 0) return core.Raise(kUd);
  if ((core.cr0 & kCr0Ts) != 0) return core.Raise(kNm);
  return NoX87Error(core);
}
template <bool kVex>
inline bool VectorReady(Core& core) {
  if constexpr (kVex) {
    return AvxReady(core);
  } else {
    return SseReady(core);
  }
}

inline WideVector ReadWide(const Core& core, unsigned number) {
  WideVector value;
  std::memcpy(&value.lanes[0], &core.extended.xmm[number], 16);
  std::memcpy(&value.lanes[2], &core.extended.ymm_high[number], 16);
  return value;
}
// Writes all of a register. An instruction without VEX leaves bits 255:128 alone.
inline void WriteVector(Core& core, unsigned number, const std::uint64_t* lanes, bool vex) {
  std::memcpy(&core.extended.xmm[number], lanes, 16);
  if (vex) std::memcpy(&core.extended.ymm_high[number], lanes + 2, 16);
}

// MMX registers are the x87 registers by their physical numbers.
inline std::uint64_t ReadMmx(const Core& core, unsigned number) {
  return core.extended.st[(number - core.extended.top()) & 7].significand;
}
inline void WriteMmx(Core& core, unsigned number, std::uint64_t value) {
  ExtendedState::X87Register& to = core.extended.st[(number - core.extended.top()) & 7];
  to = {.significand = value, .sign_exponent = 0xffff};
}
// Makes physical register `top` the top of the stack, without moving what registers hold.
void SetTop(ExtendedState& state, unsigned top);
// What every MMX instruction but EMMS does to the x87 state: the top of the stack is register 0,
// and none is empty. [intel/vol1] "MMX Instructions and the x87 FPU Tag Word"
void EnterMmx(Core& core);

// The memory operand of 2 ^ `log2` bytes, at most 32; `aligned`: else #GP.
bool VectorAddress(Core& core, const Op& op, unsigned bytes, bool aligned, bool write,
                   std::uint64_t& linear);
bool LoadVector(Core& core, const Op& op, unsigned bytes, bool aligned, void* to);
bool StoreVector(Core& core, const Op& op, unsigned bytes, bool aligned, const void* from);

// The same where the size and the place are known: the hot moves.
template <unsigned kBytes, bool kAligned, Place kPlace>
inline bool LoadVectorFast(Core& core, const Op& op, void* to) {
  if constexpr (kPlace == Place::kFlat) {
    const std::uint64_t linear = EffectiveAddress(core, op);
    const TlbEntry& entry = core.bank->At(linear);
    if (((linear + (kBytes - 1)) & ~std::uint64_t{0xfff}) == entry.read_tag &&
        (!kAligned || linear % kBytes == 0)) [[likely]] {
      std::memcpy(to, reinterpret_cast<const void*>(linear + entry.addend), kBytes);
      return true;
    }
  }
  return LoadVector(core, op, kBytes, kAligned, to);
}
template <unsigned kBytes, bool kAligned, Place kPlace>
inline bool StoreVectorFast(Core& core, const Op& op, const void* from) {
  if constexpr (kPlace == Place::kFlat) {
    const std::uint64_t linear = EffectiveAddress(core, op);
    const TlbEntry& entry = core.bank->At(linear);
    if (((linear + (kBytes - 1)) & ~std::uint64_t{0xfff}) == entry.write_tag &&
        (!kAligned || linear % kBytes == 0)) [[likely]] {
      std::memcpy(reinterpret_cast<void*>(linear + entry.addend), from, kBytes);
      return true;
    }
  }
  return StoreVector(core, op, kBytes, kAligned, from);
}

// The features that a vector instruction needs, by the part of the instruction set that Zydis says
// it belongs to. False also for what is no vector instruction, or is one that nobody can have.
bool HasVectorFeature(const Decoded& decoded);
// Whether it is one at all.
bool IsVectorInstruction(const Decoded& decoded);

}  // namespace pagesaw::cpu
