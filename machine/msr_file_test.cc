#include <gtest/gtest.h>
#include <cstdint>

import pagesaw.core.processor;
import pagesaw.machine.apic_bus;
import pagesaw.machine.local_apic;
import pagesaw.machine.msr_file;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

class MsrFileTest : public testing::Test {
 protected:
  BusAccess Read(MsrFile& msrs, std::uint32_t index) {
    BusAccess access{.kind = BusAccess::Kind::kMsrRead, .bytes = 8, .address = index};
    msrs.Dispatch(access);
    return access;
  }
  bool Write(MsrFile& msrs, std::uint32_t index, std::uint64_t value) {
    BusAccess access{
        .kind = BusAccess::Kind::kMsrWrite, .bytes = 8, .address = index, .value = value};
    msrs.Dispatch(access);
    return !access.refused;
  }
  FakeClock clock_;
  ApicBus bus_;
  LocalApic apic_{{}, clock_, bus_, [] {}};
  MsrFile plain_{apic_, {.tsc_deadline = false, .legacy_amd_counters = false}};
  MsrFile full_{apic_, {.tsc_deadline = true, .legacy_amd_counters = true}};
};

TEST_F(MsrFileTest, ReachesTheLocalApic) {
  EXPECT_EQ(Read(plain_, 0x1b).value, 0xfee0'0900u);
  EXPECT_TRUE(Read(plain_, 0x802).refused);
  EXPECT_TRUE(Write(plain_, 0x1b, 0xfee0'0d00));
  EXPECT_FALSE(Write(plain_, 0x1b, 0xfee0'0900));
  EXPECT_FALSE(Read(plain_, 0x803).refused);
  EXPECT_TRUE(Write(plain_, 0x808, 0x10));
  EXPECT_EQ(apic_.cr8(), 1);
}

TEST_F(MsrFileTest, RefusesWhatDoesNotExist) {
  for (const std::uint32_t index :
       {0x0u, 0x3au, 0x480u, 0x6e0u, 0x900u, 0xc001'0000u, 0xffff'ffffu}) {
    EXPECT_TRUE(Read(plain_, index).refused) << std::hex << index;
    EXPECT_FALSE(Write(plain_, index, 0)) << std::hex << index;
  }
}

TEST_F(MsrFileTest, LetsCountersBeCleared) {
  for (const std::uint32_t index : {0xc001'0000u, 0xc001'0007u, 0xc001'0200u, 0xc001'020bu}) {
    EXPECT_TRUE(Write(full_, index, 0));
    EXPECT_FALSE(Write(full_, index, 1));
    EXPECT_EQ(Read(full_, index).value, 0u);
  }
  EXPECT_FALSE(Write(full_, 0xc001'0008, 0));
  EXPECT_TRUE(Write(full_, 0x6e0, 5));
}

}  // namespace
}  // namespace pagesaw
