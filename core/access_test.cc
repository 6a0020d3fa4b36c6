#include <gtest/gtest.h>

import pagesaw.core.access;

namespace pagesaw {
namespace {

TEST(Access, CodeBitsAreThoseOfThePageFaultErrorCode) {
  EXPECT_EQ(Access::Read(Privilege::kSupervisor).code_bits(), 0u);
  EXPECT_EQ(Access::Write(Privilege::kUser).code_bits(), 6u);
  EXPECT_EQ(Access::Fetch(Privilege::kUser).code_bits(), 0x14u);
}

TEST(Access, SmapWaiverChangesTheRowAndNotTheCode) {
  const Access plain = Access::Write(Privilege::kSupervisor);
  const Access waived = plain.WithSmapWaived();
  EXPECT_EQ(waived.code_bits(), plain.code_bits());
  EXPECT_EQ(waived.permission_row(), plain.permission_row() | 4);
  EXPECT_TRUE(waived.smap_waived());
  EXPECT_FALSE(plain.smap_waived());
}

TEST(Access, EachKindIsOneKind) {
  for (Privilege by : {Privilege::kSupervisor, Privilege::kUser}) {
    EXPECT_TRUE(Access::Read(by).is_read());
    EXPECT_TRUE(Access::Write(by).is_write());
    EXPECT_TRUE(Access::Fetch(by).is_fetch());
    EXPECT_FALSE(Access::Fetch(by).is_read());
    EXPECT_FALSE(Access::Write(by).is_fetch());
    EXPECT_EQ(Access::Read(by).privilege(), by);
  }
}

TEST(Access, ToAShadowStackIsAKindOfItsOwn) {
  const Access read = Access::ShadowStackRead(Privilege::kUser);
  const Access write = Access::ShadowStackWrite(Privilege::kSupervisor);
  EXPECT_EQ(read.code_bits(), 0x44u);
  EXPECT_EQ(write.code_bits(), 0x42u);
  EXPECT_TRUE(read.is_shadow_stack());
  EXPECT_TRUE(read.is_read());
  EXPECT_TRUE(write.is_write());
  EXPECT_LT(write.permission_row(), 16u);
  EXPECT_FALSE(Access::Write(Privilege::kSupervisor).is_shadow_stack());
}

TEST(Rights, CombineAsSets) {
  const Rights read_write(Rights::kRead | Rights::kWrite);
  const Rights read_execute(Rights::kRead | Rights::kExecSupervisor);
  EXPECT_EQ(read_write & read_execute, Rights(Rights::kRead));
  EXPECT_TRUE(Rights::All().Covers(read_write | read_execute));
  EXPECT_FALSE(read_write.Covers(read_execute));
  EXPECT_EQ(read_write.Without(Rights::kWrite), Rights(Rights::kRead));
}

TEST(PageFaultCode, TellsItsBits) {
  const PageFaultCode code(PageFaultCode::kPresent | PageFaultCode::kFetch);
  EXPECT_TRUE(code.Has(PageFaultCode::kFetch));
  EXPECT_FALSE(code.Has(PageFaultCode::kWrite));
  EXPECT_EQ(code.bits(), 0x11u);
}

}  // namespace
}  // namespace pagesaw
