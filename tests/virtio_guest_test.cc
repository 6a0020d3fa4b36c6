// A device that writes guest memory, on the whole machine: processors execute what it wrote, and it
// does nothing that the host forbids the guest.
#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <memory>
#include <span>
#include <string>

import pagesaw.control.parts;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.plugin;
import pagesaw.machine.vm;
import pagesaw.machine.vm_config;
import pagesaw.machine.vm_exit;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

constexpr Gpa kCode(0x80'0000), kTarget(0x50'0000), kForbidden(0x90'0000);
constexpr std::uint32_t kOldCode = 1, kNewCode = 2, kIoError = 16;

struct Case {
  const char* name;
  const char* vendor;
  bool tdp;
};

class VirtioGuest : public testing::TestWithParam<Case> {
 protected:
  VirtioGuest() : disk_(testing::TempDir() + "/pagesaw_virtio_guest_" + std::to_string(getpid())) {
    EXPECT_FALSE(vmx::MakeVmxPlugin()->Register(registry_));
    EXPECT_FALSE(svm::MakeSvmPlugin()->Register(registry_));
    EXPECT_FALSE(mbec::MakeMbecPlugin()->Register(registry_));
    // mov $2, %eax; ret
    std::ofstream(disk_, std::ios::binary)
        << std::string("\xb8\x02\0\0\0\xc3", 6) << std::string(506, '\0');
    VmConfig config;
    config.name = "virtio-guest-test";
    config.image_path = "guests/virtio_disk.elf";
    config.vendor = GetParam().vendor;
    config.tdp = GetParam().tdp;
    config.disk_path = disk_;
    auto vm = Vm::Create(config, registry_, MakeVmParts());
    EXPECT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
  }
  ~VirtioGuest() override { unlink(disk_.c_str()); }

  // What the guest ends with.
  std::uint32_t Run() {
    EXPECT_TRUE(vm_->Start().ok());
    EXPECT_TRUE(vm_->WaitUntilStopped(milliseconds(60'000)));
    EXPECT_EQ(vm_->exit().reason, StopReason::kDebugExit) << vm_->exit().message;
    return vm_->exit().debug_exit_value;
  }

  const std::string disk_;
  PluginRegistry registry_;
  std::unique_ptr<Vm> vm_;
};

TEST_P(VirtioGuest, ExecutesWhatTheDiskWroteOverItsCode) { EXPECT_EQ(Run(), kNewCode); }

TEST_P(VirtioGuest, IsWrittenToWhereAnAttributeOnlyNotes) {
  const MemoryAttribute attribute = {
      .rights = Rights(Rights::kRead | Rights::kExecSupervisor | Rights::kExecUser),
      .policy = ViolationPolicy::kLog};
  ASSERT_TRUE(vm_->SetMemoryAttribute(kCode, kPageBytes, attribute).ok());
  EXPECT_EQ(Run(), kNewCode);
}

TEST_P(VirtioGuest, DoesNotWriteForTheGuestWhereTheGuestMayNot) {
  const std::uint64_t target = kForbidden.bits();
  ASSERT_TRUE(vm_->WriteMemory(kTarget, std::as_bytes(std::span(&target, 1))).ok());
  ASSERT_TRUE(vm_->SetMemoryAttribute(kForbidden, kPageBytes,
                                      {.rights = Rights(Rights::kRead | Rights::kExecSupervisor |
                                                        Rights::kExecUser)})
                  .ok());
  EXPECT_EQ(Run(), kOldCode + kIoError);
}

INSTANTIATE_TEST_SUITE_P(Machines, VirtioGuest,
                         testing::Values(Case{"IntelTdp", "intel", true},
                                         Case{"IntelShadow", "intel", false},
                                         Case{"AmdTdp", "amd", true},
                                         Case{"AmdShadow", "amd", false}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw
