#include <gtest/gtest.h>
#include <cstdint>

import pagesaw.machine.device;
import pagesaw.machine.pic;

namespace pagesaw {
namespace {

class PicTest : public testing::Test {
 protected:
  void Out(std::uint16_t port, std::uint8_t value) { pic_.Write(BusSpace::kPort, port, 1, value); }
  std::uint8_t In(std::uint16_t port) {
    return static_cast<std::uint8_t>(pic_.Read(BusSpace::kPort, port, 1));
  }
  void Program(std::uint8_t last_word = 1) {
    Out(0x20, 0x11);
    Out(0x21, 0x20);
    Out(0x21, 0x04);
    Out(0x21, last_word);
    Out(0xa0, 0x11);
    Out(0xa1, 0x28);
    Out(0xa1, 0x02);
    Out(0xa1, last_word);
  }

  bool intr_ = false;
  Pic pic_{[this](bool level) { intr_ = level; }};
};

TEST_F(PicTest, MasksEverything) {
  Program();
  Out(0x21, 0xff);
  Out(0xa1, 0xff);
  EXPECT_EQ(In(0x21), 0xff);
  EXPECT_EQ(In(0xa1), 0xff);
  for (unsigned irq = 0; irq < 16; ++irq) pic_.SetIrq(irq, true);
  EXPECT_FALSE(intr_);
  EXPECT_FALSE(pic_.HasInterrupt());
}

TEST_F(PicTest, DeliversByPriorityAndWaitsForEoi) {
  Program();
  pic_.SetIrq(4, true);
  pic_.SetIrq(1, true);
  ASSERT_TRUE(intr_);
  EXPECT_EQ(pic_.Acknowledge(), 0x21);
  EXPECT_FALSE(intr_);  // IRQ 4 waits behind IRQ 1
  Out(0x20, 0x20);
  ASSERT_TRUE(intr_);
  EXPECT_EQ(pic_.Acknowledge(), 0x24);
  Out(0x20, 0x0b);
  EXPECT_EQ(In(0x20), 0x10);
  Out(0x20, 0x64);  // specific EOI of IRQ 4
  EXPECT_EQ(In(0x20), 0);
}

TEST_F(PicTest, CascadesTheSlave) {
  Program();
  pic_.SetIrq(12, true);
  ASSERT_TRUE(intr_);
  EXPECT_EQ(pic_.Acknowledge(), 0x2c);
  pic_.SetIrq(9, true);  // higher on the slave, but the master's line 2 is in service
  EXPECT_FALSE(intr_);
  Out(0xa0, 0x20);
  Out(0x20, 0x20);
  ASSERT_TRUE(intr_);
  EXPECT_EQ(pic_.Acknowledge(), 0x29);
}

TEST_F(PicTest, AnEdgeIsDeliveredOnceALevelAgainAndAgain) {
  Program(0x03);  // automatic EOI
  pic_.SetIrq(3, true);
  EXPECT_EQ(pic_.Acknowledge(), 0x23);
  EXPECT_FALSE(intr_);
  Out(0x4d0, 0x20);
  pic_.SetIrq(5, true);
  EXPECT_EQ(pic_.Acknowledge(), 0x25);
  EXPECT_TRUE(intr_);
  pic_.SetIrq(5, false);
  EXPECT_FALSE(intr_);
}

TEST_F(PicTest, GivesTheSpuriousVectorWhenTheRequestIsGone) {
  Program();
  Out(0x4d0, 0x08);
  pic_.SetIrq(3, true);
  pic_.SetIrq(3, false);
  EXPECT_FALSE(intr_);
  EXPECT_EQ(pic_.Acknowledge(), 0x27);
}

TEST_F(PicTest, KeepsAnEdgeWhoseLineFell) {
  Program();
  pic_.SetIrq(11, true);
  pic_.SetIrq(11, false);
  EXPECT_TRUE(intr_);
  EXPECT_EQ(pic_.Acknowledge(), 0x2b);
  EXPECT_FALSE(intr_);
}

TEST_F(PicTest, RotatesAndPolls) {
  Program();
  Out(0x20, 0xc3);  // IRQ 3 is the lowest now: IRQ 4 the highest
  pic_.SetIrq(0, true);
  pic_.SetIrq(4, true);
  Out(0x20, 0x0c);
  EXPECT_EQ(In(0x20), 0x84);
}

}  // namespace
}  // namespace pagesaw
