// Our walk and that of Linux's KVM on the same tables, where this machine has KVM; elsewhere the
// test is skipped and says why. KVM answers where a supervisor's read goes, and nothing else.
//   PAGESAW_SEED  the first seed (default 1)
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <variant>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.kvm_translator;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr std::uint64_t kFrames = 16;
constexpr unsigned kTables = 300;
constexpr unsigned kAddresses = 40;

class KvmTranslate : public testing::TestWithParam<PagingMode> {
 protected:
  void SetUp() override {
    auto opened = KvmTranslator::Open(memory_.Find(Gfn{0})->host, kFrames * kPageBytes);
    if (const std::string* why = std::get_if<std::string>(&opened)) GTEST_SKIP() << *why;
    kvm_ = std::move(std::get<std::unique_ptr<KvmTranslator>>(opened));
    if (GetParam() == PagingMode::k5Level && !kvm_->features().la57) {
      GTEST_SKIP() << "KVM's processor has no 5-level paging";
    }
    const char* seed = std::getenv("PAGESAW_SEED");
    seed_ = seed != nullptr ? std::strtoul(seed, nullptr, 10) : 1;
    std::printf("first seed %lu\n", seed_);
  }

  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }

  PagingState RandomState() {
    PagingState state;
    state.features = kvm_->features();
    state.cr0 = kCr0Pe | kCr0Pg | (Below(2) != 0 ? kCr0Wp : 0);
    state.cr3 = Below(4) << 12;
    const PagingMode mode = GetParam();
    if (mode == PagingMode::k32Bit) state.cr4 = Below(2) != 0 ? kCr4Pse : 0;
    if (mode != PagingMode::k32Bit) state.cr4 = kCr4Pae;
    if (mode == PagingMode::k5Level) state.cr4 |= kCr4La57;
    if (mode >= PagingMode::k4Level) state.efer = kEferLma | kEferLme;
    if (Below(2) != 0 && mode != PagingMode::k32Bit) state.efer |= kEferNxe;
    return state;
  }

  // Entries that lead to one another, most of them well-formed.
  void WriteTables() {
    for (unsigned i = 0; i < kFrames * 12; ++i) {
      std::uint64_t entry = Below(kFrames) << 12 | 0x27;
      if (Below(8) == 0) entry ^= 1;
      if (Below(3) == 0) entry ^= Below(8) & 6;
      if (Below(6) == 0) entry = (entry & 0xfff) | 0x80 | Below(4) << 30;
      if (Below(20) == 0) entry |= std::uint64_t{1} << 63;
      if (Below(20) == 0) entry |= std::uint64_t{1} << (8 + Below(55));
      memory_.Write(Gpa((Below(kFrames) << 12) + 8 * Below(4)), entry);
    }
  }
  // The PDPTEs of PAE paging are registers, loaded from memory that must be well-formed.
  void LoadPdptes(PagingState& state) {
    if (GetParam() != PagingMode::kPae) return;
    for (unsigned i = 0; i < 4; ++i) {
      state.pdptes[i] = Below(kFrames) << 12 | (Below(6) != 0 ? 1 : 0);
      memory_.Write(Gpa(state.cr3 + 8 * i), state.pdptes[i]);
    }
  }

  // Whether KVM walks tables of this mode at all: some kinds of KVM run no guest in it. Every entry
  // there is leads to frame 5.
  bool KvmWalks() {
    for (std::uint64_t at = 0; at < kFrames * kPageBytes; at += 8) {
      const std::uint64_t entry = 0x5001;
      memory_.Write(Gpa(at), GetParam() == PagingMode::k32Bit ? entry | entry << 32 : entry);
    }
    PagingState state = RandomState();
    state.cr3 = 0;
    if (!kvm_->Load(state)) return false;
    const std::optional<KvmTranslator::Answer> answer = kvm_->Translate(0x1234);
    return answer && answer->valid && answer->physical == 0x5234;
  }

  std::uint64_t RandomLinear() {
    std::uint64_t linear = Below(4096);
    const PagingMode mode = GetParam();
    const unsigned index_bits = mode == PagingMode::k32Bit ? 10 : 9;
    const unsigned levels = mode == PagingMode::k32Bit    ? 2
                            : mode == PagingMode::kPae    ? 3
                            : mode == PagingMode::k4Level ? 4
                                                          : 5;
    for (unsigned level = 0; level < levels; ++level) {
      linear |= Below(4) << (12 + index_bits * level);
    }
    return linear;
  }

  TestMemory memory_{kFrames * kPageBytes};
  std::unique_ptr<KvmTranslator> kvm_;
  unsigned long seed_ = 1;
  std::mt19937_64 random_;
};

TEST_P(KvmTranslate, AgreesWithOurWalk) {
  if (!KvmWalks()) GTEST_SKIP() << "KVM does not walk tables of this mode";
  unsigned compared = 0, mapped = 0;
  for (unsigned long seed = seed_; seed < seed_ + kTables; ++seed) {
    random_.seed(seed);
    WriteTables();
    PagingState state = RandomState();
    LoadPdptes(state);
    if (!kvm_->Load(state)) GTEST_SKIP() << "KVM refuses the registers of this mode";
    const CpuWalker walker(memory_, state);
    for (unsigned i = 0; i < kAddresses; ++i) {
      const std::uint64_t linear = RandomLinear();
      const WalkResult ours =
          walker.Inspect(InputAddress(linear), Access::Read(Privilege::kSupervisor), nullptr);
      const std::optional<KvmTranslator::Answer> kvm = kvm_->Translate(linear);
      if (!kvm) GTEST_SKIP() << "KVM_TRANSLATE fails";
      ++compared;
      ASSERT_EQ(static_cast<bool>(ours), kvm->valid)
          << "seed " << seed << ", linear " << std::hex << linear << ", cr3 " << state.cr3
          << ", cr4 " << state.cr4 << ", efer " << state.efer;
      if (!ours) continue;
      ++mapped;
      ASSERT_EQ(ours->output.bits(), kvm->physical)
          << "seed " << seed << ", linear " << std::hex << linear;
    }
  }
  std::printf("%u walks compared, %u of them led somewhere\n", compared, mapped);
  EXPECT_GT(mapped, compared / 20);
}

std::string NameOf(PagingMode mode) {
  static constexpr const char* kNames[] = {"None", "32Bit", "Pae", "4Level", "5Level"};
  return kNames[static_cast<unsigned>(mode)];
}

INSTANTIATE_TEST_SUITE_P(Modes, KvmTranslate,
                         testing::Values(PagingMode::k32Bit, PagingMode::kPae, PagingMode::k4Level,
                                         PagingMode::k5Level),
                         [](const auto& info) { return NameOf(info.param); });

}  // namespace
}  // namespace pagesaw
