#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>

import pagesaw.core.processor;
import pagesaw.machine.bus;
import pagesaw.machine.clock;
import pagesaw.machine.device;

namespace pagesaw {
namespace {

class Probe final : public Device {
 public:
  explicit Probe(BusRange range) : ranges_{range} {}
  std::string_view name() const override { return "probe"; }
  std::span<const BusRange> ranges() const override { return ranges_; }
  std::uint64_t Read(BusSpace, std::uint64_t address, unsigned) override {
    return 0xabcd'0000'0000 | address;
  }
  void Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) override {
    written_to = address;
    written = value;
  }
  std::uint64_t next_deadline_ns() const override { return deadline; }
  void Poll() override { ++polls; }
  std::uint64_t written_to = 0, written = 0;
  std::uint64_t deadline = kNever;
  int polls = 0;

 private:
  std::array<BusRange, 1> ranges_;
};

using Kind = BusAccess::Kind;

TEST(Bus, FindsTheDeviceOfAnAddressInItsSpace) {
  Probe port({BusSpace::kPort, 0x100, 4}), mmio({BusSpace::kMmio, 0x100, 4});
  Bus bus;
  ASSERT_TRUE(bus.Attach(port).ok());
  ASSERT_TRUE(bus.Attach(mmio).ok());
  BusAccess out{.kind = Kind::kPortOut, .bytes = 2, .address = 0x103, .value = 0x12345};
  bus.Dispatch(out);
  EXPECT_EQ(port.written_to, 0x103u);
  EXPECT_EQ(port.written, 0x2345u);
  EXPECT_EQ(mmio.written_to, 0u);
  BusAccess in{.kind = Kind::kMmioRead, .bytes = 4, .address = 0x101};
  bus.Dispatch(in);
  EXPECT_EQ(in.value, 0x101u);
}

TEST(Bus, AnswersAllOnesWhereNobodyIs) {
  const Bus bus;
  for (const auto& [bytes, want] : {std::pair<std::uint8_t, std::uint64_t>{1, 0xff},
                                    {2, 0xffff},
                                    {4, 0xffff'ffff},
                                    {8, ~0ull}}) {
    BusAccess in{.kind = Kind::kMmioRead, .bytes = bytes, .address = ~0ull};
    bus.Dispatch(in);
    EXPECT_EQ(in.value, want);
  }
  BusAccess out{.kind = Kind::kPortOut, .bytes = 1, .address = 5, .value = 5};
  bus.Dispatch(out);
}

TEST(Bus, RefusesAddressesThatAreTaken) {
  Probe first({BusSpace::kPort, 0x100, 4}), second({BusSpace::kPort, 0xff, 2});
  Bus bus;
  ASSERT_TRUE(bus.Attach(first).ok());
  EXPECT_EQ(bus.Attach(second).code(), absl::StatusCode::kAlreadyExists);
}

TEST(Bus, PollsDevicesThatAreDue) {
  Probe early({BusSpace::kPort, 0, 1}), late({BusSpace::kPort, 1, 1});
  early.deadline = 10;
  late.deadline = 20;
  Bus bus;
  ASSERT_TRUE(bus.Attach(early).ok() && bus.Attach(late).ok());
  EXPECT_EQ(bus.next_deadline_ns(), 10u);
  bus.Poll(15);
  EXPECT_EQ(early.polls, 1);
  EXPECT_EQ(late.polls, 0);
}

}  // namespace
}  // namespace pagesaw
