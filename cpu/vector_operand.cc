module;
#include <Zydis/Zydis.h>
#include <algorithm>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.vector_operand;

import pagesaw.cpu.control_bits;

namespace pagesaw::cpu {
namespace {

// memcpy of a few sizes, each in one or two accesses.
void Copy(void* to, const void* from, unsigned bytes) {
  switch (bytes) {
    case 4:
      StoreHost<std::uint32_t>(to, LoadHost<std::uint32_t>(from));
      break;
    case 8:
      StoreHost<std::uint64_t>(to, LoadHost<std::uint64_t>(from));
      break;
    case 16:
      std::memcpy(to, from, 16);
      break;
    case 32:
      std::memcpy(to, from, 32);
      break;
    default:
      std::memcpy(to, from, bytes);
      break;
  }
}

bool InPage(std::uint64_t tag, std::uint64_t linear, unsigned bytes) {
  return ((linear + (bytes - 1)) & ~std::uint64_t{0xfff}) == tag;
}

}  // namespace

bool MeetX87Error(Core& core) {
  if ((core.cr0 & kCr0Ne) != 0) return core.Raise(kMf);
  BusAccess access{
      .kind = BusAccess::Kind::kX87Error, .bytes = 1, .address = core.x87_error_told ? 0u : 1u};
  if (!core.AskBus(access)) return false;
  core.x87_error_told = true;
  if (access.value != 0) return true;
  core.replay.Clear();  // an interrupt comes before the instruction begins again
  core.exit = Exit{};
  return core.LeaveWith(ExitReason::kHalt);
}

void SetTop(ExtendedState& state, unsigned top) {
  // ST(i) is physical register i + top.
  const unsigned up = (top - state.top()) & 7;
  std::rotate(state.st.begin(), state.st.begin() + up, state.st.end());
  state.fsw = static_cast<std::uint16_t>((state.fsw & ~0x3800u) | top << 11);
}

void EnterMmx(Core& core) {
  SetTop(core.extended, 0);
  core.extended.ftw = 0xff;
}

bool VectorAddress(Core& core, const Op& op, unsigned bytes, bool aligned, bool write,
                   std::uint64_t& linear) {
  if (!OperandAddress(core, op, bytes, write, linear)) return false;
  return !aligned || (linear & (bytes - 1)) == 0 || core.Raise(kGp, 0);
}

bool LoadVector(Core& core, const Op& op, unsigned bytes, bool aligned, void* to) {
  std::uint64_t linear = 0;
  if (!VectorAddress(core, op, bytes, aligned, false, linear)) return false;
  const TlbEntry& entry = core.bank->At(linear);
  if (InPage(entry.read_tag, linear, bytes)) [[likely]] {
    Copy(to, reinterpret_cast<const void*>(linear + entry.addend), bytes);
    return true;
  }
  return LoadSlow(core, linear, to, bytes, By::kProgram);
}

bool StoreVector(Core& core, const Op& op, unsigned bytes, bool aligned, const void* from) {
  std::uint64_t linear = 0;
  if (!VectorAddress(core, op, bytes, aligned, true, linear)) return false;
  const TlbEntry& entry = core.bank->At(linear);
  if (InPage(entry.write_tag, linear, bytes)) [[likely]] {
    Copy(reinterpret_cast<void*>(linear + entry.addend), from, bytes);
    return true;
  }
  return StoreSlow(core, linear, from, bytes, By::kProgram);
}

bool HasVectorFeature(const Decoded& decoded) {
  const auto has = [&](Feature feature) { return decoded.model->Has(feature); };
  switch (decoded.instruction.meta.isa_set) {
    case ZYDIS_ISA_SET_PENTIUMMMX:
      return has(Feature::kMmx);
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSEMXCSR:
      return has(Feature::kSse);
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
      return has(Feature::kSse2);
    case ZYDIS_ISA_SET_SSE3:
      return has(Feature::kSse3);
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX:
      return has(Feature::kSsse3);
    case ZYDIS_ISA_SET_SSE4:
      return has(Feature::kSse41);
    case ZYDIS_ISA_SET_SSE42:
      return has(Feature::kSse42);
    case ZYDIS_ISA_SET_AES:
      return has(Feature::kAes);
    case ZYDIS_ISA_SET_PCLMULQDQ:
      return has(Feature::kPclmulqdq);
    case ZYDIS_ISA_SET_SHA:
      return has(Feature::kSha);
    case ZYDIS_ISA_SET_AVX:
      if (decoded.instruction.mnemonic == ZYDIS_MNEMONIC_VPCLMULQDQ && !has(Feature::kPclmulqdq)) {
        return false;
      }
      return has(Feature::kAvx);
    case ZYDIS_ISA_SET_AVXAES:
      return has(Feature::kAvx) && has(Feature::kAes);
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER:
      return has(Feature::kAvx2);
    case ZYDIS_ISA_SET_FMA:
      return has(Feature::kFma);
    case ZYDIS_ISA_SET_F16C:
      return has(Feature::kF16c);
    default:
      return false;
  }
}

bool IsVectorInstruction(const Decoded& decoded) {
  switch (decoded.instruction.meta.isa_set) {
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSEMXCSR:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_SHA:
    case ZYDIS_ISA_SET_AVX:
    case ZYDIS_ISA_SET_AVXAES:
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER:
    case ZYDIS_ISA_SET_FMA:
    case ZYDIS_ISA_SET_F16C:
      return true;
    default:
      return false;
  }
}

}  // namespace pagesaw::cpu
