// Memory of a running guest: its writes are logged and slots come and go, for each vendor, with two
// stages and with shadow paging. The guest is guests/edge/slots.S.
//   PAGESAW_MEMORY_ROUNDS  how often things are done; otherwise 8
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.plugin;
import pagesaw.core.shadow_mmu;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t kMib = 1u << 20;
constexpr std::uint64_t kRamBytes = 64 * kMib;
constexpr Gpa kComing(std::uint64_t{4} << 30);
constexpr std::uint64_t kComingBytes = 8 * kMib;
constexpr std::uint32_t kSlot = 7;

unsigned Rounds() {
  const char* text = std::getenv("PAGESAW_MEMORY_ROUNDS");
  return text != nullptr ? static_cast<unsigned>(std::atoi(text)) : 8;
}

struct Machine {
  const char* name;
  const char* vendor;
  bool tdp = true;
  bool accessed_dirty = true;
};

class RunningGuest : public testing::TestWithParam<Machine> {
 protected:
  RunningGuest() {
    const std::unique_ptr<Plugin> plugins[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                               mbec::MakeMbecPlugin()};
    for (const auto& plugin : plugins) EXPECT_FALSE(plugin->Register(registry_));
  }

  void SetUp() override {
    VmConfig config;
    config.name = "guest";
    config.vendor = GetParam().vendor;
    config.tdp = GetParam().tdp;
    config.spte_accessed_dirty = GetParam().accessed_dirty;
    config.memory_bytes = kRamBytes;
    config.cpu_count = 2;
    config.image_path = "guests/edge/slots.elf";
    auto made = Vm::Create(config, registry_, MakeVmParts());
    ASSERT_TRUE(made.ok()) << made.status();
    vm_ = *std::move(made);
    ASSERT_TRUE(vm_->Start().ok());
    std::string text;
    for (std::uint64_t at = 0; text.find("ready") == std::string::npos;) {
      const ConsoleChunk chunk = vm_->console().Read(at, 100, milliseconds(1000));
      ASSERT_FALSE(chunk.closed) << vm_->exit().message;
      text += chunk.data;
      at = chunk.next;
    }
  }
  void TearDown() override { EXPECT_NE(vm_->state(), VmState::kStopped) << vm_->exit().message; }

  std::vector<std::byte> Read(Gpa gpa, std::uint64_t bytes) {
    std::vector<std::byte> data(bytes);
    const absl::Status status = vm_->ReadMemory(gpa, data);
    EXPECT_TRUE(status.ok()) << status;
    return data;
  }
  bool IsThere(Gpa gpa) {
    std::byte data;
    return vm_->ReadMemory(gpa, std::span(&data, 1)).ok();
  }
  bool AllZero(Gpa gpa, std::uint64_t bytes) {
    for (const std::byte byte : Read(gpa, bytes)) {
      if (byte != std::byte{0}) return false;
    }
    return true;
  }
  // Until the guest has made `what` true.
  template <typename What>
  [[nodiscard]] bool Comes(const What& what) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(100);
    while (!what()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return true;
  }
  std::uint64_t LargePages() {
    const MmuStatistics mmu = vm_->Statistics().mmu;
    return mmu.pages_2m + mmu.pages_1g;
  }

  PluginRegistry registry_;
  std::unique_ptr<Vm> vm_;
};

INSTANTIATE_TEST_SUITE_P(
    Machines, RunningGuest,
    testing::Values(Machine{"IntelTdp", "intel"}, Machine{"AmdTdp", "amd"},
                    Machine{"IntelShadow", "intel", false}, Machine{"AmdShadow", "amd", false},
                    Machine{"IntelTdpWithoutAccessedDirty", "intel", true, false}),
    [](const auto& info) { return std::string(info.param.name); });

// As a VM is copied while it runs: a copy that gets the logged pages alone is equal in the end.
TEST_P(RunningGuest, CopyKeptUpByTheLogAloneIsEqual) {
  for (const DirtyLogMethod method : {DirtyLogMethod::kWriteProtect, DirtyLogMethod::kDirtyBits}) {
    const absl::Status started = vm_->memory().StartDirtyLog(0, method).status();
    if (method == DirtyLogMethod::kDirtyBits && !GetParam().accessed_dirty) {
      EXPECT_EQ(started.message(), "slot 0: SPTEs of this format keep no D to log writes by");
      continue;
    }
    ASSERT_TRUE(started.ok()) << started;
    std::vector<std::byte> copy = Read(Gpa(0), kRamBytes);
    std::uint64_t told = 0;
    const auto copy_dirty = [&] {
      const auto dirty = vm_->memory().TakeDirtyLog(0);
      ASSERT_TRUE(dirty.ok()) << dirty.status();
      told += dirty->count;
      for (std::uint64_t page = 0; page < dirty->slot.page_count; ++page) {
        if ((dirty->words[page / 64] >> page % 64 & 1) == 0) continue;
        const auto at = std::span(copy).subspan(page * kPageBytes, kPageBytes);
        ASSERT_TRUE(vm_->ReadMemory(Gpa(page * kPageBytes), at).ok());
      }
    };
    for (unsigned round = 0; round < Rounds(); ++round) {
      copy_dirty();
      const std::byte host[] = {std::byte(round), std::byte(round + 1)};
      ASSERT_TRUE(vm_->WriteMemory(Gpa(40 * kMib + 0xfff), host).ok());
    }
    ASSERT_TRUE(vm_->Pause().ok());
    copy_dirty();
    EXPECT_TRUE(copy == Read(Gpa(0), kRamBytes));
    EXPECT_GT(told, 0u);
    copy_dirty();
    EXPECT_TRUE(vm_->memory().StopDirtyLog(0).ok());
    ASSERT_TRUE(vm_->Resume().ok());
  }
}

TEST_P(RunningGuest, LargePagesBreakWhileLoggedAndComeBack) {
  const auto all_large = [&] { return LargePages() >= 16 && vm_->Statistics().mmu.pages_4k < 600; };
  ASSERT_TRUE(Comes(all_large)) << LargePages();
  ASSERT_TRUE(vm_->memory().StartDirtyLog(0, {}).ok());
  ASSERT_TRUE(Comes([&] { return LargePages() < 4; })) << LargePages();
  ASSERT_TRUE(vm_->memory().StopDirtyLog(0).ok());
  EXPECT_TRUE(Comes(all_large)) << LargePages() << " " << vm_->Statistics().mmu.pages_4k;
}

TEST_P(RunningGuest, SlotsComeAndGo) {
  VmMemory& memory = vm_->memory();
  for (unsigned round = 0; round < Rounds(); ++round) {
    EXPECT_FALSE(IsThere(kComing));
    ASSERT_TRUE(memory.Add({.id = kSlot, .base = kComing, .bytes = kComingBytes}).ok());
    ASSERT_TRUE(Comes([&] { return !AllZero(kComing, kComingBytes); })) << "the guest writes it";

    ASSERT_TRUE(memory.SetReadOnly(kSlot, true).ok());
    const std::vector<std::byte> quiet = Read(kComing, kComingBytes);
    std::this_thread::sleep_for(milliseconds(2));
    EXPECT_TRUE(Read(kComing, kComingBytes) == quiet) << "nobody writes it";

    const Gpa away(kComing.bits() + (std::uint64_t{1} << 30));
    ASSERT_TRUE(memory.Move(kSlot, away).ok());
    EXPECT_FALSE(IsThere(kComing));
    EXPECT_TRUE(Read(away, kComingBytes) == quiet);
    ASSERT_TRUE(memory.SetReadOnly(kSlot, false).ok());
    ASSERT_TRUE(memory.Move(kSlot, kComing).ok());
    EXPECT_TRUE(Comes([&] { return Read(kComing, kComingBytes) != quiet; })) << "written again";

    ASSERT_TRUE(memory.Delete(kSlot).ok());
  }
  EXPECT_EQ(vm_->MemorySlots().size(), 1u);
}

TEST_P(RunningGuest, WorkingSetIsWhatTheGuestUses) {
  VmMemory& memory = vm_->memory();
  ASSERT_TRUE(memory.Add({.id = kSlot, .base = kComing, .bytes = 2 * kComingBytes}).ok());
  // It uses the first half.
  const auto used = [&] { return memory.TakeWorkingSet(kSlot).value_or(0); };
  EXPECT_TRUE(Comes([&] { return used() >= 512; }));
  EXPECT_LE(used(), kComingBytes / kPageBytes);
  ASSERT_TRUE(vm_->Pause().ok());
  static_cast<void>(used());
  EXPECT_EQ(used(), 0u);
}

struct RefusalCase {
  const char* name;
  absl::Status (*call)(VmMemory&);
  absl::StatusCode code;
  const char* message;
};

absl::Status Add(VmMemory& memory, std::uint32_t id, std::uint64_t base, std::uint64_t bytes) {
  return memory.Add({.id = id, .base = Gpa(base), .bytes = bytes}).status();
}

const RefusalCase kRefusals[] = {
    {"TakenId", [](VmMemory& m) { return Add(m, 0, kComing.bits(), 0x1000); },
     absl::StatusCode::kInvalidArgument, "slot 0: the id is taken"},
    {"Overlap", [](VmMemory& m) { return Add(m, 9, kRamBytes - 0x1000, 0x2000); },
     absl::StatusCode::kInvalidArgument, "slot 9: overlaps slot 0"},
    {"UnalignedBase", [](VmMemory& m) { return Add(m, 9, kComing.bits() + 8, 0x1000); },
     absl::StatusCode::kInvalidArgument, "slot 9: address 0x100000008: must be a multiple of 4096"},
    {"UnalignedSize", [](VmMemory& m) { return Add(m, 9, kComing.bits(), 0x1001); },
     absl::StatusCode::kInvalidArgument,
     "slot 9: size of 4097 bytes: must be a positive multiple of 4096"},
    {"Nothing", [](VmMemory& m) { return Add(m, 9, kComing.bits(), 0); },
     absl::StatusCode::kInvalidArgument,
     "slot 9: size of 0 bytes: must be a positive multiple of 4096"},
    {"Devices", [](VmMemory& m) { return Add(m, 9, 0xfee0'0000, 0x1000); },
     absl::StatusCode::kInvalidArgument,
     "slot 9: address 0xfee00000, 4096 bytes: reaches into 0xfec00000 to 0xffffffff, where the "
     "machine has its devices"},
    {"OutOfReach", [](VmMemory& m) { return Add(m, 9, std::uint64_t{1} << 52, 0x1000); },
     absl::StatusCode::kInvalidArgument,
     "slot 9: frames 0x10000000000 and 1 more reach beyond 52 address bits"},
    {"WrapsAround", [](VmMemory& m) { return Add(m, 9, ~std::uint64_t{0xfff}, 0x2000); },
     absl::StatusCode::kInvalidArgument,
     "slot 9: frames 0xfffffffffffff and 2 more reach beyond 52 address bits"},
    {"DeleteUnknown", [](VmMemory& m) { return m.Delete(9); }, absl::StatusCode::kNotFound,
     "slot 9: there is none"},
    {"DeleteRam", [](VmMemory& m) { return m.Delete(0); }, absl::StatusCode::kFailedPrecondition,
     "slot 0: it is RAM that the VM was made with, which stays where it is"},
    {"MoveRam", [](VmMemory& m) { return m.Move(0, kComing).status(); },
     absl::StatusCode::kFailedPrecondition,
     "slot 0: it is RAM that the VM was made with, which stays where it is"},
    {"MoveUnknown", [](VmMemory& m) { return m.Move(9, kComing).status(); },
     absl::StatusCode::kNotFound, "slot 9: there is none"},
    {"ReadOnlyUnknown", [](VmMemory& m) { return m.SetReadOnly(9, true).status(); },
     absl::StatusCode::kNotFound, "slot 9: there is none"},
    {"TakeWithoutLog", [](VmMemory& m) { return m.TakeDirtyLog(0).status(); },
     absl::StatusCode::kFailedPrecondition, "slot 0: is not logged"},
    {"StopWithoutLog", [](VmMemory& m) { return m.StopDirtyLog(0); },
     absl::StatusCode::kFailedPrecondition, "slot 0: is not logged"},
    {"StartTwice",
     [](VmMemory& m) {
       EXPECT_TRUE(m.StartDirtyLog(0, {}).ok());
       const absl::Status status = m.StartDirtyLog(0, {}).status();
       EXPECT_TRUE(m.StopDirtyLog(0).ok());
       return status;
     },
     absl::StatusCode::kFailedPrecondition, "slot 0: is logged already"},
    {"MoveLogged",
     [](VmMemory& m) {
       EXPECT_TRUE(Add(m, kSlot, kComing.bits(), kComingBytes).ok());
       EXPECT_TRUE(m.StartDirtyLog(kSlot, {}).ok());
       const absl::Status status = m.Move(kSlot, Gpa(std::uint64_t{5} << 30)).status();
       EXPECT_TRUE(m.Delete(kSlot).ok());
       return status;
     },
     absl::StatusCode::kFailedPrecondition,
     "slot 7: its writes are logged by where it is: stop that first"},
};

TEST_P(RunningGuest, RefusesWhatCannotBe) {
  for (const RefusalCase& refusal : kRefusals) {
    const absl::Status status = refusal.call(vm_->memory());
    EXPECT_EQ(status.code(), refusal.code) << refusal.name;
    EXPECT_EQ(status.message(), refusal.message) << refusal.name;
  }
  const std::vector<MemorySlot> slots = vm_->MemorySlots();
  ASSERT_EQ(slots.size(), 1u);
  EXPECT_EQ(slots[0].page_count, kRamBytes / kPageBytes);
}

}  // namespace
}  // namespace pagesaw
