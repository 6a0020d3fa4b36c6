module;
#include <Zydis/Zydis.h>
#include <atomic>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.miscellany;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

constexpr RegisterOffset kAccumulator = kRax * 8, kAh = kRax * 8 + 1, kData = kRdx * 8;
constexpr std::uint64_t kAhFlags = kFlagCf | kFlagPf | kFlagAf | kFlagZf | kFlagSf;

bool Clc(Core& core, const Op&) {
  core.flags.SetEager(core.flags.All() & ~kFlagCf);
  return true;
}
bool Stc(Core& core, const Op&) {
  core.flags.SetEager(core.flags.All() | kFlagCf);
  return true;
}
bool Cmc(Core& core, const Op&) {
  core.flags.SetEager(core.flags.All() ^ kFlagCf);
  return true;
}
bool Cld(Core& core, const Op&) {
  core.rflags &= ~kFlagDf;
  return true;
}
bool Std(Core& core, const Op&) {
  core.rflags |= kFlagDf;
  return true;
}
bool Lahf(Core& core, const Op&) {
  const std::uint64_t flags = (core.flags.All() & kAhFlags) | kFlagFixed;
  core.Write<std::uint8_t>(kAh, static_cast<std::uint8_t>(flags));
  return true;
}
bool Sahf(Core& core, const Op&) {
  core.flags.SetEager((core.flags.All() & kFlagOf) | (core.Read<std::uint8_t>(kAh) & kAhFlags));
  return true;
}

// CBW, CWDE, CDQE: the accumulator's lower half, extended to T.
template <class T, class Half>
bool ExtendAccumulator(Core& core, const Op&) {
  const auto half = static_cast<std::make_signed_t<Half>>(core.Read<Half>(kAccumulator));
  core.Write<T>(kAccumulator, static_cast<T>(half));
  return true;
}
// CWD, CDQ, CQO: DX is filled with the accumulator's sign.
template <class T>
bool SpreadSign(Core& core, const Op&) {
  const auto value = static_cast<std::make_signed_t<T>>(core.Read<T>(kAccumulator));
  core.Write<T>(kData, value < 0 ? static_cast<T>(~T{0}) : T{0});
  return true;
}

bool Fence(Core&, const Op&) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return true;
}
bool Nothing(Core&, const Op&) { return true; }
// Guest memory is coherent: what remains is that the line must be readable.
bool FlushLine(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  return OperandAddress(core, op, 1, false, linear) && ProbeRead(core, linear, 1, By::kProgram);
}
template <class T>
bool Movnti(Core& core, const Op& op) {
  return StoreOperand<T>(core, op, core.Read<T>(op.second));
}

Selection If(bool legal, Handler run) { return legal ? Selection{run} : UndefinedInstruction(); }

}  // namespace

Selection SelectFlags(const Decoded& decoded, Op&) {
  const bool lahf = decoded.code_size != CodeSize::k64 || decoded.model->Has(Feature::kLahf);
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_CLC:
      return {&Plain<&Clc>};
    case ZYDIS_MNEMONIC_STC:
      return {&Plain<&Stc>};
    case ZYDIS_MNEMONIC_CMC:
      return {&Plain<&Cmc>};
    case ZYDIS_MNEMONIC_CLD:
      return {&Plain<&Cld>};
    case ZYDIS_MNEMONIC_STD:
      return {&Plain<&Std>};
    case ZYDIS_MNEMONIC_LAHF:
      return If(lahf, &Plain<&Lahf>);
    case ZYDIS_MNEMONIC_SAHF:
      return If(lahf, &Plain<&Sahf>);
    default:
      return {};
  }
}

Selection SelectConversion(const Decoded& decoded, Op&) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_CBW:
      return {&Plain<&ExtendAccumulator<std::uint16_t, std::uint8_t>>};
    case ZYDIS_MNEMONIC_CWDE:
      return {&Plain<&ExtendAccumulator<std::uint32_t, std::uint16_t>>};
    case ZYDIS_MNEMONIC_CDQE:
      return {&Plain<&ExtendAccumulator<std::uint64_t, std::uint32_t>>};
    case ZYDIS_MNEMONIC_CWD:
      return {&Plain<&SpreadSign<std::uint16_t>>};
    case ZYDIS_MNEMONIC_CDQ:
      return {&Plain<&SpreadSign<std::uint32_t>>};
    case ZYDIS_MNEMONIC_CQO:
      return {&Plain<&SpreadSign<std::uint64_t>>};
    default:
      return {};
  }
}

Selection SelectHint(const Decoded& decoded, Op& op) {
  const auto has = [&](Feature feature) { return decoded.model->Has(feature); };
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
      return If(has(Feature::kSse2), &Plain<&Fence>);
    case ZYDIS_MNEMONIC_SFENCE:
      return If(has(Feature::kSse), &Plain<&Fence>);
    case ZYDIS_MNEMONIC_CLFLUSH:
      return If(has(Feature::kClflush), &Plain<&FlushLine>);
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
      return If(has(Feature::kClflushopt), &Plain<&FlushLine>);
    case ZYDIS_MNEMONIC_CLWB:
      return If(has(Feature::kClwb), &Plain<&FlushLine>);
    case ZYDIS_MNEMONIC_MOVNTI:
      if (!has(Feature::kSse2)) return UndefinedInstruction();
      PlaceRegisters(decoded, op);
      return {op.operand_bytes == 8 ? &Plain<&Movnti<std::uint64_t>>
                                    : &Plain<&Movnti<std::uint32_t>>};
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_RDSSPD:  // of a processor without shadow stacks
    case ZYDIS_MNEMONIC_RDSSPQ:
    case ZYDIS_MNEMONIC_CLDEMOTE:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1:
      return {&Plain<&Nothing>};
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
      return UndefinedInstruction();
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
