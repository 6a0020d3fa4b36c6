// Random x87 and vector instructions: random bytes where opcodes are, kept if they are one.
#include "cpu/random_code.h"

#include <Zydis/Zydis.h>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <vector>

namespace pagesaw::cpu {
namespace {

constexpr unsigned kFcw = 0, kFsw = 2, kFtw = 4, kMxcsr = 24, kSt = 32, kXmm = 160;

class VectorBuilder {
 public:
  VectorBuilder(Random& random, const CodeArea& area, std::vector<std::uint8_t>& memory)
      : random_(random), area_(area), memory_(memory) {}

  // False: not fit to be run; try again.
  bool Build(RandomCode& code);

 private:
  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }
  bool OneIn(std::uint64_t n) { return Below(n) == 0; }
  std::uint8_t Byte() { return static_cast<std::uint8_t>(random_()); }
  std::uint64_t DataAddress();
  template <class T>
  void Put(unsigned at, T value) {
    std::memcpy(&code_.extended.bytes[at], &value, sizeof(T));
  }
  void FillLanes(std::uint8_t* to, std::size_t bytes);
  void FillX87();
  void FillState();
  void EmitOpcode();
  void EmitAddress(bool memory, bool vsib, std::uint8_t digit);
  bool Settle();
  void SettleXsave();

  Random& random_;
  const CodeArea& area_;
  std::vector<std::uint8_t>& memory_;
  RandomCode code_;
  unsigned rex_ = 0;  // R, X, B as in REX
  unsigned index_ = 0;
  std::uint64_t address_ = 0;  // of the memory operand
};

std::uint64_t VectorBuilder::DataAddress() {
  switch (Below(16)) {
    case 0:
      return area_.data + 0x1000 - Below(48);
    case 1:
      return area_.data + 0x2000 - Below(48);
    case 2:
      return area_.data - Below(48);
    case 3:
      return area_.data + 0x2000 + Below(0x1000);
    default:
      return (area_.data + 0x200 + Below(0x1c00)) & ~(OneIn(4) ? std::uint64_t{0} : 63);
  }
}

// Numbers of one format in all of a register.
void VectorBuilder::FillLanes(std::uint8_t* to, std::size_t bytes) {
  static constexpr std::uint32_t kSingles[] = {
      0,           0x8000'0000, 0x3f80'0000, 0xbf80'0000, 0x4000'0000, 0x7f80'0000, 0xff80'0000,
      0x7fc0'0000, 0xffc0'1234, 0x7f80'0001, 0xffa0'0000, 0x0000'0001, 0x8000'0001, 0x007f'ffff,
      0x0080'0000, 0x8080'0000, 0x7f7f'ffff, 0xff7f'ffff, 0x4f00'0000, 0xcf00'0000, 0x5f00'0000,
      0x3f00'0000, 0x3fc0'0000, 0x4b00'0001, 0x3380'0000, 0x2000'0000, 0x5e80'0000, 0x4780'0000};
  static constexpr std::uint64_t kDoubles[] = {0,
                                               0x8000'0000'0000'0000,
                                               0x3ff0'0000'0000'0000,
                                               0xbff0'0000'0000'0000,
                                               0x4000'0000'0000'0000,
                                               0x7ff0'0000'0000'0000,
                                               0xfff0'0000'0000'0000,
                                               0x7ff8'0000'0000'0000,
                                               0xfff8'0000'0001'2345,
                                               0x7ff0'0000'0000'0001,
                                               0xfff4'0000'0000'0000,
                                               1,
                                               0x8000'0000'0000'0001,
                                               0x000f'ffff'ffff'ffff,
                                               0x0010'0000'0000'0000,
                                               0x7fef'ffff'ffff'ffff,
                                               0x41e0'0000'0000'0000,
                                               0xc1e0'0000'0000'0000,
                                               0x43e0'0000'0000'0000,
                                               0x3fe0'0000'0000'0000,
                                               0x3810'0000'0000'0000,
                                               0x380f'ffff'ffff'ffff,
                                               0x3690'0000'0000'0000,
                                               0x47ef'ffff'ffff'ffff,
                                               0x2000'0000'0000'0000,
                                               0x5fe0'0000'0000'0000};
  const std::uint64_t format = Below(5);
  for (std::size_t at = 0; at < bytes; at += 8) {
    std::uint64_t value = random_();
    if (format == 1) {
      const auto single = [this] {
        return OneIn(4) ? static_cast<std::uint32_t>(random_())
                        : kSingles[Below(std::size(kSingles))];
      };
      value = single() | std::uint64_t{single()} << 32;
    } else if (format == 2 && !OneIn(4)) {
      value = kDoubles[Below(std::size(kDoubles))];
    } else if (format == 3) {
      value &= OneIn(2) ? 0x7f : 0x0000'007f'0000'007f;
    } else if (format == 4) {
      // Ordinary singles or doubles.
      value = OneIn(2) ? (value & 0x80ff'ffff'80ff'ffff) | 0x3f00'0000'3f00'0000
                       : (value & 0x801f'ffff'ffff'ffff) | 0x3fe0'0000'0000'0000;
    }
    std::memcpy(to + at, &value, 8);
  }
}

void VectorBuilder::FillX87() {
  static constexpr std::uint16_t kExponents[] = {0,      1,      0x3fff, 0x4000, 0x3ffe, 0x7fff,
                                                 0x7ffe, 0x403e, 0x3c01, 0x43fe, 0x3f81, 0x407e,
                                                 0x3bcd, 0x3f6a, 0x400e, 0x401e, 0x3fbe};
  static constexpr std::uint64_t kSignificands[] = {0,
                                                    1,
                                                    0x8000'0000'0000'0000,
                                                    0xc000'0000'0000'0000,
                                                    0xffff'ffff'ffff'ffff,
                                                    0x8000'0000'0000'0001,
                                                    0x4000'0000'0000'0000,
                                                    0xa000'0000'0000'0000,
                                                    0xc90f'daa2'2168'c235};
  const std::uint16_t rounding = static_cast<std::uint16_t>(random_() & 0xf00);
  const auto masks = static_cast<std::uint16_t>(OneIn(3) ? random_() & 0x3f : 0x3f);
  Put<std::uint16_t>(kFcw,
                     static_cast<std::uint16_t>(0x40 | (OneIn(2) ? 0x300 : rounding) | masks));
  std::uint64_t fsw = random_() & 0x7f00;
  if (OneIn(4)) fsw |= random_() & 0x7f;
  if (!OneIn(6)) fsw &= ~std::uint64_t{~masks & 0x3fu};
  if ((fsw & ~masks & 0x3f) != 0) fsw |= 0x8080;
  Put<std::uint16_t>(kFsw, static_cast<std::uint16_t>(fsw));
  Put<std::uint8_t>(kFtw, OneIn(3) ? Byte() : static_cast<std::uint8_t>(OneIn(8) ? 0 : 0xff));
  for (unsigned i = 0; i < 8; ++i) {
    std::uint64_t significand =
        OneIn(2) ? kSignificands[Below(std::size(kSignificands))] : random_();
    auto exponent = static_cast<std::uint16_t>(OneIn(3) ? random_() & 0x7fff
                                                        : kExponents[Below(std::size(kExponents))]);
    if (OneIn(2)) {
      exponent = static_cast<std::uint16_t>(0x3ff8 + Below(48));
      significand |= std::uint64_t{1} << 63;
    }
    if (exponent != 0 && !OneIn(16)) significand |= std::uint64_t{1} << 63;
    if (OneIn(2)) exponent |= 0x8000;
    Put<std::uint64_t>(kSt + 16 * i, significand);
    Put<std::uint16_t>(kSt + 16 * i + 8, exponent);
  }
}

void VectorBuilder::FillState() {
  for (std::uint64_t& value : code_.gpr) value = OneIn(3) ? Below(64) : random_() >> Below(64);
  code_.gpr[4] = area_.data + 0x800;
  code_.rflags = 2 | (random_() & 0x8d5);
  memory_.resize(0x2000);
  for (std::size_t at = 0; at < memory_.size(); at += 64) FillLanes(&memory_[at], 64);
  for (unsigned i = 0; i < 16; ++i) {
    FillLanes(&code_.extended.bytes[kXmm + 16 * i], 16);
    FillLanes(&code_.extended.bytes[NativeExtended::kYmmHigh + 16 * i], 16);
  }
  std::uint32_t mxcsr = 0x1f80;
  if (OneIn(2)) mxcsr |= static_cast<std::uint32_t>(random_()) & 0xe07f;
  if (OneIn(4)) mxcsr = static_cast<std::uint32_t>(random_()) & 0xffff;
  Put<std::uint32_t>(kMxcsr, mxcsr);
  FillX87();
}

// A base register that no implicit operand is, 8 bits of displacement; with VSIB also an index.
void VectorBuilder::EmitAddress(bool memory, bool vsib, std::uint8_t digit) {
  auto& bytes = code_.bytes;
  const auto mod_reg = static_cast<std::uint8_t>(digit << 3);
  if (!memory) {
    bytes.push_back(static_cast<std::uint8_t>(0xc0 | mod_reg | Below(8)));
    return;
  }
  const std::uint8_t base = vsib ? 3 : 6;  // RBX or RSI, or R11 or R14
  const auto displacement = static_cast<std::int8_t>(random_());
  bytes.push_back(static_cast<std::uint8_t>(0x40 | mod_reg | (vsib ? 4 : base)));
  if (vsib) {
    index_ = static_cast<unsigned>(Below(8));
    bytes.push_back(static_cast<std::uint8_t>(Below(4) << 6 | index_ << 3 | base));
    index_ |= (rex_ & 2) != 0 ? 8 : 0;
  }
  bytes.push_back(static_cast<std::uint8_t>(displacement));
  const std::uint64_t address = DataAddress();
  code_.misaligned = address % 16 != 0;
  address_ = address;
  code_.gpr[base | ((rex_ & 1) != 0 ? 8u : 0)] =
      address - static_cast<std::uint64_t>(std::int64_t{displacement});
}

void VectorBuilder::EmitOpcode() {
  auto& bytes = code_.bytes;
  static constexpr std::uint8_t kPrefixes[] = {0, 0x66, 0xf3, 0xf2};
  const unsigned prefix = static_cast<unsigned>(Below(4));
  const bool memory = OneIn(2);
  const auto digit = static_cast<std::uint8_t>(Below(8));
  rex_ = OneIn(2) ? static_cast<unsigned>(Below(16)) : 0;
  const std::uint64_t kind = Below(8);
  if (kind == 0) {  // x87
    rex_ &= 9;
    if (OneIn(32)) bytes.push_back(0x66);
    if (rex_ != 0) bytes.push_back(static_cast<std::uint8_t>(0x40 | rex_));
    bytes.push_back(OneIn(32) ? 0x9b : static_cast<std::uint8_t>(0xd8 + Below(8)));
    if (bytes.back() != 0x9b) EmitAddress(memory, false, digit);
    return;
  }
  const std::uint64_t chosen = Below(8);
  const unsigned map = chosen < 4 ? 1 : chosen < 6 ? 2 : 3;
  const std::uint8_t opcode = Byte();
  if (kind < 4) {
    if (prefix != 0) bytes.push_back(kPrefixes[prefix]);
    if (rex_ != 0) bytes.push_back(static_cast<std::uint8_t>(0x40 | rex_));
    bytes.push_back(0x0f);
    if (map != 1) bytes.push_back(map == 2 ? 0x38 : 0x3a);
  } else {
    const auto vvvv = static_cast<unsigned>(OneIn(3) ? 15 : Below(16));
    bytes.push_back(0xc4);
    bytes.push_back(static_cast<std::uint8_t>((~rex_ << 5 & 0xe0) | map));
    bytes.push_back(static_cast<std::uint8_t>((OneIn(2) ? 0x80u : 0) | vvvv << 3 |
                                              (OneIn(2) ? 4u : 0) | prefix));
  }
  if (kind < 4 && OneIn(64)) {  // FXSAVE, XSAVE and their like
    bytes.back() = 0x0f;
    if (bytes.size() > 1 && bytes[bytes.size() - 2] == 0x0f) bytes.pop_back();
    bytes.push_back(OneIn(4) ? 0xc7 : 0xae);
    EmitAddress(true, false, digit);
    return;
  }
  bytes.push_back(opcode);
  const bool vsib = kind >= 4 && map == 2 && opcode >= 0x90 && opcode <= 0x93;
  EmitAddress(memory || vsib, vsib, digit);
  if (map == 3 || (map == 1 && (((opcode & 0xfc) == 0x70) || (opcode >= 0xc2 && opcode <= 0xc6)))) {
    bytes.push_back(OneIn(2) ? static_cast<std::uint8_t>(Below(16)) : Byte());
  }
}

bool IsWanted(ZydisISASet set) {
  switch (set) {
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSEMXCSR:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSE3X87:
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
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEC:
    case ZYDIS_ISA_SET_XSAVEOPT:
      return true;
    default:
      return false;
  }
}

// Components that every host has, and an area that XRSTOR takes more often than not.
void VectorBuilder::SettleXsave() {
  code_.gpr[0] &= 7;
  code_.gpr[2] = 0;
  const std::uint64_t offset = address_ - area_.data;
  if (memory_.empty() || offset > memory_.size() - 1024) return;
  const std::uint64_t loaded = OneIn(8) ? random_() : Below(8);
  std::uint64_t header[8] = {loaded};
  if (OneIn(3)) header[1] = std::uint64_t{1} << 63 | loaded | Below(8);
  if (OneIn(16)) header[Below(8)] = random_();
  std::memcpy(&memory_[offset + NativeExtended::kHeader], header, sizeof(header));
  if (!OneIn(8)) std::memset(&memory_[offset + kMxcsr + 2], 0, 2);
}

bool VectorBuilder::Settle() {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (ZYAN_FAILED(ZydisDecoderDecodeFull(&decoder, code_.bytes.data(), code_.bytes.size(),
                                         &instruction, operands)) ||
      instruction.length != code_.bytes.size()) {
    return false;
  }
  const bool x87 = instruction.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
  if (!x87 && !IsWanted(instruction.meta.isa_set)) return false;
  if (instruction.meta.category == ZYDIS_CATEGORY_PREFETCH) return false;
  code_.name = ZydisMnemonicGetString(instruction.mnemonic);
  switch (instruction.meta.isa_set) {
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEC:
    case ZYDIS_ISA_SET_XSAVEOPT:
      SettleXsave();
      break;
    default:
      break;
  }
  switch (instruction.mnemonic) {
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
      code_.gpr[7] = DataAddress();
      break;
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_XSETBV:
    case ZYDIS_MNEMONIC_XGETBV:
      return false;
    default:
      break;
  }
  if (instruction.meta.isa_set == ZYDIS_ISA_SET_AVX2GATHER) {
    // Small indices, in both widths.
    for (unsigned lane = 0; lane < 8; ++lane) {
      const unsigned at =
          (lane < 4 ? kXmm : NativeExtended::kYmmHigh) + 16 * index_ + 4 * (lane & 3);
      Put<std::uint32_t>(
          at, lane % 2 == 0 || operands[1].size == 0 ? static_cast<std::uint32_t>(Below(64)) : 0);
    }
  }
  return true;
}

bool VectorBuilder::Build(RandomCode& code) {
  code_ = {};
  code_.optional = true;
  EmitOpcode();
  if (!Settle()) return false;
  const RandomCode emitted = code_;
  FillState();
  // What the address needs stays.
  Settle();
  code_.bytes = emitted.bytes;
  for (unsigned i = 0; i < 16; ++i) {
    if (emitted.gpr[i] >= 0x10'0000) code_.gpr[i] = emitted.gpr[i];
  }
  code_.gpr[4] = area_.data + 0x800;
  code = code_;
  return true;
}

}  // namespace

RandomCode MakeRandomVectorCode(Random& random, const CodeArea& area,
                                std::vector<std::uint8_t>& memory) {
  VectorBuilder builder(random, area, memory);
  RandomCode code;
  while (!builder.Build(code)) {
  }
  return code;
}

}  // namespace pagesaw::cpu
