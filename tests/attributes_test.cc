// Memory attributes on the whole machine: guests/attributes.S makes one access after the other, as
// this test tells it, under every attribute, on every kind of SPTE. What must become of each is
// written down here from the meaning of the rights alone.
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.plugin;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kPatience(60'000);

constexpr unsigned kR = 1, kW = 2, kXs = 4, kXu = 8, kAll = 15;
constexpr std::uint64_t kMailbox = 0x50'0000, kCounter = kMailbox + 0x100;
constexpr std::uint64_t kCode = 0x60'0000, kReadOnly = 0x60'2000, kLoop = 0x60'3000;
constexpr std::uint64_t kOtherTable = 0x40'4000, kOtherPage = 0x60'4000;

// Commands of the guest.
enum Command : std::uint64_t {
  kSupervisorRead = 1,
  kSupervisorWrite,
  kSupervisorCall,
  kUserRead,
  kUserWrite,
  kUserCall,
  kSupervisorCallsUserPage,
  kTableRead,
  kTableWrite,
  kTableChange,
  kWriteWithoutWp,
  kCallAfterWriteWithoutWp,
};

// How SPTEs tell execution apart.
enum class Kind { kMbec, kEpt, kGmet, kNpt, kShadow };

struct MachineCase {
  const char* name;
  const char* vendor;
  bool tdp;
  ExecuteSplit split;
  Kind kind;
};

// What the tables can say: see the manuals' formats. Every entry of NPT and of a guest's own kind
// that is present can be read; EPT has a bit for each of R, W, X, and with mode-based execute
// control one for XU; NPT's user pages refuse supervisor fetches under guest mode execute trap.
bool Expressible(Kind kind, unsigned rights) {
  const bool r = (rights & kR) != 0, w = (rights & kW) != 0;
  const bool xs = (rights & kXs) != 0, xu = (rights & kXu) != 0;
  if (w && !r) return false;
  switch (kind) {
    case Kind::kMbec:
      return true;
    case Kind::kEpt:
      return xs == xu;
    case Kind::kGmet:
      return (r || (!xs && !xu)) && (!xs || xu);
    case Kind::kNpt:
      return (r || !xs) && xs == xu;
    case Kind::kShadow:
      return r || (!xs && !xu);
  }
  return false;
}

// The right that a command needs of the page at kCode.
unsigned NeededBy(Kind kind, std::uint64_t command) {
  switch (command) {
    case kSupervisorRead:
    case kUserRead:
      return kR;
    case kSupervisorWrite:
    case kUserWrite:
      return kW;
    case kSupervisorCall:
      return kXs;
    case kUserCall:
      return kXu;
    case kSupervisorCallsUserPage:
      return kind == Kind::kGmet ? kXs : kXu;  // by who fetches; elsewhere by whose page it is
    default:
      return 0;
  }
}

class AttributeGuest : public testing::TestWithParam<MachineCase> {
 protected:
  void SetUp() override {
    const std::unique_ptr<Plugin> plugins[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                               mbec::MakeMbecPlugin()};
    for (const auto& plugin : plugins) ASSERT_FALSE(plugin->Register(registry_));
    Boot(1);
  }
  void Boot(unsigned cpus) {
    VmConfig config;
    config.name = "guest";
    config.vendor = GetParam().vendor;
    config.tdp = GetParam().tdp;
    config.execute_split = GetParam().split;
    config.image_path = "guests/attributes.elf";
    config.memory_bytes = 16u << 20;
    config.cpu_count = cpus;
    auto vm = Vm::Create(config, registry_, MakeVmParts());
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    ASSERT_TRUE(vm_->Start().ok());
    ASSERT_TRUE(WaitFor([this] { return Word(kMailbox + 8) == 1; })) << vm_->exit().message;
  }

  std::uint64_t Word(std::uint64_t gpa) const {
    std::uint64_t word = 0;
    EXPECT_TRUE(vm_->ReadMemory(Gpa(gpa), std::as_writable_bytes(std::span(&word, 1))).ok());
    return word;
  }
  void SetWord(std::uint64_t gpa, std::uint64_t word) {
    ASSERT_TRUE(vm_->WriteMemory(Gpa(gpa), std::as_bytes(std::span(&word, 1))).ok());
  }
  bool WaitFor(const std::function<bool()>& condition) const {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (!condition()) {
      if (vm_->state() == VmState::kStopped || std::chrono::steady_clock::now() > until) {
        return false;
      }
      std::this_thread::yield();
    }
    return true;
  }

  absl::Status Set(std::uint64_t gpa, unsigned rights,
                   ViolationPolicy policy = ViolationPolicy::kStop) {
    return vm_->SetMemoryAttribute(Gpa(gpa), 4096, {.rights = Rights(rights), .policy = policy});
  }

  // Waits until the command is done (true), or the VM is held (false).
  bool AwaitDone() {
    const std::uint64_t done = done_ + 1;
    EXPECT_TRUE(WaitFor([&] {
      return Word(kMailbox + 8) == done || vm_->state() == VmState::kPaused;
    })) << vm_->exit().message;
    if (Word(kMailbox + 8) != done) return false;
    done_ = done;
    return true;
  }
  bool Do(std::uint64_t command) {
    SetWord(kMailbox, command);
    return AwaitDone();
  }
  std::uint64_t value() const { return Word(kMailbox + 0x10); }
  std::uint64_t vector() const { return Word(kMailbox + 0x18); }

  // The VM is held by one violation, which is returned.
  Violation Held() const {
    EXPECT_EQ(vm_->state(), VmState::kPaused);
    const std::vector<Violation> held = vm_->violations().Holding();
    EXPECT_EQ(held.size(), 1u);
    return held.empty() ? Violation{} : held[0];
  }
  // Lets everything be done with the page, and the VM finish the command.
  void WidenAndFinish(std::uint64_t gpa) {
    ASSERT_TRUE(Set(gpa, kAll).ok());
    ASSERT_TRUE(vm_->Resume().ok());
    ASSERT_TRUE(AwaitDone());
    EXPECT_EQ(vector(), 0u);
  }

  PluginRegistry registry_;
  std::unique_ptr<Vm> vm_;
  std::uint64_t done_ = 1;
};

INSTANTIATE_TEST_SUITE_P(
    Machines, AttributeGuest,
    testing::Values(MachineCase{"Mbec", "intel", true, ExecuteSplit::kOn, Kind::kMbec},
                    MachineCase{"Ept", "intel", true, ExecuteSplit::kOff, Kind::kEpt},
                    MachineCase{"Gmet", "amd", true, ExecuteSplit::kOn, Kind::kGmet},
                    MachineCase{"Npt", "amd", true, ExecuteSplit::kOff, Kind::kNpt},
                    MachineCase{"IntelShadow", "intel", false, ExecuteSplit::kAuto, Kind::kShadow},
                    MachineCase{"AmdShadow", "amd", false, ExecuteSplit::kAuto, Kind::kShadow}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(AttributeGuest, EveryAccessUnderEveryAttribute) {
  const Kind kind = GetParam().kind;
  for (unsigned rights = 0; rights < 16; ++rights) {
    const absl::Status status = Set(kCode, rights);
    ASSERT_EQ(status.ok(), Expressible(kind, rights)) << rights << ": " << status;
    if (!status.ok()) {
      EXPECT_TRUE(absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status));
      EXPECT_TRUE(vm_->MemoryAttributes().empty()) << "nothing may have changed";
      continue;
    }
    for (std::uint64_t command = kSupervisorRead; command <= kSupervisorCallsUserPage; ++command) {
      SCOPED_TRACE("rights " + std::to_string(rights) + ", command " + std::to_string(command));
      const unsigned needed = NeededBy(kind, command);
      const bool call = needed == kXs || needed == kXu;
      ASSERT_TRUE(Set(kCode, rights).ok());
      const bool done = Do(command);
      ASSERT_EQ(done, (rights & needed) != 0);
      if (!done) {
        const Violation held = Held();
        const bool user = command >= kUserRead && command <= kUserCall;
        const bool user_page = user || command == kSupervisorCallsUserPage;
        EXPECT_EQ(held.vcpu, 0u);
        EXPECT_EQ(held.gpa, Gpa(kCode + (call ? 0 : 0x100)));
        EXPECT_EQ(held.linear.bits(), held.gpa.bits() + (user_page ? 0x1000 : 0));
        EXPECT_EQ(held.access.is_fetch(), call);
        EXPECT_EQ(held.access.is_write(), needed == kW);
        EXPECT_EQ(held.access.is_user(), user);
        EXPECT_EQ(held.stage, Stage::kFinal);
        // Every access to the tables of NPT is a user's.
        const bool one_right = kind == Kind::kNpt && call;
        EXPECT_EQ(held.missing, Rights(one_right ? kXu : needed));
        EXPECT_EQ(held.attribute.rights, Rights(rights));
        // Nothing has changed: it is refused again.
        ASSERT_TRUE(vm_->Resume().ok());
        ASSERT_FALSE(AwaitDone());
        WidenAndFinish(kCode);
      }
      EXPECT_EQ(vector(), 0u);
      if (call) {
        EXPECT_EQ(value(), 42u);
      }
    }
    ASSERT_TRUE(Set(kCode, kAll).ok());
  }
}

TEST_P(AttributeGuest, PolicyMayBeAPageFault) {
  ASSERT_TRUE(Set(kCode, kR, ViolationPolicy::kPageFault).ok());
  ASSERT_TRUE(Do(kUserCall));
  EXPECT_EQ(vector(), 14u);
  EXPECT_EQ(Word(kMailbox + 0x20), 0x15u) << "P, U and I";
  EXPECT_EQ(Word(kMailbox + 0x28), kCode + 0x1000);
  ASSERT_TRUE(Do(kSupervisorWrite));
  EXPECT_EQ(vector(), 14u);
  EXPECT_EQ(Word(kMailbox + 0x20), 3u) << "P and W";
  EXPECT_EQ(Word(kMailbox + 0x28), kCode + 0x100);
  ASSERT_TRUE(Do(kUserRead));
  EXPECT_EQ(vector(), 0u);
  EXPECT_EQ(vm_->violations().count(ViolationPolicy::kPageFault), 2u);
}

TEST_P(AttributeGuest, PolicyMayBeAGeneralProtectionFault) {
  ASSERT_TRUE(Set(kCode, kR, ViolationPolicy::kGeneralProtection).ok());
  ASSERT_TRUE(Do(kSupervisorCall));
  EXPECT_EQ(vector(), 13u);
  EXPECT_EQ(Word(kMailbox + 0x20), 0u);
  EXPECT_EQ(vm_->violations().count(ViolationPolicy::kGeneralProtection), 1u);
}

TEST_P(AttributeGuest, PolicyMayBeToLog) {
  ASSERT_TRUE(Set(kCode, 0, ViolationPolicy::kLog).ok());
  for (std::uint64_t command : {kSupervisorRead, kSupervisorWrite, kSupervisorCall}) {
    ASSERT_TRUE(Do(command));
    EXPECT_EQ(vector(), 0u);
  }
  EXPECT_EQ(value(), 42u);
  const std::vector<Violation> noted = vm_->violations().Recent();
  ASSERT_FALSE(noted.empty());
  EXPECT_EQ(noted[0].missing, Rights(kR));
  EXPECT_EQ(noted[0].gpa, Gpa(kCode + 0x100));
  for (unsigned i = 0; i < noted.size(); ++i) EXPECT_EQ(noted[i].number, i + 1);
  // The first of each kind to the page, no more.
  const std::uint64_t count = vm_->violations().count(ViolationPolicy::kLog);
  EXPECT_LE(count, 3u);
  ASSERT_TRUE(Do(kSupervisorRead));
  ASSERT_TRUE(Do(kSupervisorCall));
  EXPECT_EQ(vm_->violations().count(ViolationPolicy::kLog), count);
}

TEST_P(AttributeGuest, TablesThatMayNotBeReadStopTheWalk) {
  ASSERT_TRUE(Do(kTableRead));
  ASSERT_TRUE(Set(kOtherTable, 0).ok());
  ASSERT_FALSE(Do(kTableRead));
  const Violation held = Held();
  EXPECT_EQ(held.stage, Stage::kTable);
  EXPECT_EQ(held.gpa, Gpa(kOtherTable));
  EXPECT_EQ(held.linear, Gva(0x80'0100));
  EXPECT_EQ(held.missing, Rights(kR));
  WidenAndFinish(kOtherTable);
}

TEST_P(AttributeGuest, TablesThatMayNotBeWrittenGetNoAccessedOrDirtyBit) {
  SetWord(kOtherTable, kOtherPage | 3);
  ASSERT_TRUE(Set(kOtherTable, kR).ok());
  ASSERT_FALSE(Do(kTableRead)) << "wants to set A";
  Violation held = Held();
  EXPECT_EQ(held.stage, Stage::kTable);
  EXPECT_EQ(held.gpa, Gpa(kOtherTable));
  EXPECT_TRUE(held.access.is_write());
  EXPECT_EQ(held.missing, Rights(kW));
  EXPECT_EQ(Word(kOtherTable), kOtherPage | 3);
  WidenAndFinish(kOtherTable);
  EXPECT_EQ(Word(kOtherTable), kOtherPage | 0x23);

  ASSERT_TRUE(Set(kOtherTable, kR).ok());
  ASSERT_TRUE(Do(kTableRead)) << "A is set";
  ASSERT_FALSE(Do(kTableWrite)) << "wants to set D";
  held = Held();
  EXPECT_EQ(held.stage, Stage::kTable);
  EXPECT_EQ(held.missing, Rights(kW));
  EXPECT_EQ(Word(kOtherTable), kOtherPage | 0x23);
  WidenAndFinish(kOtherTable);
  EXPECT_EQ(Word(kOtherTable), kOtherPage | 0x63);

  ASSERT_TRUE(Set(kOtherTable, kR).ok());
  ASSERT_FALSE(Do(kTableChange));
  held = Held();
  EXPECT_EQ(held.stage, Stage::kFinal);
  EXPECT_EQ(held.gpa, Gpa(kOtherTable));
  WidenAndFinish(kOtherTable);
  EXPECT_EQ(Word(kOtherTable), kOtherPage | 3);
}

// A supervisor's write to a user's read-only page with CR0.WP clear changes neither who may execute
// there nor what the attribute says of it.
TEST_P(AttributeGuest, WritingWithoutWpGainsNothingElse) {
  ASSERT_TRUE(Do(kCallAfterWriteWithoutWp));
  EXPECT_EQ(value(), 42u);
  ASSERT_TRUE(Set(kReadOnly, kR).ok());
  ASSERT_FALSE(Do(kWriteWithoutWp));
  EXPECT_EQ(Held().missing, Rights(kW));
  WidenAndFinish(kReadOnly);
  EXPECT_EQ(value(), 9u);
  const bool by_mode = GetParam().kind == Kind::kGmet;
  if (Set(kReadOnly, kR | kW | kXs).ok()) {
    ASSERT_FALSE(Do(kCallAfterWriteWithoutWp)) << "it is a user's page";
    EXPECT_EQ(Held().missing, Rights(kXu));
    WidenAndFinish(kReadOnly);
  }
  if (Set(kReadOnly, kR | kW | kXu).ok()) {
    ASSERT_EQ(Do(kCallAfterWriteWithoutWp), !by_mode);
    if (by_mode) WidenAndFinish(kReadOnly);
    EXPECT_EQ(value(), 42u);
  }
}

TEST_P(AttributeGuest, RestrictingHoldsARunningProcessorBeforeItReturns) {
  Boot(2);
  for (unsigned round = 0; round < 5; ++round) {
    const std::uint64_t before = Word(kCounter);
    ASSERT_TRUE(WaitFor([&] { return Word(kCounter) > before + 1000; }));
    ASSERT_TRUE(Set(kLoop, kR | kW).ok());
    const std::uint64_t at_return = Word(kCounter);
    ASSERT_TRUE(WaitFor([&] { return vm_->state() == VmState::kPaused; }));
    EXPECT_EQ(Word(kCounter), at_return);
    const Violation held = Held();
    EXPECT_EQ(held.vcpu, 1u);
    EXPECT_TRUE(held.access.is_fetch());
    EXPECT_EQ(held.gpa.bits() & ~std::uint64_t{0xfff}, kLoop);
    ASSERT_TRUE(Set(kLoop, kAll).ok());
    ASSERT_TRUE(vm_->Resume().ok());
  }
  // A counter that may not be written any more stands still as well.
  ASSERT_TRUE(Set(kMailbox, kR | kXs | kXu, ViolationPolicy::kStop).ok());
  const std::uint64_t at_return = Word(kCounter);
  ASSERT_TRUE(WaitFor([&] { return vm_->state() == VmState::kPaused; }));
  EXPECT_EQ(Word(kCounter), at_return);
}

TEST_P(AttributeGuest, RefusesWhatMakesNoSense) {
  const MemoryAttribute read_only = {.rights = Rights(kR)};
  struct Row {
    std::uint64_t gpa, bytes;
  };
  for (const Row& row : {Row{0x1001, 4096}, Row{0x1000, 0}, Row{0x1000, 100},
                         Row{std::uint64_t{1} << 52, 4096}, Row{0, ~std::uint64_t{0xfff}}}) {
    const absl::Status status = vm_->SetMemoryAttribute(Gpa(row.gpa), row.bytes, read_only);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
  const absl::Status status = Set(kCode, kW);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(status.message().find("W without R"), std::string::npos) << status;
  EXPECT_TRUE(vm_->MemoryAttributes().empty());
}

// Attributes that come and go while the guest works never lose an access and never let one pass
// that the last one to hold refused.
TEST_P(AttributeGuest, SurvivesAttributesThatComeAndGo) {
  for (unsigned round = 0; round < 40; ++round) {
    std::thread host([&] {
      for (unsigned rights : {0u, kR, kR | kW, kAll}) {
        EXPECT_TRUE(Set(kCode, rights, ViolationPolicy::kLog).ok());
      }
    });
    const bool done = Do(round % 2 == 0 ? kSupervisorWrite : kUserCall);
    host.join();
    ASSERT_TRUE(done);
    EXPECT_EQ(vector(), 0u);
  }
  EXPECT_TRUE(vm_->MemoryAttributes().empty());
}

}  // namespace
}  // namespace pagesaw
