#include <gtest/gtest.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.core.hypercall;
import pagesaw.machine.apic_bus;
import pagesaw.machine.hypercalls;

namespace pagesaw {
namespace {

// A local APIC that notes what it is sent.
class Receiver final : public ApicReceiver {
 public:
  explicit Receiver(std::uint32_t id) : id_(id) {}
  bool IsDestination(const ApicMessage& message) const override {
    return message.destination == id_ || message.destination == 0xffff'ffff;
  }
  std::uint8_t arbitration_priority() const override { return 0; }
  void Accept(const ApicMessage& message) override { messages.push_back(message); }

  std::vector<ApicMessage> messages;

 private:
  std::uint32_t id_;
};

class HypercallsTest : public testing::Test {
 protected:
  HypercallsTest() {
    for (Receiver* receiver : {&zero_, &one_, &seventy_}) bus_.Attach(*receiver);
  }
  std::uint64_t SendIpi(std::uint64_t low, std::uint64_t high, std::uint64_t first,
                        std::uint64_t command, bool wide = true) {
    return AnswerHypercall(
        {.number = kHypercallSendIpi, .arguments = {low, high, first, command}, .wide = wide},
        bus_);
  }
  std::size_t Received() const {
    return zero_.messages.size() + one_.messages.size() + seventy_.messages.size();
  }
  ApicBus bus_;
  Receiver zero_{0}, one_{1}, seventy_{70};
};

TEST_F(HypercallsTest, UnknownNumbersAreAnsweredSo) {
  for (const std::uint64_t number :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{9}, std::uint64_t{11}, ~std::uint64_t{0},
        (std::uint64_t{1} << 32) + kHypercallSendIpi}) {
    EXPECT_EQ(static_cast<std::int64_t>(AnswerHypercall({.number = number, .wide = true}, bus_)),
              -38)
        << number;
  }
}

TEST_F(HypercallsTest, SendIpiReachesWhomTheBitsName) {
  EXPECT_EQ(SendIpi(0b110, 0, 0, 0x41), 1u);
  EXPECT_EQ(zero_.messages.size(), 0u);
  ASSERT_EQ(one_.messages.size(), 1u);
  EXPECT_EQ(one_.messages[0].vector, 0x41);
  EXPECT_EQ(one_.messages[0].mode, DeliveryMode::kFixed);
}

TEST_F(HypercallsTest, SendIpiCountsFromTheFirstId) {
  EXPECT_EQ(SendIpi(0, 0b10, 5, 0x400), 1u);
  ASSERT_EQ(seventy_.messages.size(), 1u);
  EXPECT_EQ(seventy_.messages[0].mode, DeliveryMode::kNmi);
}

TEST_F(HypercallsTest, SendIpiHas32BitMapsOutside64BitMode) {
  EXPECT_EQ(SendIpi(0, 1u << 6, 32, 0x41, false), 1u);
  EXPECT_EQ(seventy_.messages.size(), 1u);
}

TEST_F(HypercallsTest, SendIpiToNobodyIsNoError) {
  const std::uint64_t all = ~std::uint64_t{0};
  EXPECT_EQ(SendIpi(0, 0, 0, 0x41), 0u);
  EXPECT_EQ(SendIpi(0xffff'ffff, 0, 0xffff'ffff, 0x41), 0u);  // APIC ID FFFFFFFFh is everybody
  EXPECT_EQ(SendIpi(all, all, all, 0x41), 0u);
  EXPECT_EQ(SendIpi(all, all, all - 64, 0x41), 0u);
  EXPECT_EQ(Received(), 0u);
}

TEST_F(HypercallsTest, SendIpiRefusesOtherCommands) {
  for (const std::uint64_t command :
       {0x141u, 0x241u, 0x500u, 0x600u, 0x700u, 0x841u, 0x4041u, 0x8041u, 0x4'0041u}) {
    EXPECT_EQ(static_cast<std::int64_t>(SendIpi(1, 0, 0, command)), -22) << command;
  }
  EXPECT_EQ(Received(), 0u);
}

TEST(HypercallOf, TakesRegistersByTheWidthOfTheCode) {
  CpuState state = ResetState();
  state.gpr[kRax] = 0x1'0000'000a;
  state.gpr[kRbx] = 0x2'0000'0001;
  state.gpr[kRcx] = 0x3'0000'0002;
  state.gpr[kRdx] = 0x4'0000'0003;
  state.gpr[kRsi] = 0x5'0000'0004;
  const Hypercall narrow = HypercallOf(state);
  EXPECT_EQ(narrow.number, 10u);
  EXPECT_EQ(narrow.arguments, (std::array<std::uint64_t, 4>{1, 2, 3, 4}));
  EXPECT_FALSE(narrow.wide);
  state.efer |= 0x400;
  state.segments[kCs].attributes |= 0x2000;
  const Hypercall wide = HypercallOf(state);
  EXPECT_EQ(wide.number, 0x1'0000'000au);
  EXPECT_EQ(wide.arguments[3], 0x5'0000'0004u);
  EXPECT_TRUE(wide.wide);
}

}  // namespace
}  // namespace pagesaw
