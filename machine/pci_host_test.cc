#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.machine.device;
import pagesaw.machine.pci_host;

namespace pagesaw {
namespace {

class PciHostTest : public testing::Test {
 protected:
  std::uint32_t Get(unsigned device, unsigned offset) {
    Select(device, offset);
    return static_cast<std::uint32_t>(host_.Read(BusSpace::kPort, 0xcfc, 4));
  }
  void Set(unsigned device, unsigned offset, std::uint32_t value) {
    Select(device, offset);
    host_.Write(BusSpace::kPort, 0xcfc, 4, value);
  }
  void Select(unsigned device, unsigned offset) {
    host_.Write(BusSpace::kPort, 0xcf8, 4, 1u << 31 | device << 11 | offset);
  }
  PciHost host_;
};

TEST_F(PciHostTest, ShowsTheHostBridge) {
  EXPECT_EQ(Get(0, 0), 0x1237'8086u);
  EXPECT_EQ(host_.Read(BusSpace::kPort, 0xcfe, 2) & 0xffff, 0x1237u);
}

TEST_F(PciHostTest, AbsentDevicesReadAsOnes) {
  EXPECT_EQ(Get(9, 0), ~0u);
  host_.Write(BusSpace::kPort, 0xcf8, 4, 0);
  EXPECT_EQ(host_.Read(BusSpace::kPort, 0xcfc, 4), ~std::uint64_t{0});
}

TEST_F(PciHostTest, BaseAddressesTellTheirSizeAndMove) {
  ASSERT_EQ(Get(2, 0), 0x0005'1b36u);
  Set(2, 0x10, ~0u);
  EXPECT_EQ(Get(2, 0x10), 0xffff'f000u);
  Set(2, 0x10, 0xf100'0000);
  Set(2, 0x14, ~0u);
  EXPECT_EQ(Get(2, 0x14), 0xffff'ff01u);
  host_.Write(BusSpace::kMmio, 0xf100'0000, 1, 0);
  EXPECT_EQ(host_.Read(BusSpace::kMmio, 0xf100'0000, 1) & 0xff, 0u);
  EXPECT_EQ(host_.Read(BusSpace::kMmio, 0xfe00'0000, 1), ~std::uint64_t{0});
}

TEST_F(PciHostTest, TestFunctionCountsWrites) {
  const std::uint64_t memory = Get(2, 0x10);
  host_.Write(BusSpace::kMmio, memory, 1, 0);
  EXPECT_EQ(host_.Read(BusSpace::kMmio, memory + 1, 1) & 0xff, 1u);
  const std::uint64_t at = host_.Read(BusSpace::kMmio, memory + 4, 4) & 0xffff'ffff;
  host_.Write(BusSpace::kMmio, memory + at, 1, 0xfa);
  host_.Write(BusSpace::kMmio, memory + at, 1, 0xfa);
  EXPECT_EQ(host_.Read(BusSpace::kMmio, memory + 12, 4) & 0xffff'ffff, 2u);
  std::string name;
  for (std::uint64_t i = memory + 16;; ++i) {
    const char c = static_cast<char>(host_.Read(BusSpace::kMmio, i, 1));
    if (c == 0) break;
    name += c;
  }
  EXPECT_EQ(name, "mmio-no-eventfd:PCI");
  host_.Write(BusSpace::kMmio, memory, 1, 1);
  EXPECT_EQ(host_.Read(BusSpace::kMmio, memory + 1, 1) & 0xff, 0u);  // no such test
}

TEST_F(PciHostTest, CommandTurnsDecodingOff) {
  Set(2, 4, 0);
  EXPECT_EQ(host_.Read(BusSpace::kMmio, Get(2, 0x10), 1), ~std::uint64_t{0});
}

}  // namespace
}  // namespace pagesaw
