#include "cpu/random_code.h"

#include <Zydis/Zydis.h>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kCf = 1, kPf = 4, kAf = 16, kZf = 64, kSf = 128, kDf = 1024, kOf = 2048;

enum Trait : unsigned {
  kByte = 1,      // a byte form
  kLockable = 2,  // if it has a memory operand
  kMemory = 4,    // takes a memory operand only
  kRegister = 8,  // takes a register only
  kWord66 = 16,   // 66 does not select 16 bits: not used
  kVex = 32,
  kPlusReg = 64,    // the opcode's low bits are a register
  kRepeats = 128,   // may have REP or REPNE
  kBranch = 256,    // the immediate is relative to the next instruction
  kIndirect = 512,  // the operand is an address of code
  kReturn = 1024,
  kFarBits = 2048,  // a bit offset in a register
  kStack = 4096,
};

// One row of the manual's opcode map. `digit`: /0 to /7, 8 for /r, -1 for no ModRM byte.
// `immediate`: bytes, or 'z' for 2, 4, 4 or 'v' for 2, 4, 8 by operand size.
struct Row {
  const char* name;
  std::uint8_t prefix;
  std::uint8_t map;
  std::uint8_t opcode;
  int digit;
  char immediate;
  unsigned traits;
  Undefined undefined = Undefined::kNothing;
};

constexpr Row kRows[] = {
#define PAGESAW_ARITHMETIC(NAME, BASE, DIGIT, LOCK, OPEN)                                         \
  {NAME, 0, 0, (BASE), 8, 0, kByte | (LOCK), OPEN}, {NAME, 0, 0, (BASE) + 1, 8, 0, (LOCK), OPEN}, \
      {NAME, 0, 0, (BASE) + 2, 8, 0, kByte, OPEN}, {NAME, 0, 0, (BASE) + 3, 8, 0, 0, OPEN},       \
      {NAME, 0, 0, (BASE) + 4, -1, 1, kByte, OPEN}, {NAME, 0, 0, (BASE) + 5, -1, 'z', 0, OPEN},   \
      {NAME, 0, 0, 0x80, DIGIT, 1, kByte | (LOCK), OPEN},                                         \
      {NAME, 0, 0, 0x81, DIGIT, 'z', (LOCK), OPEN}, {                                             \
    NAME, 0, 0, 0x83, DIGIT, 1, (LOCK), OPEN                                                      \
  }
    PAGESAW_ARITHMETIC("add", 0x00, 0, kLockable, Undefined::kNothing),
    PAGESAW_ARITHMETIC("or", 0x08, 1, kLockable, Undefined::kLogic),
    PAGESAW_ARITHMETIC("adc", 0x10, 2, kLockable, Undefined::kNothing),
    PAGESAW_ARITHMETIC("sbb", 0x18, 3, kLockable, Undefined::kNothing),
    PAGESAW_ARITHMETIC("and", 0x20, 4, kLockable, Undefined::kLogic),
    PAGESAW_ARITHMETIC("sub", 0x28, 5, kLockable, Undefined::kNothing),
    PAGESAW_ARITHMETIC("xor", 0x30, 6, kLockable, Undefined::kLogic),
    PAGESAW_ARITHMETIC("cmp", 0x38, 7, 0, Undefined::kNothing),
#undef PAGESAW_ARITHMETIC
#define PAGESAW_SHIFT(NAME, DIGIT, OPEN)                                                \
  {NAME, 0, 0, 0xc0, DIGIT, 1, kByte, OPEN}, {NAME, 0, 0, 0xc1, DIGIT, 1, 0, OPEN},     \
      {NAME, 0, 0, 0xd0, DIGIT, 0, kByte, OPEN}, {NAME, 0, 0, 0xd1, DIGIT, 0, 0, OPEN}, \
      {NAME, 0, 0, 0xd2, DIGIT, 0, kByte, OPEN}, {                                      \
    NAME, 0, 0, 0xd3, DIGIT, 0, 0, OPEN                                                 \
  }
    PAGESAW_SHIFT("rol", 0, Undefined::kRotate),
    PAGESAW_SHIFT("ror", 1, Undefined::kRotate),
    PAGESAW_SHIFT("rcl", 2, Undefined::kRotate),
    PAGESAW_SHIFT("rcr", 3, Undefined::kRotate),
    PAGESAW_SHIFT("shl", 4, Undefined::kShift),
    PAGESAW_SHIFT("shr", 5, Undefined::kShift),
    PAGESAW_SHIFT("sal", 6, Undefined::kShift),
    PAGESAW_SHIFT("sar", 7, Undefined::kShift),
#undef PAGESAW_SHIFT
    {"shld", 0, 1, 0xa4, 8, 1, 0, Undefined::kDoubleShift},
    {"shld", 0, 1, 0xa5, 8, 0, 0, Undefined::kDoubleShift},
    {"shrd", 0, 1, 0xac, 8, 1, 0, Undefined::kDoubleShift},
    {"shrd", 0, 1, 0xad, 8, 0, 0, Undefined::kDoubleShift},
    {"test", 0, 0, 0x84, 8, 0, kByte, Undefined::kLogic},
    {"test", 0, 0, 0x85, 8, 0, 0, Undefined::kLogic},
    {"test", 0, 0, 0xa8, -1, 1, kByte, Undefined::kLogic},
    {"test", 0, 0, 0xa9, -1, 'z', 0, Undefined::kLogic},
    {"test", 0, 0, 0xf6, 0, 1, kByte, Undefined::kLogic},
    {"test", 0, 0, 0xf7, 0, 'z', 0, Undefined::kLogic},
    {"not", 0, 0, 0xf6, 2, 0, kByte | kLockable},
    {"not", 0, 0, 0xf7, 2, 0, kLockable},
    {"neg", 0, 0, 0xf6, 3, 0, kByte | kLockable},
    {"neg", 0, 0, 0xf7, 3, 0, kLockable},
    {"mul", 0, 0, 0xf6, 4, 0, kByte, Undefined::kMultiply},
    {"mul", 0, 0, 0xf7, 4, 0, 0, Undefined::kMultiply},
    {"imul", 0, 0, 0xf6, 5, 0, kByte, Undefined::kMultiply},
    {"imul", 0, 0, 0xf7, 5, 0, 0, Undefined::kMultiply},
    {"imul", 0, 1, 0xaf, 8, 0, 0, Undefined::kMultiply},
    {"imul", 0, 0, 0x69, 8, 'z', 0, Undefined::kMultiply},
    {"imul", 0, 0, 0x6b, 8, 1, 0, Undefined::kMultiply},
    {"div", 0, 0, 0xf6, 6, 0, kByte, Undefined::kDivide},
    {"div", 0, 0, 0xf7, 6, 0, 0, Undefined::kDivide},
    {"idiv", 0, 0, 0xf6, 7, 0, kByte, Undefined::kDivide},
    {"idiv", 0, 0, 0xf7, 7, 0, 0, Undefined::kDivide},
    {"inc", 0, 0, 0xfe, 0, 0, kByte | kLockable},
    {"inc", 0, 0, 0xff, 0, 0, kLockable},
    {"dec", 0, 0, 0xfe, 1, 0, kByte | kLockable},
    {"dec", 0, 0, 0xff, 1, 0, kLockable},
    {"mov", 0, 0, 0x88, 8, 0, kByte},
    {"mov", 0, 0, 0x89, 8, 0, 0},
    {"mov", 0, 0, 0x8a, 8, 0, kByte},
    {"mov", 0, 0, 0x8b, 8, 0, 0},
    {"mov", 0, 0, 0xb0, -1, 1, kByte | kPlusReg},
    {"mov", 0, 0, 0xb8, -1, 'v', kPlusReg},
    {"mov", 0, 0, 0xc6, 0, 1, kByte},
    {"mov", 0, 0, 0xc7, 0, 'z', 0},
    {"movzx", 0, 1, 0xb6, 8, 0, 0},
    {"movzx", 0, 1, 0xb7, 8, 0, 0},
    {"movsx", 0, 1, 0xbe, 8, 0, 0},
    {"movsx", 0, 1, 0xbf, 8, 0, 0},
    {"movsxd", 0, 0, 0x63, 8, 0, 0},
    {"lea", 0, 0, 0x8d, 8, 0, kMemory},
    {"xchg", 0, 0, 0x86, 8, 0, kByte | kLockable},
    {"xchg", 0, 0, 0x87, 8, 0, kLockable},
    {"xchg", 0, 0, 0x90, -1, 0, kPlusReg},
    {"xadd", 0, 1, 0xc0, 8, 0, kByte | kLockable},
    {"xadd", 0, 1, 0xc1, 8, 0, kLockable},
    {"cmpxchg", 0, 1, 0xb0, 8, 0, kByte | kLockable},
    {"cmpxchg", 0, 1, 0xb1, 8, 0, kLockable},
    {"cmpxchg8b", 0, 1, 0xc7, 1, 0, kLockable | kMemory},
    {"bt", 0, 1, 0xa3, 8, 0, kFarBits, Undefined::kBitTest},
    {"bts", 0, 1, 0xab, 8, 0, kFarBits | kLockable, Undefined::kBitTest},
    {"btr", 0, 1, 0xb3, 8, 0, kFarBits | kLockable, Undefined::kBitTest},
    {"btc", 0, 1, 0xbb, 8, 0, kFarBits | kLockable, Undefined::kBitTest},
    {"bt", 0, 1, 0xba, 4, 1, 0, Undefined::kBitTest},
    {"bts", 0, 1, 0xba, 5, 1, kLockable, Undefined::kBitTest},
    {"btr", 0, 1, 0xba, 6, 1, kLockable, Undefined::kBitTest},
    {"btc", 0, 1, 0xba, 7, 1, kLockable, Undefined::kBitTest},
    {"bsf", 0, 1, 0xbc, 8, 0, 0, Undefined::kScan},
    {"bsr", 0, 1, 0xbd, 8, 0, 0, Undefined::kScan},
    {"tzcnt", 0xf3, 1, 0xbc, 8, 0, 0, Undefined::kCount},
    {"lzcnt", 0xf3, 1, 0xbd, 8, 0, 0, Undefined::kCount},
    {"popcnt", 0xf3, 1, 0xb8, 8, 0, 0},
    {"bswap", 0, 1, 0xc8, -1, 0, kPlusReg},
    {"movbe", 0, 2, 0xf0, 8, 0, kMemory},
    {"movbe", 0, 2, 0xf1, 8, 0, kMemory},
    {"movnti", 0, 1, 0xc3, 8, 0, kMemory | kWord66},
    {"crc32", 0xf2, 2, 0xf0, 8, 0, kByte},
    {"crc32", 0xf2, 2, 0xf1, 8, 0, 0},
    {"adcx", 0x66, 2, 0xf6, 8, 0, kWord66},
    {"adox", 0xf3, 2, 0xf6, 8, 0, kWord66},
    {"andn", 0, 2, 0xf2, 8, 0, kVex, Undefined::kAndn},
    {"bextr", 0, 2, 0xf7, 8, 0, kVex, Undefined::kBextr},
    {"blsr", 0, 2, 0xf3, 1, 0, kVex, Undefined::kBls},
    {"blsmsk", 0, 2, 0xf3, 2, 0, kVex, Undefined::kBls},
    {"blsi", 0, 2, 0xf3, 3, 0, kVex, Undefined::kBls},
    {"bzhi", 0, 2, 0xf5, 8, 0, kVex, Undefined::kBls},
    {"mulx", 0xf2, 2, 0xf6, 8, 0, kVex},
    {"pdep", 0xf2, 2, 0xf5, 8, 0, kVex},
    {"pext", 0xf3, 2, 0xf5, 8, 0, kVex},
    {"rorx", 0xf2, 3, 0xf0, 8, 1, kVex},
    {"sarx", 0xf3, 2, 0xf7, 8, 0, kVex},
    {"shlx", 0x66, 2, 0xf7, 8, 0, kVex},
    {"shrx", 0xf2, 2, 0xf7, 8, 0, kVex},
    {"setcc", 0, 1, 0x90, 0, 0, kByte},
    {"cmovcc", 0, 1, 0x40, 8, 0, 0},
    {"jcc", 0, 0, 0x70, -1, 1, kBranch | kWord66},
    {"jcc", 0, 1, 0x80, -1, 4, kBranch | kWord66},
    {"jmp", 0, 0, 0xeb, -1, 1, kBranch | kWord66},
    {"jmp", 0, 0, 0xe9, -1, 4, kBranch | kWord66},
    {"call", 0, 0, 0xe8, -1, 4, kBranch | kWord66 | kStack},
    {"loopne", 0, 0, 0xe0, -1, 1, kBranch | kWord66},
    {"loope", 0, 0, 0xe1, -1, 1, kBranch | kWord66},
    {"loop", 0, 0, 0xe2, -1, 1, kBranch | kWord66},
    {"jrcxz", 0, 0, 0xe3, -1, 1, kBranch | kWord66},
    {"call", 0, 0, 0xff, 2, 0, kIndirect | kWord66 | kStack},
    {"jmp", 0, 0, 0xff, 4, 0, kIndirect | kWord66},
    {"ret", 0, 0, 0xc3, -1, 0, kReturn | kWord66 | kStack},
    {"ret", 0, 0, 0xc2, -1, 2, kReturn | kWord66 | kStack},
    {"push", 0, 0, 0x50, -1, 0, kPlusReg | kStack},
    {"pop", 0, 0, 0x58, -1, 0, kPlusReg | kStack},
    {"push", 0, 0, 0x68, -1, 'z', kStack},
    {"push", 0, 0, 0x6a, -1, 1, kStack},
    {"push", 0, 0, 0xff, 6, 0, kStack},
    {"pop", 0, 0, 0x8f, 0, 0, kStack},
    {"enter", 0, 0, 0xc8, -1, 3, kStack},
    {"leave", 0, 0, 0xc9, -1, 0, kStack},
    {"xlat", 0, 0, 0xd7, -1, 0, kWord66},
    {"cbw", 0, 0, 0x98, -1, 0, 0},
    {"cwd", 0, 0, 0x99, -1, 0, 0},
    {"sahf", 0, 0, 0x9e, -1, 0, 0},
    {"lahf", 0, 0, 0x9f, -1, 0, 0},
    {"cmc", 0, 0, 0xf5, -1, 0, 0},
    {"clc", 0, 0, 0xf8, -1, 0, 0},
    {"stc", 0, 0, 0xf9, -1, 0, 0},
    {"cld", 0, 0, 0xfc, -1, 0, 0},
    {"std", 0, 0, 0xfd, -1, 0, 0},
    {"movs", 0, 0, 0xa4, -1, 0, kByte | kRepeats},
    {"movs", 0, 0, 0xa5, -1, 0, kRepeats},
    {"cmps", 0, 0, 0xa6, -1, 0, kByte | kRepeats},
    {"cmps", 0, 0, 0xa7, -1, 0, kRepeats},
    {"stos", 0, 0, 0xaa, -1, 0, kByte | kRepeats},
    {"stos", 0, 0, 0xab, -1, 0, kRepeats},
    {"lods", 0, 0, 0xac, -1, 0, kByte | kRepeats},
    {"lods", 0, 0, 0xad, -1, 0, kRepeats},
    {"scas", 0, 0, 0xae, -1, 0, kByte | kRepeats},
    {"scas", 0, 0, 0xaf, -1, 0, kRepeats},
    {"nop", 0, 1, 0x1f, 0, 0, 0},
    {"nop", 0, 1, 0x19, 8, 0, 0},
    {"prefetch", 0, 1, 0x18, 1, 0, kMemory},
    {"prefetchw", 0, 1, 0x0d, 1, 0, kMemory},
    {"clflush", 0, 1, 0xae, 7, 0, kMemory | kWord66},
    {"endbr64", 0xf3, 1, 0x1e, 7, 0, kRegister | kWord66},
    {"ud1", 0, 1, 0xb9, 8, 0, 0},
    {"ud2", 0, 1, 0x0b, -1, 0, 0},
};

class Builder {
 public:
  Builder(Random& random, const CodeArea& area, std::vector<std::uint8_t>& memory)
      : random_(random), area_(area), memory_(memory) {}

  // False: not fit to be run; try again.
  bool Build(RandomCode& code);

 private:
  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }
  bool OneIn(std::uint64_t n) { return Below(n) == 0; }
  std::uint64_t Value();
  std::uint64_t DataAddress();
  void FillState();
  void EmitFlagMaker();
  void EmitLast(const Row& row);
  void EmitVexPrefix(const Row& row, bool r, bool x, bool b, bool w);
  void EmitModRm(const Row& row, bool memory, unsigned reg, unsigned& rex);
  void EmitImmediate(const Row& row, unsigned operand_bytes);
  void Emit(std::uint64_t value, unsigned bytes);
  bool Settle(const Row& row);
  bool IsConfined(const ZydisDecodedInstruction& instruction, const ZydisDecodedOperand* operands);
  void NoteUndefined(const Row& row, const ZydisDecodedInstruction& instruction,
                     const ZydisDecodedOperand* operands);

  Random& random_;
  const CodeArea& area_;
  std::vector<std::uint8_t>& memory_;
  RandomCode code_;
  // Of the memory operand of the last instruction.
  std::vector<std::uint8_t> address_bytes_;
  bool relative_to_rip_ = false;
  std::uint64_t wanted_ = 0;
  int base_ = -1;
  int index_ = -1;
  unsigned scale_ = 0;
  std::int64_t displacement_ = 0;
  bool address_32_ = false;
  bool wide_ = false;  // REX.W
  int changed_ = -1;   // by the instruction before the last
};

std::uint64_t Builder::Value() {
  static constexpr std::uint64_t kEdges[] = {0,
                                             1,
                                             2,
                                             7,
                                             8,
                                             15,
                                             16,
                                             31,
                                             32,
                                             33,
                                             63,
                                             64,
                                             0x7f,
                                             0x80,
                                             0xff,
                                             0x7fff,
                                             0x8000,
                                             0xffff,
                                             0x7fff'ffff,
                                             0x8000'0000,
                                             0xffff'ffff,
                                             0x1'0000'0000,
                                             0x7fff'ffff'ffff'ffff,
                                             0x8000'0000'0000'0000,
                                             ~std::uint64_t{0},
                                             0xff'ffff'ffff'ff80};
  switch (Below(6)) {
    case 0:
      return kEdges[Below(std::size(kEdges))];
    case 1:
      return Below(256);
    case 2:
      return random_() >> Below(64);
    case 3:
      return static_cast<std::uint64_t>(static_cast<std::int64_t>(random_()) >> Below(64));
    default:
      return random_();
  }
}

// Mostly in the two pages, often over their common edge, sometimes over the outer ones.
std::uint64_t Builder::DataAddress() {
  switch (Below(16)) {
    case 0:
      return area_.data + 0x1000 - Below(24);
    case 1:
      return area_.data + 0x2000 - Below(24);
    case 2:
      return area_.data - Below(24);
    case 3:
      return area_.data + 0x2000 + Below(0x3000);
    default:
      return (area_.data + 0x200 + Below(0x1c00)) & ~(OneIn(2) ? std::uint64_t{0} : 15);
  }
}

void Builder::FillState() {
  for (std::uint64_t& value : code_.gpr) value = Value();
  code_.gpr[4] = area_.data + 0x800 + Below(0x100) * 8;
  code_.rflags = 2 | (random_() & (kCf | kPf | kAf | kZf | kSf | kOf)) | (OneIn(3) ? kDf : 0);
  memory_.resize(0x2000);
  for (std::size_t i = 0; i < memory_.size(); i += 8) {
    const std::uint64_t value = random_();
    std::memcpy(&memory_[i], &value, 8);
  }
  // Runs of equal bytes, for CMPS and SCAS.
  if (OneIn(2)) std::fill(memory_.begin() + 0x400, memory_.begin() + 0x1400, memory_[0]);
}

void Builder::Emit(std::uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) {
    code_.bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
}

// An instruction between registers that leaves flags of its kind behind, every one defined but AF
// of logic, which the flags under test must not depend on.
void Builder::EmitFlagMaker() {
  static constexpr std::uint8_t kOpcodes[] = {0x00, 0x10, 0x18, 0x28, 0x38};  // ADD ADC SBB SUB CMP
  const unsigned size = static_cast<unsigned>(Below(4));                      // 8, 16, 32, 64 bits
  if (size == 1) Emit(0x66, 1);
  // Registers 8 to 15 only: the others mean something to the instruction under test.
  Emit(0x45 | (size == 3 ? 8 : 0), 1);
  const std::uint8_t wide = size == 0 ? 0 : 1;
  const std::uint64_t destination = Below(8);
  changed_ = static_cast<int>(8 + destination);
  if (OneIn(4)) {
    Emit(0xfe | wide, 1);
    Emit(0xc0 | Below(2) << 3 | destination, 1);
  } else {
    Emit(kOpcodes[Below(std::size(kOpcodes))] | wide, 1);
    Emit(0xc0 | Below(8) << 3 | destination, 1);
  }
}

void Builder::EmitVexPrefix(const Row& row, bool r, bool x, bool b, bool w) {
  const unsigned pp = row.prefix == 0x66 ? 1 : row.prefix == 0xf3 ? 2 : row.prefix == 0xf2 ? 3 : 0;
  const bool no_second = row.opcode == 0xf0 && row.map == 3;
  const unsigned vvvv = no_second ? 15 : static_cast<unsigned>(Below(16));
  Emit(0xc4, 1);
  Emit((r ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | row.map, 1);
  Emit((w ? 0x80 : 0) | vvvv << 3 | pp, 1);
}

void Builder::EmitModRm(const Row&, bool memory, unsigned reg, unsigned& rex) {
  address_bytes_.clear();
  base_ = index_ = -1;
  relative_to_rip_ = false;
  displacement_ = 0;
  scale_ = 0;
  const auto put = [this](std::uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) {
      address_bytes_.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    }
  };
  if (!memory) {
    put(0xc0 | reg << 3 | Below(8), 1);
    return;
  }
  wanted_ = DataAddress();
  const unsigned mod = static_cast<unsigned>(Below(3));
  const unsigned rm = static_cast<unsigned>(Below(8));
  put(mod << 6 | reg << 3 | rm, 1);
  unsigned displacement_bytes = mod == 0 ? 0 : mod == 1 ? 1 : 4;
  if (rm == 4) {
    const unsigned sib = static_cast<unsigned>(Below(256));
    put(sib, 1);
    const unsigned index = (sib >> 3 & 7) | ((rex & 2) != 0 ? 8 : 0);
    if (index != 4) index_ = static_cast<int>(index);
    scale_ = sib >> 6;
    if ((sib & 7) == 5 && mod == 0) {
      displacement_bytes = 4;
    } else {
      base_ = static_cast<int>((sib & 7) | ((rex & 1) != 0 ? 8 : 0));
    }
  } else if (rm == 5 && mod == 0) {
    relative_to_rip_ = true;
    displacement_bytes = 4;
  } else {
    base_ = static_cast<int>(rm | ((rex & 1) != 0 ? 8 : 0));
  }
  if (index_ >= 0) code_.gpr[static_cast<unsigned>(index_)] = Below(64);
  if (base_ < 0 && !relative_to_rip_) {
    const std::uint64_t scaled =
        index_ < 0 ? 0 : code_.gpr[static_cast<unsigned>(index_)] << scale_;
    displacement_ = static_cast<std::int64_t>(wanted_ - scaled);
  } else if (displacement_bytes == 1) {
    displacement_ = static_cast<std::int8_t>(random_());
  } else if (displacement_bytes == 4) {
    displacement_ = static_cast<std::int32_t>(random_());
  }
  put(static_cast<std::uint64_t>(displacement_), displacement_bytes);
  if (base_ >= 0) {
    // index == base: solved by trying; the check of confinement sorts out the rest.
    std::uint64_t& base = code_.gpr[static_cast<unsigned>(base_)];
    const std::uint64_t rest = wanted_ - static_cast<std::uint64_t>(displacement_);
    base = index_ < 0        ? rest
           : index_ == base_ ? rest / (1 + (std::uint64_t{1} << scale_))
                             : rest - (code_.gpr[static_cast<unsigned>(index_)] << scale_);
    if (address_32_ && OneIn(2)) base |= std::uint64_t{0xdead'beef} << 32;
  }
}

void Builder::EmitImmediate(const Row& row, unsigned operand_bytes) {
  const unsigned bytes = row.immediate == 'z'   ? std::min(operand_bytes, 4u)
                         : row.immediate == 'v' ? operand_bytes
                                                : static_cast<unsigned>(row.immediate);
  if (bytes == 0) return;
  if ((row.traits & kBranch) != 0) {
    const std::uint64_t next = area_.code + code_.bytes.size() + bytes;
    Emit(area_.target - next, bytes);
    return;
  }
  if (bytes == 3) {  // ENTER
    Emit(OneIn(3) ? Below(0x80) : 0, 2);
    Emit(OneIn(2) ? Below(2) : Below(256), 1);
    return;
  }
  if ((row.traits & kReturn) != 0) return Emit(Below(64), bytes);
  Emit(Value(), bytes);
}

void Builder::EmitLast(const Row& row) {
  code_.name = row.name;
  code_.last = code_.bytes.size();
  address_32_ = OneIn(8);
  const bool has_modrm = row.digit >= 0;
  const bool memory =
      has_modrm && ((row.traits & kMemory) != 0 || ((row.traits & kRegister) == 0 && OneIn(2)));
  const bool locked = (row.traits & kLockable) != 0 && (memory ? OneIn(2) : OneIn(64));
  const bool vex = (row.traits & kVex) != 0;
  bool word = !vex && (row.traits & kWord66) == 0 && OneIn(4);
  unsigned rex = OneIn(2) ? static_cast<unsigned>(Below(16)) : 0;
  if ((row.traits & kBranch) != 0) rex &= ~8u;
  bool have_rex = rex != 0 || OneIn(4);
  if (vex) have_rex = false;

  if (address_32_) Emit(0x67, 1);
  if (OneIn(16)) Emit(OneIn(2) ? 0x3e : 0x26, 1);
  if (locked) Emit(0xf0, 1);
  if (word) Emit(0x66, 1);
  if ((row.traits & kRepeats) != 0 && !OneIn(3)) Emit(OneIn(2) ? 0xf3 : 0xf2, 1);
  if (!vex && row.prefix != 0) Emit(row.prefix, 1);
  unsigned reg = row.digit == 8 ? static_cast<unsigned>(Below(8))
                                : static_cast<unsigned>(std::max(row.digit, 0));
  if (vex) {
    rex = static_cast<unsigned>(Below(16));
    EmitVexPrefix(row, (rex & 4) != 0, (rex & 2) != 0, (rex & 1) != 0, (rex & 8) != 0);
  } else {
    if (have_rex) Emit(0x40 | rex, 1);
    wide_ = (rex & 8) != 0;
    if (row.map != 0) Emit(0x0f, 1);
    if (row.map == 2) Emit(0x38, 1);
    if (row.map == 3) Emit(0x3a, 1);
  }
  unsigned opcode = row.opcode;
  if ((row.traits & kPlusReg) != 0) opcode += static_cast<unsigned>(Below(8));
  const bool condition = std::string(row.name).ends_with("cc");
  if (condition) opcode += static_cast<unsigned>(Below(16));
  Emit(opcode, 1);
  const unsigned operand_bytes = (row.traits & kByte) != 0 ? 1 : (rex & 8) != 0 ? 8 : word ? 2 : 4;
  if (has_modrm) {
    EmitModRm(row, memory, reg, rex);
    const std::size_t at = code_.bytes.size();
    code_.bytes.insert(code_.bytes.end(), address_bytes_.begin(), address_bytes_.end());
    EmitImmediate(row, operand_bytes);
    if (relative_to_rip_) {
      const std::uint64_t next = area_.code + code_.bytes.size();
      const auto displacement = static_cast<std::uint32_t>(wanted_ - next);
      std::memcpy(&code_.bytes[at + 1], &displacement, 4);
    }
  } else {
    EmitImmediate(row, operand_bytes);
  }
}

// Registers that the instruction uses as addresses, and what else must be so for the run to make
// sense.
bool Builder::Settle(const Row& row) {
  auto& gpr = code_.gpr;
  const std::string name = row.name;
  if ((row.traits & kRepeats) != 0) {
    gpr[6] = DataAddress();
    gpr[7] = OneIn(3) ? gpr[6] + Below(32) - 16 : DataAddress();
    gpr[1] = OneIn(8) ? 0 : Below(OneIn(4) ? 1200 : 40);
    if (address_32_) {
      for (const unsigned i : {1u, 6u, 7u}) gpr[i] |= random_() << 32;
    }
    if (OneIn(2)) gpr[0] = memory_[0] * 0x0101'0101'0101'0101u;
  }
  if (name == "xlat") gpr[3] = DataAddress() | (address_32_ ? random_() << 32 : 0);
  if (name == "enter" || name == "leave") gpr[5] = DataAddress();
  if (name.starts_with("loop") || name == "jrcxz") gpr[1] = OneIn(2) ? Below(3) : Value();
  if (name.ends_with("div") && OneIn(2)) gpr[2] = OneIn(2) ? 0 : ~std::uint64_t{0};
  if (name.starts_with("cmpxchg8b") && OneIn(2)) {
    const std::uint64_t offset = wanted_ - area_.data;
    if (offset < memory_.size() - 16) {
      std::memcpy(&gpr[0], &memory_[offset], 8);
      gpr[2] = gpr[0] >> 32;
      if (wide_) {
        std::memcpy(&gpr[2], &memory_[offset + 8], 8);
      }
    }
  }
  if ((row.traits & kReturn) != 0) {
    gpr[4] = area_.data + 0x800 + Below(0x100) * 8;
    std::memcpy(&memory_[gpr[4] - area_.data], &area_.target, 8);
  }

  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (ZYAN_FAILED(ZydisDecoderDecodeFull(&decoder, &code_.bytes[code_.last],
                                         code_.bytes.size() - code_.last, &instruction,
                                         operands))) {
    // Refused by Zydis: only what both sides must refuse is worth a run, LOCK that has no place.
    return code_.bytes[code_.last] == 0xf0;
  }
  if ((row.traits & kIndirect) != 0) {
    if (operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
      const int reg = ZydisRegisterGetId(operands[0].reg.value);
      if (reg == 4 || reg == changed_) return false;
      gpr[static_cast<unsigned>(reg)] = area_.target;
    } else {
      const std::uint64_t offset = wanted_ - area_.data;
      if (offset > memory_.size() - 8) return false;
      std::memcpy(&memory_[offset], &area_.target, 8);
    }
  }
  if ((row.traits & kFarBits) != 0 && operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    const auto reg = static_cast<unsigned>(ZydisRegisterGetId(operands[1].reg.value));
    if (operands[1].size >= 32 && static_cast<int>(reg) != base_ &&
        static_cast<int>(reg) != index_) {
      gpr[reg] = static_cast<std::uint64_t>(static_cast<std::int16_t>(random_()));
    }
  }
  if (!IsConfined(instruction, operands)) return false;
  NoteUndefined(row, instruction, operands);
  return true;
}

// Native code must not reach memory that is not the test's.
bool Builder::IsConfined(const ZydisDecodedInstruction& instruction,
                         const ZydisDecodedOperand* operands) {
  constexpr std::uint64_t kSlack = 0x8000;
  const auto inside = [this](std::uint64_t address) {
    return address - (area_.data - kSlack) < 2 * kSlack + 0x4000;
  };
  for (unsigned i = 0; i < instruction.operand_count; ++i) {
    const ZydisDecodedOperand& operand = operands[i];
    if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    if (operand.mem.type != ZYDIS_MEMOP_TYPE_MEM) continue;
    if (changed_ >= 0 && (base_ == changed_ || index_ == changed_)) return false;
    ZydisRegisterContext context = {};
    for (unsigned reg = 0; reg < 16; ++reg) {
      context.values[ZYDIS_REGISTER_RAX + reg] = code_.gpr[reg];
      context.values[ZYDIS_REGISTER_EAX + reg] = static_cast<std::uint32_t>(code_.gpr[reg]);
    }
    ZyanU64 address = 0;
    if (ZYAN_FAILED(ZydisCalcAbsoluteAddressEx(&instruction, &operand, area_.code + code_.last,
                                               &context, &address))) {
      return false;
    }
    if (!inside(address)) return false;
    // A bit offset moves the address.
    if (instruction.operand_count_visible > 1 && operands[1].size >= 32 &&
        operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER && i == 0 &&
        (instruction.mnemonic == ZYDIS_MNEMONIC_BT || instruction.mnemonic == ZYDIS_MNEMONIC_BTS ||
         instruction.mnemonic == ZYDIS_MNEMONIC_BTR ||
         instruction.mnemonic == ZYDIS_MNEMONIC_BTC)) {
      const int reg = ZydisRegisterGetId(operands[1].reg.value);
      if (reg == changed_) return false;
      const std::uint64_t offset = code_.gpr[static_cast<unsigned>(reg)];
      const std::int64_t bits = operands[1].size == 64 ? static_cast<std::int64_t>(offset)
                                                       : static_cast<std::int32_t>(offset);
      if (!inside(address + static_cast<std::uint64_t>(bits >> 3))) return false;
    }
  }
  return inside(code_.gpr[4]) || instruction.operand_count == instruction.operand_count_visible;
}

void Builder::NoteUndefined(const Row& row, const ZydisDecodedInstruction& instruction,
                            const ZydisDecodedOperand* operands) {
  const unsigned bits = operands[0].size;
  const unsigned count_mask = bits == 64 ? 63 : 31;
  const auto count_of = [&](unsigned operand) {
    const std::uint64_t count = operands[operand].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
                                    ? operands[operand].imm.value.u
                                    : code_.gpr[1];
    return static_cast<unsigned>(count) & count_mask;
  };
  std::uint64_t& flags = code_.undefined_flags;
  switch (row.undefined) {
    case Undefined::kNothing:
      break;
    case Undefined::kShift: {
      const unsigned count = count_of(1);
      if (count != 0) flags |= kAf;
      if (count > 1) flags |= kOf;
      if (count >= bits && row.digit != 7) flags |= kCf;
      break;
    }
    case Undefined::kRotate:
      if (count_of(1) != 1) flags |= kOf;
      break;
    case Undefined::kDoubleShift: {
      const unsigned count = count_of(2);
      if (count != 0) flags |= kAf;
      if (count > 1) flags |= kOf;
      if (count > bits) {
        flags |= kCf | kPf | kAf | kZf | kSf | kOf;
        code_.undefined_result = true;
      }
      break;
    }
    case Undefined::kMultiply:
      flags |= kSf | kZf | kAf | kPf;
      break;
    case Undefined::kDivide:
      flags |= kCf | kPf | kAf | kZf | kSf | kOf;
      break;
    case Undefined::kBitTest:
      flags |= kPf | kAf | kSf | kOf;
      break;
    case Undefined::kScan:
      flags |= kCf | kPf | kAf | kSf | kOf;
      break;
    case Undefined::kCount:
      flags |= kPf | kAf | kSf | kOf;
      break;
    case Undefined::kLogic:
      flags |= kAf;
      break;
    case Undefined::kAndn:
    case Undefined::kBls:
      flags |= kAf | kPf;
      break;
    case Undefined::kBextr:
      flags |= kAf | kPf | kSf;
      break;
  }
  if (instruction.mnemonic == ZYDIS_MNEMONIC_BSWAP && bits == 16) code_.undefined_result = true;
  code_.undefined_if_zero = row.undefined == Undefined::kScan;
  code_.optional = (row.traits & kVex) != 0 || row.map == 2 || row.undefined == Undefined::kCount ||
                   std::string(row.name) == "popcnt";
}

bool Builder::Build(RandomCode& code) {
  code_ = {};
  FillState();
  const Row& row = kRows[Below(std::size(kRows))];
  if (!OneIn(3)) EmitFlagMaker();
  EmitLast(row);
  if (code_.bytes.size() - code_.last > 15) return false;
  if (!Settle(row)) return false;
  code = code_;
  return true;
}

}  // namespace

RandomCode MakeRandomCode(Random& random, const CodeArea& area, std::vector<std::uint8_t>& memory) {
  Builder builder(random, area, memory);
  RandomCode code;
  while (!builder.Build(code)) {
  }
  return code;
}

}  // namespace pagesaw::cpu
