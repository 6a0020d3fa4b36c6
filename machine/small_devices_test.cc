#include <gtest/gtest.h>
#include <chrono>
#include <cstdint>

import pagesaw.machine.console;
import pagesaw.machine.device;
import pagesaw.machine.small_devices;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

constexpr BusSpace kPort = BusSpace::kPort;

TEST(DebugExit, EndsTheVmWithTheValue) {
  FakeSystemControl system;
  DebugExit device(system);
  device.Write(kPort, 0xf4, 4, 63);
  EXPECT_EQ(system.debug_exit, 63u);
}

TEST(DebugConsole, PrintsAndIsFound) {
  Console console;
  DebugConsole device(console);
  device.Write(kPort, 0xe9, 1, 'q');
  EXPECT_EQ(device.Read(kPort, 0xe9, 1), 0xe9u);
  EXPECT_EQ(console.Read(0, 10, std::chrono::milliseconds(0)).data, "q");
}

TEST(KeyboardController, ResetsOnCommandFe) {
  FakeSystemControl system;
  KeyboardController device(system);
  device.Write(kPort, 0x60, 1, 0xfe);
  device.Write(kPort, 0x64, 1, 0xd1);
  EXPECT_EQ(system.resets, 0u);
  device.Write(kPort, 0x64, 1, 0xfe);
  EXPECT_EQ(system.resets, 1u);
  EXPECT_EQ(device.Read(kPort, 0x64, 1), 0u);
}

std::uint64_t ReadKey(FwCfg& device, std::uint16_t key, unsigned bytes) {
  device.Write(kPort, 0x510, 2, key);
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) value |= device.Read(kPort, 0x511, 1) << (8 * i);
  return value;
}

TEST(FwCfg, AnswersItsKeysByteByByte) {
  FwCfg device(0x1'2345'6000, 3);
  EXPECT_EQ(ReadKey(device, 0, 4), 0x554d4551u);  // "QEMU"
  EXPECT_EQ(ReadKey(device, 1, 4), 1u);
  EXPECT_EQ(ReadKey(device, 3, 8), 0x1'2345'6000u);
  EXPECT_EQ(ReadKey(device, 5, 2), 3u);
  EXPECT_EQ(ReadKey(device, 0x11, 8), 0u);
}

TEST(FwCfg, ReadsZeroesPastTheEndAndForUnknownKeys) {
  FwCfg device(4096, 1);
  EXPECT_EQ(ReadKey(device, 5, 8), 1u);
  EXPECT_EQ(ReadKey(device, 0xffff, 8), 0u);
}

TEST(SystemControlPort, ResetsByBit0) {
  FakeSystemControl system;
  SystemControlPort device(system);
  EXPECT_EQ(device.Read(kPort, 0x92, 1), 2u);
  device.Write(kPort, 0x92, 1, 0xfe);
  EXPECT_EQ(device.Read(kPort, 0x92, 1), 2u);
  EXPECT_EQ(system.resets, 0u);
  device.Write(kPort, 0x92, 1, 1);
  EXPECT_EQ(system.resets, 1u);
}

}  // namespace
}  // namespace pagesaw
