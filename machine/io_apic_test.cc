#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

import pagesaw.machine.apic_bus;
import pagesaw.machine.device;
import pagesaw.machine.io_apic;

namespace pagesaw {
namespace {

class Recorder final : public ApicReceiver {
 public:
  bool IsDestination(const ApicMessage&) const override { return true; }
  std::uint8_t arbitration_priority() const override { return 0; }
  void Accept(const ApicMessage& message) override { messages.push_back(message); }
  std::vector<ApicMessage> messages;
};

class IoApicTest : public testing::Test {
 protected:
  IoApicTest() { bus_.Attach(recorder_); }

  std::uint32_t Get(std::uint8_t index) {
    apic_.Write(BusSpace::kMmio, IoApic::kBase, 4, index);
    return static_cast<std::uint32_t>(apic_.Read(BusSpace::kMmio, IoApic::kBase + 0x10, 4));
  }
  void Set(std::uint8_t index, std::uint32_t value) {
    apic_.Write(BusSpace::kMmio, IoApic::kBase, 4, index);
    apic_.Write(BusSpace::kMmio, IoApic::kBase + 0x10, 4, value);
  }
  void Route(unsigned pin, std::uint32_t low, std::uint8_t destination) {
    Set(static_cast<std::uint8_t>(0x11 + 2 * pin), std::uint32_t{destination} << 24);
    Set(static_cast<std::uint8_t>(0x10 + 2 * pin), low);
  }

  static constexpr std::uint32_t kLevel = 1u << 15, kMask = 1u << 16, kRemoteIrr = 1u << 14;

  Recorder recorder_;
  ApicBus bus_;
  IoApic apic_{bus_};
};

TEST_F(IoApicTest, HasTheRegistersOfTheManual) {
  EXPECT_EQ(Get(1), 0x0017'0020u);
  Set(1, ~0u);
  EXPECT_EQ(Get(1), 0x0017'0020u);
  Set(0, ~0u);
  EXPECT_EQ(Get(0), 0x0f00'0000u);
  EXPECT_EQ(Get(2), 0x0f00'0000u);
  for (unsigned pin = 0; pin < IoApic::kPins; ++pin) {
    EXPECT_EQ(Get(static_cast<std::uint8_t>(0x10 + 2 * pin)), kMask);
  }
}

TEST_F(IoApicTest, SendsOneMessagePerEdge) {
  Route(14, 0x76, 3);
  apic_.SetPin(14, true);
  apic_.SetPin(14, true);
  ASSERT_EQ(recorder_.messages.size(), 1u);
  EXPECT_EQ(recorder_.messages[0].vector, 0x76);
  EXPECT_EQ(recorder_.messages[0].destination, 3u);
  EXPECT_FALSE(recorder_.messages[0].level);
  apic_.SetPin(14, false);
  apic_.SetPin(14, true);
  EXPECT_EQ(recorder_.messages.size(), 2u);
}

TEST_F(IoApicTest, LosesEdgesWhileMasked) {
  Route(14, 0x76 | kMask, 0);
  apic_.SetPin(14, true);
  Route(14, 0x76, 0);
  EXPECT_TRUE(recorder_.messages.empty());
}

TEST_F(IoApicTest, KeepsLevelsWhileMasked) {
  Route(14, 0x77 | kLevel | kMask, 0);
  apic_.SetPin(14, true);
  EXPECT_TRUE(recorder_.messages.empty());
  Route(14, 0x77 | kLevel, 0);
  ASSERT_EQ(recorder_.messages.size(), 1u);
  EXPECT_TRUE(recorder_.messages[0].level);
}

TEST_F(IoApicTest, SendsALevelAgainAfterItsEnd) {
  Route(14, 0x77 | kLevel, 0);
  apic_.SetPin(14, true);
  EXPECT_EQ(Get(0x10 + 28) & kRemoteIrr, kRemoteIrr);
  apic_.EndOfInterrupt(0x66);
  EXPECT_EQ(recorder_.messages.size(), 1u);
  apic_.EndOfInterrupt(0x77);
  EXPECT_EQ(recorder_.messages.size(), 2u);
  apic_.SetPin(14, false);
  apic_.Write(BusSpace::kMmio, IoApic::kBase + 0x40, 4, 0x77);
  EXPECT_EQ(Get(0x10 + 28) & kRemoteIrr, 0u);
  EXPECT_EQ(recorder_.messages.size(), 2u);
}

TEST_F(IoApicTest, IgnoresPinsThatDoNotExist) {
  apic_.SetPin(IoApic::kPins, true);
  EXPECT_TRUE(recorder_.messages.empty());
}

}  // namespace
}  // namespace pagesaw
