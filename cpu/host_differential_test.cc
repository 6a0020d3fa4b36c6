// Executes random instructions on this machine's own processor and on the software processor, in
// the same state and with the same memory, and compares what they leave behind. Flags:
//   --seed=N    another sequence than the default one
//   --steps=N   how many instructions
//   --strict    compares what the manuals leave undefined, too
#include "cpu/native_runner.h"
#include "cpu/random_code.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

std::uint64_t seed = 20240601;
std::uint64_t steps = 100'000;
bool strict = false;

// The same linear addresses on both sides.
constexpr std::uint64_t kIdt = 0x10000, kGdt = 0x11000, kTss = 0x12000, kStack = 0x14000;
constexpr std::uint64_t kHandlers = 0x15000;  // 16 bytes for each vector
constexpr std::uint64_t kCodeStart = 0x100000, kCodeBytes = 0x100000;
constexpr std::uint64_t kTargetOffset = 0x60;
constexpr std::uint64_t kData = 0x300000, kDataBytes = 0x2000, kReadOnly = kData + kDataBytes;
constexpr std::uint64_t kEmptyStart = kData - 0x10000, kEmptyEnd = kData + 0x20000;

constexpr std::uint64_t kArithmetic = 0x8d5, kCompared = kArithmetic | kFlagDf;

// What one side did.
struct Outcome {
  std::string end;  // in words that compare
  std::array<std::uint64_t, 16> gpr = {};
  std::uint64_t rflags = 0;
  NativeExtended extended;
  std::vector<std::uint8_t> memory;
  bool undefined_opcode = false;
};

std::string Hex(std::uint64_t value) {
  std::ostringstream out;
  out << std::hex << value;
  return out.str();
}

std::byte* MapAt(std::uint64_t address, std::size_t bytes, int protection) {
  void* const wanted = reinterpret_cast<void*>(address);
  void* const got =
      mmap(wanted, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  return got == wanted ? static_cast<std::byte*>(got) : nullptr;
}

class HostDifferential : public testing::Test {
 protected:
  static CpuModel FullModel() {
    CpuModel model;
    for (unsigned i = 0; i < static_cast<unsigned>(Feature::kCount); ++i) {
      model.Set(static_cast<Feature>(i), true);
    }
    return model;
  }

  void SetUp() override {
    code_ = MapAt(kCodeStart, kCodeBytes, PROT_READ | PROT_WRITE | PROT_EXEC);
    data_ = MapAt(kData, kDataBytes, PROT_READ | PROT_WRITE);
    read_only_ = MapAt(kReadOnly, 0x1000, PROT_READ);
    if (code_ == nullptr || data_ == nullptr || read_only_ == nullptr) {
      GTEST_SKIP() << "the addresses that the test needs are taken";
    }
    for (std::uint64_t page = kEmptyStart; page < kEmptyEnd; page += 0x1000) {
      if (page < kData || page >= kReadOnly) machine_.Spte(page) = 0;
    }
    machine_.Spte(kReadOnly) =
        reinterpret_cast<std::uint64_t>(machine_.memory() + kReadOnly) | 0x25;
    BuildTables();
  }
  void TearDown() override {
    munmap(code_, kCodeBytes);
    munmap(data_, kDataBytes);
    munmap(read_only_, 0x1000);
  }

  void Put64(std::uint64_t linear, std::uint64_t value) {
    std::memcpy(machine_.memory() + linear, &value, 8);
  }

  // Every vector leads, on a stack of its own, to a loop at its own address.
  void BuildTables() {
    for (std::uint64_t vector = 0; vector < 32; ++vector) {
      const std::uint64_t handler = kHandlers + 16 * vector;
      machine_.memory()[handler] = std::byte{0xeb};
      machine_.memory()[handler + 1] = std::byte{0xfe};
      Put64(kIdt + 16 * vector, (handler & 0xffff) | std::uint64_t{8} << 16 |
                                    std::uint64_t{0x8e01} << 32 | (handler >> 16 << 48));
      Put64(kIdt + 16 * vector + 8, 0);
    }
    Put64(kGdt + 8, 0x00af'9b00'0000'ffff);
    Put64(kGdt + 16, 0x00cf'9300'0000'ffff);
    Put64(kTss + 0x24, kStack);  // IST1
    Put64(kTss + 4, kStack);
  }

  CpuState UserState(const RandomCode& code, std::uint64_t rip) const {
    CpuState state = TestProcessor::LongModeState();
    for (Segment& segment : state.segments) {
      segment = {.selector = 0x2b, .attributes = 0xc0f3, .limit = 0xffff'ffff, .base = 0};
    }
    state.segments[kCs] = {.selector = 0x33, .attributes = 0xa0fb, .limit = 0xffff'ffff, .base = 0};
    state.segments[kTr] = {.selector = 0x40, .attributes = 0x8b, .limit = 0x67, .base = kTss};
    state.segments[kLdtr] = {.selector = 0, .attributes = 0x82, .limit = 0xffff, .base = 0};
    state.idtr = {.base = kIdt, .limit = 0x1ff};
    state.gdtr = {.base = kGdt, .limit = 0x1f};
    state.gpr = code.gpr;
    state.rflags = code.rflags;
    state.rip = rip;
    state.cr0 |= 0x32;      // ET, NE, MP
    state.cr4 |= 0x4'0600;  // OSXSAVE, OSXMMEXCPT, OSFXSR
    state.xcr0 = 7;
    std::memcpy(&state.extended, code.extended.bytes.data(), 512);
    std::memcpy(&state.extended.ymm_high, &code.extended.bytes[NativeExtended::kYmmHigh], 256);
    return state;
  }

  void Compare(RandomCode (*make)(Random&, const CodeArea&, std::vector<std::uint8_t>&));
  Outcome RunHere(const RandomCode& code, std::uint64_t at,
                  const std::vector<std::uint8_t>& memory);
  Outcome RunSoftware(const RandomCode& code, std::uint64_t at,
                      const std::vector<std::uint8_t>& memory, std::uint64_t chunk);

  std::byte* code_ = nullptr;
  std::byte* data_ = nullptr;
  std::byte* read_only_ = nullptr;
  TestProcessor machine_{FullModel()};
};

// jmp [rip + 0] and the address behind it.
void PutJump(std::uint64_t at, std::uint64_t target) {
  auto* const to = reinterpret_cast<std::uint8_t*>(at);
  constexpr std::uint8_t kJump[] = {0xff, 0x25, 0, 0, 0, 0};
  std::memcpy(to, kJump, sizeof(kJump));
  std::memcpy(to + sizeof(kJump), &target, 8);
}

Outcome HostDifferential::RunHere(const RandomCode& code, std::uint64_t at,
                                  const std::vector<std::uint8_t>& memory) {
  std::memcpy(reinterpret_cast<void*>(at), code.bytes.data(), code.bytes.size());
  PutJump(at + code.bytes.size(), NativeFirstExit());
  PutJump(at + kTargetOffset, NativeSecondExit());
  std::memcpy(data_, memory.data(), memory.size());
  NativeState state = {.gpr = code.gpr, .rflags = code.rflags, .extended = code.extended};
  const NativeEnd end = RunNative(at, state);
  Outcome outcome;
  outcome.end = end.at_second_exit ? "branched" : "fell through";
  if (end.fault) {
    outcome.end = "vector " + std::to_string(end.vector) + " at +" + Hex(end.rip - at);
    if (end.vector == 14) {
      outcome.end += (end.error_code & 2) != 0 ? " write " : " read ";
      outcome.end += Hex(end.cr2);
    }
    outcome.undefined_opcode = end.vector == 6;
  }
  outcome.gpr = state.gpr;
  outcome.rflags = state.rflags;
  outcome.extended = state.extended;
  outcome.memory.resize(memory.size());
  std::memcpy(outcome.memory.data(), data_, memory.size());
  return outcome;
}

Outcome HostDifferential::RunSoftware(const RandomCode& code, std::uint64_t at,
                                      const std::vector<std::uint8_t>& memory,
                                      std::uint64_t chunk) {
  std::byte* const ram = machine_.memory();
  std::memcpy(ram + at, code.bytes.data(), code.bytes.size());
  for (const std::uint64_t exit : {at + code.bytes.size(), at + kTargetOffset}) {
    ram[exit] = std::byte{0xeb};
    ram[exit + 1] = std::byte{0xfe};
  }
  std::memcpy(ram + kData, memory.data(), memory.size());
  SoftwareProcessor& processor = machine_.processor();
  processor.SetState(UserState(code, at));
  const std::uint64_t next = at + code.bytes.size();
  Outcome outcome;
  CpuState state;
  for (unsigned turn = 0; turn < 3000 && outcome.end.empty(); ++turn) {
    const Exit exit = processor.Run(chunk);
    state = processor.GetState();
    if (exit.reason == ExitReason::kTableFault) {
      outcome.end = "vector 14 at +" + Hex(state.rip - at);
      outcome.end += exit.fault.access.is_write() ? " write " : " read ";
      outcome.end += Hex(exit.fault.linear.bits());
    } else if (exit.reason != ExitReason::kBudget) {
      outcome.end = "exit " + std::to_string(static_cast<int>(exit.reason));
    } else if (state.rip == next) {
      outcome.end = "fell through";
    } else if (state.rip == at + kTargetOffset) {
      outcome.end = "branched";
    } else if (state.rip - kHandlers < 512) {
      const std::uint64_t vector = (state.rip - kHandlers) / 16;
      const bool has_code = vector == 13 || vector == 12 || vector == 17;
      const std::uint64_t frame = state.gpr[kRsp] + (has_code ? 8 : 0);
      outcome.end = "vector " + std::to_string(vector) + " at +" +
                    Hex(machine_.Read<std::uint64_t>(frame) - at);
      state.rflags = machine_.Read<std::uint64_t>(frame + 16);
      state.gpr[kRsp] = machine_.Read<std::uint64_t>(frame + 24);
    }
  }
  if (outcome.end.empty()) outcome.end = "stuck at +" + Hex(state.rip - at);
  outcome.gpr = state.gpr;
  outcome.rflags = state.rflags;
  std::memcpy(outcome.extended.bytes.data(), &state.extended, 512);
  std::memcpy(&outcome.extended.bytes[NativeExtended::kYmmHigh], &state.extended.ymm_high, 256);
  outcome.memory.resize(memory.size());
  std::memcpy(outcome.memory.data(), ram + kData, memory.size());
  return outcome;
}

// Whether the manuals leave open which byte of the operand a page fault names.
bool AnyByteFaults(const std::string& name) {
  for (const char* const prefix :
       {"maskmov", "vmaskmov", "fnst", "fnsave", "fldenv", "frstor", "fx", "xsave", "xrstor"}) {
    if (name.starts_with(prefix)) return true;
  }
  return false;
}

// How execution ended, as far as it must be the same.
std::string ComparableEnd(const RandomCode& code, const Outcome& outcome) {
  if (!AnyByteFaults(code.name) || !outcome.end.starts_with("vector 14")) return outcome.end;
  return outcome.end.substr(0, outcome.end.rfind(' '));
}

// Whether a fault here is one that the software processor need not have: of bytes that a mask or an
// optimization leaves alone.
bool MayNotFault(const RandomCode& code, const Outcome& here, const Outcome& software) {
  const bool sparse = code.name.starts_with("maskmov") || code.name == "vmaskmovdqu" ||
                      code.name.starts_with("xsave");
  // What the steps of a dot product raise, the software processor does not compute.
  if (code.name.find("dpp") != std::string::npos && here.end.starts_with("vector 19")) return true;
  return sparse && here.end.starts_with("vector 14") && software.end == "fell through";
}

// The bits of MXCSR that are the same on every processor. What unmasked overflow and underflow
// leave in the precision flag is not computed, nor what steps in between raise.
std::uint32_t ComparableMxcsr(const RandomCode& code, const Outcome& here) {
  constexpr std::uint32_t kPrecision = 0x20, kFlags = 0x3f;
  if (!here.end.starts_with("vector 19")) return ~0u;
  return ~(code.name.find("dpp") != std::string::npos ? kFlags : kPrecision);
}

// MXCSR_MASK as an image in memory has it differs from processor to processor.
bool IsMxcsrMask(const RandomCode& code, std::size_t at) {
  return (code.name.starts_with("fxsave") || code.name.starts_with("xsave")) && at % 16 == 14;
}

// What differs, in words; empty if nothing does.
std::string Difference(const RandomCode& code, const Outcome& here, const Outcome& software) {
  std::ostringstream out;
  if (ComparableEnd(code, here) != ComparableEnd(code, software)) {
    out << "  ended: host " << here.end << ", software " << software.end << "\n";
  }
  const bool results = strict || (!code.undefined_result &&
                                  (!code.undefined_if_zero || (here.rflags & kFlagZf) == 0));
  for (unsigned i = 0; results && i < 16; ++i) {
    if (here.gpr[i] == software.gpr[i]) continue;
    out << "  register " << i << ": before " << Hex(code.gpr[i]) << ", host " << Hex(here.gpr[i])
        << ", software " << Hex(software.gpr[i]) << "\n";
  }
  std::uint64_t compared = kCompared & ~(strict ? 0 : code.undefined_flags);
  // A comparison that faults keeps its old flags here, as on Intel's processors; AMD's have those
  // of its last iteration. [intel/vol2] "REP/REPE/REPZ/REPNE/REPNZ"
  if ((code.name == "cmps" || code.name == "scas") && here.end.starts_with("vector")) {
    compared &= ~kArithmetic;
  }
  if (((here.rflags ^ software.rflags) & compared) != 0) {
    out << "  flags: before " << Hex(code.rflags) << ", host " << Hex(here.rflags & kCompared)
        << ", software " << Hex(software.rflags & kCompared) << "\n";
  }
  // ENTER that faults may have pushed already.
  const bool memory =
      (strict || !code.undefined_result) && (code.name != "enter" || here.end == "fell through");
  for (std::size_t i = 0; memory && i < here.memory.size(); ++i) {
    if (here.memory[i] == software.memory[i] || IsMxcsrMask(code, i)) continue;
    out << "  memory at +" << Hex(i) << ": host " << Hex(here.memory[i]) << ", software "
        << Hex(software.memory[i]) << "\n";
    break;
  }
  return out.str();
}

// The same of the x87 and vector registers.
std::string ExtendedDifference(const RandomCode& code, const Outcome& here,
                               const Outcome& computed) {
  struct Field {
    const char* name;
    unsigned offset, bytes, count, stride;
  };
  static constexpr Field kFields[] = {{"FCW", 0, 2, 1, 0},     {"FSW", 2, 2, 1, 0},
                                      {"FTW", 4, 1, 1, 0},     {"MXCSR", 24, 4, 1, 0},
                                      {"ST", 32, 10, 8, 16},   {"XMM", 160, 16, 16, 16},
                                      {"YMM", 576, 16, 16, 16}};
  std::ostringstream out;
  // MASKMOVQ that faults may have entered MMX state.
  if (code.name == "maskmovq" && here.end != "fell through") return {};
  const auto print = [&out](const char* who, const NativeExtended& state, unsigned at,
                            unsigned bytes) {
    out << " " << who << " " << std::hex << std::setfill('0');
    for (unsigned i = bytes; i-- > 0;) out << std::setw(2) << +state.bytes[at + i];
  };
  Outcome software = computed;
  std::uint32_t expected = 0;
  std::uint32_t got = 0;
  std::memcpy(&expected, &here.extended.bytes[24], 4);
  std::memcpy(&got, &software.extended.bytes[24], 4);
  if (((expected ^ got) & ComparableMxcsr(code, here)) == 0) {
    std::memcpy(&software.extended.bytes[24], &expected, 4);
  }
  for (const Field& field : kFields) {
    for (unsigned i = 0; i < field.count; ++i) {
      const unsigned at = field.offset + i * field.stride;
      if (std::memcmp(&here.extended.bytes[at], &software.extended.bytes[at], field.bytes) == 0) {
        continue;
      }
      out << "  " << field.name << std::dec << i << ":";
      print("before", code.extended, at, field.bytes);
      print("host", here.extended, at, field.bytes);
      print("software", software.extended, at, field.bytes);
      out << "\n";
    }
  }
  return out.str();
}

std::string Describe(const RandomCode& code) {
  std::ostringstream out;
  out << code.name << ":" << std::hex << std::setfill('0');
  for (std::size_t i = 0; i < code.bytes.size(); ++i) {
    out << (i == code.last && i != 0 ? " |" : "") << " " << std::setw(2) << +code.bytes[i];
  }
  for (unsigned i = 0; i < 16; ++i) {
    out << (i % 4 == 0 ? "\n    " : " ") << std::dec << "r" << i << "=" << Hex(code.gpr[i]);
  }
  out << " rflags=" << Hex(code.rflags);
  return out.str();
}

using Maker = RandomCode (*)(Random&, const CodeArea&, std::vector<std::uint8_t>&);

void HostDifferential::Compare(Maker make) {
  std::cout << "seed " << seed << ", " << steps << " steps" << std::endl;
  Random random(seed);
  std::vector<std::uint8_t> memory;
  std::map<std::string, unsigned> failures;
  std::map<std::string, unsigned> tried;
  for (std::uint64_t step = 0; step < steps; ++step) {
    const std::uint64_t at = kCodeStart + random() % (kCodeBytes - 0x100);
    const CodeArea area = {.code = at, .target = at + kTargetOffset, .data = kData};
    const RandomCode code = make(random, area, memory);
    const Outcome here = RunHere(code, at, memory);
    if (code.optional && here.undefined_opcode) continue;
    // Alignment is Intel's rule for SHA, not AMD's.
    if (code.misaligned && code.name.starts_with("sha")) continue;
    static constexpr std::uint64_t kChunks[] = {1, 2, 7, 3000, 3000, 3000};
    const Outcome software = RunSoftware(code, at, memory, kChunks[random() % 6]);
    ++tried[code.name];
    if (MayNotFault(code, here, software)) continue;
    const std::string difference =
        Difference(code, here, software) + ExtendedDifference(code, here, software);
    if (difference.empty()) continue;
    if (++failures[code.name] > 2) continue;
    ADD_FAILURE() << "step " << step << " at " << Hex(at) << ", " << Describe(code) << "\n"
                  << difference;
  }
  for (const auto& [name, count] : failures) {
    std::cout << name << ": " << count << " of " << tried[name] << " differ" << std::endl;
  }
}

TEST_F(HostDifferential, RandomInstructionsDoTheSame) { Compare(&MakeRandomCode); }

TEST_F(HostDifferential, RandomVectorInstructionsDoTheSame) { Compare(&MakeRandomVectorCode); }

}  // namespace
}  // namespace pagesaw::cpu

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto number = [&](std::string_view flag, std::uint64_t& value) {
      if (argument.substr(0, flag.size()) != flag) return false;
      value = std::strtoull(argv[i] + flag.size(), nullptr, 0);
      return true;
    };
    if (number("--seed=", pagesaw::cpu::seed) || number("--steps=", pagesaw::cpu::steps)) continue;
    if (argument == "--strict") {
      pagesaw::cpu::strict = true;
      continue;
    }
    std::fprintf(stderr, "error: unknown argument %s\n", argv[i]);
    return 2;
  }
  return RUN_ALL_TESTS();
}
