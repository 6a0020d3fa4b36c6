#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.control.describe;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;

namespace pagesaw {
namespace {

// Tables as a guest with NX and without SMEP and SMAP has them. The words are those of the rules
// "a write needs W; a user access needs U; a fetch needs no NX", supervisor and user alike.
PageFormat FourLevel() {
  PageFormat format;
  format.layout = {.present = 1,
                   .write = 2,
                   .user = 4,
                   .no_execute = std::uint64_t{1} << 63,
                   .accessed = 0x20,
                   .dirty = 0x40,
                   .large = 0x80,
                   .global = 0x100,
                   .address = 0x000f'ffff'ffff'f000};
  format.reserved[1][3] = 0x80;
  format.refused = {0x5555, 0x3333, 0x5f5f, 0x3f3f, 0x5555, 0x3333, 0x5f5f, 0x3f3f,
                    0x00ff, 0x33ff, 0x0fff, 0x3fff, 0x00ff, 0x33ff, 0x0fff, 0x3fff};
  return format;
}

PageFormat SplitEpt() {
  PageFormat format;
  format.layout = {.present = 0x407,
                   .read = 1,
                   .write = 2,
                   .exec_supervisor = 4,
                   .exec_user = 0x400,
                   .accessed = 0x100,
                   .dirty = 0x200,
                   .large = 0x80,
                   .address = 0x000f'ffff'ffff'f000};
  format.second_stage = true;
  return format;
}

using Names = std::vector<std::string>;

TEST(DescribeEntry, NamesBitsOfGuestTables) {
  const PageFormat format = FourLevel();
  EXPECT_EQ(BitsOfEntry(format, 0x1e7, Level::kPt), (Names{"P", "W", "U", "A", "D", "G"}));
  EXPECT_EQ(BitsOfEntry(format, 0x1e3, Level::kPd), (Names{"P", "W", "A", "D", "PS", "G"}));
  EXPECT_EQ(BitsOfEntry(format, 0x163, Level::kPd), (Names{"P", "W", "A"}));
  EXPECT_EQ(BitsOfEntry(format, std::uint64_t{1} << 63 | 1, Level::kPt), (Names{"P", "NX"}));
}

TEST(DescribeEntry, NamesBothExecuteBits) {
  EXPECT_EQ(BitsOfEntry(SplitEpt(), 0x707, Level::kPt), (Names{"R", "W", "XS", "XU", "A", "D"}));
}

TEST(DescribeRights, NamesEachOrNone) {
  EXPECT_EQ(RightsText(Rights::All()), "R W XS XU U");
  EXPECT_EQ(RightsText(Rights(Rights::kRead | Rights::kExecUser)), "R XU");
  EXPECT_EQ(RightsText(Rights(Rights::kRead | Rights::kShadowStack)), "R SS");
  EXPECT_EQ(AccessText(Access::ShadowStackWrite(Privilege::kUser)), "user shadow-stack write");
  EXPECT_EQ(RightsText(Rights()), "-");
}

TEST(DescribeCode, NamesBits) {
  EXPECT_EQ(BitsOfCode(PageFaultCode(0x17)), (Names{"P", "W", "U", "I"}));
}

TEST(DescribeBytes, UsesTheLargestWholeUnit) {
  EXPECT_EQ(BytesText(4096), "4 KiB");
  EXPECT_EQ(BytesText(std::uint64_t{1} << 30), "1 GiB");
  EXPECT_EQ(BytesText(1025), "1025 B");
  EXPECT_EQ(BytesText(0), "0 B");
}

WalkStep Step(Level level, std::uint64_t address, std::uint64_t entry, const PageFormat& format) {
  return {.level = level,
          .entry_address = OutputAddress(address),
          .entry = entry,
          .rights = format.RightsOf(entry),
          .present = format.IsPresent(entry),
          .leaf = format.IsLeaf(entry, level)};
}

WalkFault FaultOf(WalkFault::Kind kind, Level level, Rights rights = Rights()) {
  WalkFault fault;
  fault.kind = kind;
  fault.level = level;
  fault.rights = rights;
  return fault;
}

TEST(Explain, Translation) {
  const std::vector<WalkStep> steps = {Step(Level::kPd, 0x1000, 0x2000e7, FourLevel())};
  Translation translation;
  translation.output = OutputAddress(0x20'1234);
  translation.level = Level::kPd;
  EXPECT_EQ(Explain(translation, InputAddress(0x1234), Access::Read(Privilege::kUser), FourLevel(),
                    steps, Tables::kGuest),
            "user read of 0x1234 is allowed: it is 0x201234 in a page of 2 MiB");
}

TEST(Explain, NamesTheEntriesThatRefuse) {
  const PageFormat format = FourLevel();
  const std::vector<WalkStep> steps = {Step(Level::kPd, 0x1000, 0x2003, format),
                                       Step(Level::kPt, 0x2000, 0x3005, format)};
  const WalkFault fault =
      FaultOf(WalkFault::Kind::kRights, Level::kPt, steps[0].rights & steps[1].rights);
  EXPECT_EQ(Explain(fault, InputAddress(0), Access::Write(Privilege::kUser), format, steps,
                    Tables::kGuest),
            "user write of 0x0 faults: it is refused by the PDE and the PTE; "
            "all levels together grant R XS XU");
}

TEST(Explain, SmepIsNotALackOfRights) {
  PageFormat format = FourLevel();
  format.refused[8] = 0xf0ff;
  const std::vector<WalkStep> steps = {Step(Level::kPt, 0x2000, 0x3007, format)};
  const WalkFault fault = FaultOf(WalkFault::Kind::kRights, Level::kPt, steps[0].rights);
  EXPECT_EQ(
      Explain(fault, InputAddress(0), Access::Fetch(Privilege::kSupervisor), format, steps,
              Tables::kGuest),
      "supervisor fetch of 0x0 faults: the page is a user page, and SMEP refuses it fetches in "
      "supervisor mode");
}

TEST(Explain, NotPresentNamesEntryAndAddress) {
  const PageFormat format = FourLevel();
  const std::vector<WalkStep> steps = {Step(Level::kPml4, 0x1ff8, 0, format)};
  const WalkFault fault = FaultOf(WalkFault::Kind::kNotPresent, Level::kPml4);
  EXPECT_EQ(Explain(fault, InputAddress(0x10), Access::Read(Privilege::kSupervisor), format, steps,
                    Tables::kGuest),
            "supervisor read of 0x10 faults: the PML4E 0x0 at 0x1ff8 is not present");
}

TEST(Explain, MalformedNamesReservedBits) {
  const PageFormat format = FourLevel();
  const std::vector<WalkStep> steps = {Step(Level::kPml4, 0x1000, 0x81, format)};
  const WalkFault fault = FaultOf(WalkFault::Kind::kMalformed, Level::kPml4);
  EXPECT_EQ(Explain(fault, InputAddress(0), Access::Read(Privilege::kSupervisor), format, steps,
                    Tables::kGuest),
            "supervisor read of 0x0 faults: the PML4E 0x81 at 0x1000 has reserved bits set: 0x80");
}

}  // namespace
}  // namespace pagesaw
