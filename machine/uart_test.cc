#include <gtest/gtest.h>
#include <chrono>
#include <cstdint>
#include <string>

import pagesaw.machine.console;
import pagesaw.machine.device;
import pagesaw.machine.test_support;
import pagesaw.machine.uart;

namespace pagesaw {
namespace {

class UartTest : public testing::Test {
 protected:
  std::uint8_t In(unsigned offset) {
    return static_cast<std::uint8_t>(uart_.Read(BusSpace::kPort, 0x3f8 + offset, 1));
  }
  void Out(unsigned offset, std::uint8_t value) {
    uart_.Write(BusSpace::kPort, 0x3f8 + offset, 1, value);
  }
  std::string Printed() { return console_.Read(0, 1 << 20, std::chrono::milliseconds(0)).data; }

  FakeInterruptSink interrupts_;
  Console console_;
  Uart uart_{0x3f8, 4, interrupts_, console_};
};

TEST_F(UartTest, PrintsWhatAPolledGuestWrites) {
  Out(3, 0x80);
  Out(0, 1);
  Out(1, 0);
  Out(3, 3);
  Out(1, 0);
  Out(2, 0);
  Out(4, 3);
  for (const char c : std::string("ok\r\n")) {
    ASSERT_NE(In(5) & 0x20, 0);
    Out(0, static_cast<std::uint8_t>(c));
  }
  EXPECT_EQ(Printed(), "ok\r\n");
  EXPECT_EQ(interrupts_.rises[4], 0u);
}

TEST_F(UartTest, DivisorLatchHidesDataAndInterruptEnable) {
  Out(3, 0x83);
  Out(0, 0x34);
  Out(1, 0x12);
  EXPECT_EQ(In(0), 0x34);
  EXPECT_EQ(In(1), 0x12);
  Out(3, 0x03);
  EXPECT_EQ(In(1), 0);
  EXPECT_EQ(Printed(), "");
}

TEST_F(UartTest, ReceivesWithAnInterrupt) {
  Out(4, 0x0a);
  Out(1, 0x01);
  ASSERT_TRUE(uart_.Receive("ab"));
  EXPECT_TRUE(interrupts_.levels[4]);
  EXPECT_EQ(In(2) & 0x0f, 0x04);
  EXPECT_EQ(In(5) & 1, 1);
  EXPECT_EQ(In(0), 'a');
  EXPECT_TRUE(interrupts_.levels[4]);
  EXPECT_EQ(In(0), 'b');
  EXPECT_FALSE(interrupts_.levels[4]);
  EXPECT_EQ(In(5) & 1, 0);
}

TEST_F(UartTest, ReportsAnEmptyTransmitterUntilTold) {
  Out(4, 0x08);
  Out(1, 0x02);
  EXPECT_TRUE(interrupts_.levels[4]);
  EXPECT_EQ(In(2) & 0x0f, 0x02);
  EXPECT_FALSE(interrupts_.levels[4]);
  Out(0, 'x');
  EXPECT_TRUE(interrupts_.levels[4]);
}

TEST_F(UartTest, InputQueueIsBounded) {
  EXPECT_FALSE(uart_.Receive(std::string(Uart::kInputMaxBytes + 1, 'x')));
  EXPECT_TRUE(uart_.Receive(std::string(Uart::kInputMaxBytes, 'x')));
  EXPECT_FALSE(uart_.Receive("y"));
  Out(4, 0x10);
  for (unsigned i = 0; i < 1000; ++i) Out(0, 'z');  // more than a FIFO holds
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(In(0), 'z');
  EXPECT_EQ(In(5) & 1, 0);
  Out(4, 0x02);
  EXPECT_FALSE(uart_.Receive("y"));
  Out(2, 0x02);
  EXPECT_TRUE(uart_.Receive("y"));
}

TEST_F(UartTest, ReceivesByPollingWithoutSettingUpTheModemControl) {
  ASSERT_TRUE(uart_.Receive("a"));
  EXPECT_EQ(In(5) & 1, 1);
  EXPECT_EQ(In(0), 'a');
}

// What a driver's set-up does with the receiver before it asks for data.
TEST_F(UartTest, KeepsWhatIsSentUntilTheGuestRaisesRequestToSend) {
  Out(4, 0x1a);  // loopback
  ASSERT_TRUE(uart_.Receive("ab"));
  Out(4, 0x00);
  Out(1, 0x01);
  EXPECT_EQ(In(5) & 1, 0);
  EXPECT_EQ(In(0), 0);
  Out(2, 0x03);  // clears the receiver
  EXPECT_FALSE(interrupts_.levels[4]);
  Out(4, 0x0b);
  EXPECT_TRUE(interrupts_.levels[4]);
  EXPECT_EQ(In(0), 'a');
  EXPECT_EQ(In(0), 'b');
}

TEST_F(UartTest, ClearsWhatArrived) {
  Out(4, 0x0b);
  ASSERT_TRUE(uart_.Receive("ab"));
  Out(2, 0x03);
  EXPECT_EQ(In(5) & 1, 0);
}

TEST_F(UartTest, LoopbackReceivesItsOwnBytesAndNotTheLine) {
  Out(4, 0x12);
  ASSERT_TRUE(uart_.Receive("x"));
  Out(0, 'y');
  EXPECT_EQ(In(0), 'y');
  EXPECT_EQ(In(5) & 1, 0);
  EXPECT_EQ(Printed(), "");
}

TEST_F(UartTest, WideAccessesCoverSeveralRegistersAndEndAtTheLast) {
  uart_.Write(BusSpace::kPort, 0x3ff, 4, 0x11223344);
  EXPECT_EQ(In(7), 0x44);
  EXPECT_EQ(uart_.Read(BusSpace::kPort, 0x3ff, 2) >> 8, 0xffu);
}

}  // namespace
}  // namespace pagesaw
