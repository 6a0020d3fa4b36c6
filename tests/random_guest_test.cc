// Guests made of chance, on the whole machine: code, tables, gates and registers that are random,
// in real, protected and long mode. Whatever they do, the VM ends or can be stopped, nothing
// internal goes wrong, and whoever looks gets an answer.
//   PAGESAW_SEED     the first guest's seed (decimal); otherwise by chance, printed
//   PAGESAW_SECONDS  how long to go on; otherwise 3
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.plugin;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Random = std::mt19937_64;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kMemoryBytes = 4 << 20;
constexpr std::uint64_t kIdt = 0x2000, kGdt = 0x3000, kTss = 0x4000, kPml4 = 0x5000, kPdpt = 0x6000,
                        kPd = 0x7000, kCode = 0x10000, kStack = 0x40000;
constexpr std::uint64_t kCodeBytes = 0x4000;

enum class Mode { kReal, kProtected, kLong };

// What plain random bytes seldom make whole.
const std::array<Bytes, 46> kPieces = {{
    {0x0f, 0x22, 0xc0},              // mov cr0, eax
    {0x0f, 0x22, 0xd8},              // mov cr3, eax
    {0x0f, 0x22, 0xe0},              // mov cr4, eax
    {0x0f, 0x20, 0xc0},              // mov eax, cr0
    {0x0f, 0x20, 0xe0},              // mov eax, cr4
    {0x0f, 0x30},                    // wrmsr
    {0x0f, 0x32},                    // rdmsr
    {0xb9, 0x80, 0x00, 0x00, 0xc0},  // mov ecx, EFER
    {0xb9, 0x1b, 0x00, 0x00, 0x00},  // mov ecx, IA32_APIC_BASE
    {0x0f, 0x01, 0x10},              // lgdt
    {0x0f, 0x01, 0x18},              // lidt
    {0x0f, 0x01, 0x38},              // invlpg
    {0x0f, 0x01, 0xf8},              // swapgs
    {0x0f, 0x00, 0xd8},              // ltr ax
    {0x0f, 0x00, 0xd0},              // lldt ax
    {0x0f, 0xa2},                    // cpuid
    {0x0f, 0x05},                    // syscall
    {0x0f, 0x07},                    // sysret
    {0x0f, 0x34},                    // sysenter
    {0x0f, 0x35},                    // sysexit
    {0x0f, 0x09},                    // wbinvd
    {0x0f, 0x0b},                    // ud2
    {0x0f, 0xc7, 0x08},              // cmpxchg8b
    {0xf0, 0x48, 0x0f, 0xc7, 0x0f},  // lock cmpxchg16b
    {0xf3, 0xa4},                    // rep movsb
    {0xf3, 0xab},                    // rep stos
    {0xf2, 0xae},                    // repne scasb
    {0xf3, 0x6c},                    // rep insb
    {0xf3, 0x6f},                    // rep outs
    {0xcf},                          // iret
    {0x48, 0xcf},                    // iretq
    {0xcb},                          // retf
    {0xcd, 0x20},                    // int 20h
    {0x9d},                          // popf
    {0xfb, 0xf4},                    // sti; hlt
    {0x8e, 0xd0},                    // mov ss, ax
    {0x8e, 0xd8},                    // mov ds, ax
    {0x0f, 0x23, 0xc8},              // mov dr1, eax
    {0x0f, 0x23, 0xf8},              // mov dr7, eax
    {0xf1},                          // icebp
    {0xb9, 0xd9, 0x01, 0x00, 0x00},  // mov ecx, IA32_DEBUGCTL
    {0xb9, 0x00, 0x02, 0x00, 0x00},  // mov ecx, IA32_MTRR_PHYSBASE0
    {0xb9, 0xa0, 0x01, 0x00, 0x00},  // mov ecx, IA32_MISC_ENABLE
    {0xbf, 0x00, 0x00, 0xe0, 0xfe},  // mov edi, FEE00000h
    {0xbe, 0x00, 0x50, 0x00, 0x00},  // mov esi, the PML4
    {0xbc, 0xf8, 0xff, 0x3f, 0x00},  // mov esp, the end of memory
}};

std::uint64_t Below(Random& random, std::uint64_t limit) { return random() % limit; }

Bytes RandomCode(Random& random) {
  const std::uint64_t pieces_in_16 = Below(random, 16);
  Bytes code;
  while (code.size() < kCodeBytes) {
    if (Below(random, 16) < pieces_in_16) {
      const Bytes& piece = kPieces[Below(random, kPieces.size())];
      code.insert(code.end(), piece.begin(), piece.end());
    } else {
      code.push_back(static_cast<std::uint8_t>(random()));
    }
  }
  code.resize(kCodeBytes);
  return code;
}

class RandomGuest {
 public:
  RandomGuest(Vm& vm, Random& random) : vm_(vm), random_(random) {}

  void Prepare(Mode mode) {
    Put(kCode, RandomCode(random_));
    switch (mode) {
      case Mode::kReal:
        return PrepareReal();
      case Mode::kProtected:
        return PrepareProtected();
      case Mode::kLong:
        return PrepareLong();
    }
  }

 private:
  void Put(std::uint64_t gpa, std::span<const std::uint8_t> bytes) {
    ASSERT_TRUE(vm_.WriteMemory(Gpa(gpa), std::as_bytes(bytes)).ok());
  }
  void PutWords(std::uint64_t gpa, const std::vector<std::uint64_t>& words) {
    ASSERT_TRUE(vm_.WriteMemory(Gpa(gpa), std::as_bytes(std::span(words))).ok());
  }
  std::uint64_t SomeCode() { return kCode + Below(random_, kCodeBytes); }
  bool OneIn(std::uint64_t count) { return Below(random_, count) == 0; }

  CpuState Common() {
    CpuState state = ResetState();
    for (auto& gpr : state.gpr) gpr = OneIn(2) ? Below(random_, kMemoryBytes) : random_();
    state.gpr[kRsp] = kStack;
    state.rflags = kFlagFixed | (OneIn(2) ? kFlagIf : 0) | (OneIn(8) ? kFlagTf : 0);
    if (OneIn(4)) PutBreakpoints(state);
    state.cr4 |= random_() & 0xb;  // VME, PVI, DE
    return state;
  }

  // Breakpoints of every kind where the guest is likely to come by.
  void PutBreakpoints(CpuState& state) {
    for (auto& address : state.dr) address = OneIn(2) ? SomeCode() : kStack - Below(random_, 256);
    if (OneIn(2)) state.dr[0] = Below(random_, 0x400);  // a port, or the vector table
    state.dr7 = 0x400 | (random_() & (OneIn(8) ? 0xffff'23ff : 0xffff'03ff));
  }

  void PrepareReal() {
    std::vector<std::uint64_t> vectors;
    for (int i = 0; i < 128; ++i) {
      const std::uint64_t low = 0x1000'0000 | Below(random_, kCodeBytes);
      const std::uint64_t high = 0x1000'0000 | Below(random_, kCodeBytes);
      vectors.push_back(OneIn(16) ? random_() : high << 32 | low);
    }
    PutWords(0, vectors);
    CpuState state = Common();
    state.segments[kCs] = {.selector = 0x1000, .attributes = 0x9b, .limit = 0xffff, .base = kCode};
    state.segments[kSs] = {
        .selector = 0x3000, .attributes = 0x93, .limit = 0xffff, .base = 0x30000};
    state.rip = Below(random_, kCodeBytes);
    state.gpr[kRsp] = Below(random_, 0x10000);
    state.idtr = {.base = 0, .limit = 0x3ff};
    Set(state);
  }

  // Descriptors of every kind, one in eight by chance.
  void PutDescriptors() {
    std::vector<std::uint64_t> words = {
        0,
        0x00cf'9b00'0000'ffff,  // 08h code, 32 bits
        0x00cf'9300'0000'ffff,  // 10h data
        0x00cf'fb00'0000'ffff,  // 18h code of ring 3
        0x00cf'f300'0000'ffff,  // 20h data of ring 3
        0x00af'9b00'0000'ffff,  // 28h code, 64 bits
        0x00af'fb00'0000'ffff,  // 30h code of ring 3, 64 bits
        0x0000'8900'4000'0067,  // 38h TSS
        0,
        0x0000'8c00'0008'0000 | SomeCode(),  // 48h call gate
        0,
        0x0000'9b01'0000'ffff,  // 58h code, 16 bits
        0x0000'8500'0038'0000,  // 60h task gate
    };
    while (words.size() < 32) words.push_back(random_());
    for (auto& word : words) {
      if (OneIn(32)) word ^= std::uint64_t{1} << Below(random_, 64);
    }
    PutWords(kGdt, words);
    std::vector<std::uint64_t> task(16);
    for (auto& word : task) word = OneIn(4) ? random_() : kStack;
    PutWords(kTss, task);
  }

  std::uint64_t Gate(std::uint64_t selector) {
    if (OneIn(16)) return random_();
    const std::uint64_t target = SomeCode();
    const std::uint64_t dpl = OneIn(2) ? 3 : 0;
    return (target & 0xffff) | selector << 16 | (0x8e00 | dpl << 13 | (random_() & 0x100)) << 32 |
           (target >> 16) << 48;
  }

  CpuState Flat(bool user, std::uint64_t code_selector, std::uint16_t code_attributes) {
    CpuState state = Common();
    const std::uint16_t ring = user ? 3 : 0;
    const std::uint16_t dpl = static_cast<std::uint16_t>(ring << 5);
    state.cr0 = kCr0Pe | 0x10;
    state.rip = SomeCode();
    state.segments[kCs] = {.selector = static_cast<std::uint16_t>(code_selector | ring),
                           .attributes = static_cast<std::uint16_t>(code_attributes | dpl),
                           .limit = ~0u,
                           .base = 0};
    for (const SegmentName name : {kEs, kSs, kDs, kFs, kGs}) {
      state.segments[name] = {.selector = static_cast<std::uint16_t>((user ? 0x20 : 0x10) | ring),
                              .attributes = static_cast<std::uint16_t>(0xc093 | dpl),
                              .limit = ~0u,
                              .base = 0};
    }
    state.segments[kTr] = {.selector = 0x38, .attributes = 0x8b, .limit = 0x67, .base = kTss};
    state.gdtr = {.base = kGdt, .limit = 0xff};
    state.idtr = {.base = kIdt, .limit = 0xfff};
    return state;
  }

  void PrepareProtected() {
    PutDescriptors();
    std::vector<std::uint64_t> gates;
    for (int i = 0; i < 256; ++i) gates.push_back(Gate(0x08));
    PutWords(kIdt, gates);
    const bool user = OneIn(3);
    CpuState state = Flat(user, user ? 0x18 : 0x08, 0xc09b);
    state.gpr[kRsp] &= 0xffff'ffff;
    if (OneIn(2)) state.cr0 |= 0x40000;
    if (OneIn(2)) state.rflags |= kFlagAc;
    if (OneIn(4)) EnterVirtual8086(state);
    Set(state);
  }

  void EnterVirtual8086(CpuState& state) {
    state.rflags |= kFlagVm | (random_() & (kFlagIopl | kFlagVif));
    for (unsigned i = kEs; i <= kGs; ++i) {
      const std::uint16_t selector = i == kCs ? kCode >> 4 : 0x3000;
      state.segments[i] = {.selector = selector,
                           .attributes = 0xf3,
                           .limit = 0xffff,
                           .base = std::uint64_t{selector} << 4};
    }
    state.rip = Below(random_, kCodeBytes);
    state.gpr[kRsp] = Below(random_, 0x10000);
  }

  void PrepareLong() {
    PutDescriptors();
    std::vector<std::uint64_t> gates;
    for (int i = 0; i < 256; ++i) {
      gates.push_back(Gate(0x28));
      gates.push_back(OneIn(32) ? random_() : 0);
    }
    PutWords(kIdt, gates);
    std::vector<std::uint64_t> table(512);
    for (auto& entry : table) entry = SomeEntry();
    table[0] = kPdpt | 7;
    table[1] = kPml4 | 0x67;
    PutWords(kPml4, table);
    for (auto& entry : table) entry = SomeEntry();
    table[0] = kPd | 7;
    PutWords(kPdpt, table);
    for (auto& entry : table) entry = SomeEntry();
    table[0] = 0x87;
    table[1] = 0x200087;
    PutWords(kPd, table);
    const bool user = OneIn(3);
    CpuState state = Flat(user, user ? 0x30 : 0x28, 0xa09b);
    state.cr0 |= kCr0Pg | (OneIn(2) ? kCr0Wp : 0);
    state.cr3 = kPml4;
    state.cr4 |= kCr4Pae;
    state.efer = kEferLme | kEferLma | (OneIn(2) ? kEferNxe : 0) | (OneIn(2) ? 1 : 0);
    Set(state);
  }

  // Not present, into memory, at devices, or anything.
  std::uint64_t SomeEntry() {
    switch (Below(random_, 5)) {
      case 0:
        return random_();
      case 1:
        return 0xfee00000 | 0x67 | (random_() & 0x80);
      case 2:
        return (random_() & 0x3f'ffff'f000) | 0x67 | (random_() & 0x80);
      case 3:
        return (random_() & (kMemoryBytes - 4096)) | (random_() & 0x1ff) | 1;
      default:
        return 0;
    }
  }

  void Set(const CpuState& state) {
    const absl::Status status = vm_.SetRegisters(0, state);
    ASSERT_TRUE(status.ok()) << status;
  }

  Vm& vm_;
  Random& random_;
};

std::uint64_t NumberFrom(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// Looks at the running guest; any answer will do.
void Look(const Vm& vm, Random& random) {
  for (int i = 0; i < 4; ++i) {
    const InputAddress address(random() & 0x7fff'ffff'ffff);
    EXPECT_TRUE(vm.Walk(0, "cpu_walk", address, Access::Write(Privilege::kUser)).ok());
    EXPECT_TRUE(vm.WalkSptes(0, "root_mmu", InputAddress(Below(random, std::uint64_t{1} << 40)),
                             Access::Read(Privilege::kSupervisor))
                    .ok());
  }
  EXPECT_EQ(vm.Statistics().vcpus.size(), 1u);
}

long PeakKib() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

std::string Hex(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// Where the guest is, for whoever reads of a failure.
std::string Describe(const Vm& vm, Mode mode) {
  const auto state = vm.GetRegisters(0);
  if (!state.ok()) return std::string(state.status().message());
  std::string text = "\nmode " + std::to_string(static_cast<int>(mode)) + ", registers";
  for (const std::uint64_t gpr : state->gpr) text += " " + Hex(gpr);
  text += "\nrip " + Hex(state->rip) + ", rflags " + Hex(state->rflags) + ", cr0 " +
          Hex(state->cr0) + ", cr3 " + Hex(state->cr3) + ", cr4 " + Hex(state->cr4) + ", efer " +
          Hex(state->efer) + ", code at " + Hex(state->segments[kCs].base + state->rip);
  std::array<std::byte, 16> code = {};
  if (vm.ReadMemory(Gpa(state->segments[kCs].base + state->rip), code).ok()) {
    for (const std::byte byte : code) text += " " + Hex(static_cast<std::uint64_t>(byte));
  }
  return text;
}

void RunGuest(const PluginRegistry& registry, std::uint64_t seed) {
  Random random(seed);
  const Mode mode = static_cast<Mode>(Below(random, 3));
  VmConfig config;
  config.name = "random";
  config.vendor = random() % 2 == 0 ? "intel" : "amd";
  config.memory_bytes = kMemoryBytes;
  const auto vm = Vm::Create(config, registry, MakeVmParts());
  ASSERT_TRUE(vm.ok()) << vm.status();
  RandomGuest(**vm, random).Prepare(mode);
  ASSERT_TRUE((*vm)->Start().ok());
  Look(**vm, random);
  (*vm)->WaitUntilStopped(milliseconds(3));
  const auto begin = steady_clock::now();
  ASSERT_TRUE((*vm)->Stop().ok());
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_EQ((*vm)->exit().message.find("internal"), std::string::npos)
      << (*vm)->exit().message << Describe(**vm, mode);
}

TEST(RandomGuests, LeaveTheMachineHealthy) {
  const std::unique_ptr<Plugin> plugins[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                             mbec::MakeMbecPlugin()};
  PluginRegistry registry;
  for (const auto& plugin : plugins) ASSERT_FALSE(plugin->Register(registry));
  std::uint64_t seed = NumberFrom("PAGESAW_SEED", std::random_device()());
  const auto seconds = std::chrono::seconds(NumberFrom("PAGESAW_SECONDS", 3));
  std::printf("PAGESAW_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  const long before_kib = PeakKib();
  const auto until = steady_clock::now() + seconds;
  unsigned count = 0;
  for (; steady_clock::now() < until; ++seed, ++count) {
    SCOPED_TRACE("PAGESAW_SEED=" + std::to_string(seed));
    RunGuest(registry, seed);
    if (testing::Test::HasFailure()) break;
  }
  std::printf("%u guests\n", count);
  EXPECT_LT(PeakKib() - before_kib, 512 << 10);
}

}  // namespace
}  // namespace pagesaw
