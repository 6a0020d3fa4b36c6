#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.plugins.mbec.split_formats;

namespace pagesaw::mbec {
namespace {

constexpr std::uint64_t kR = 1, kW = 2, kX = 4, kXu = 0x400;
constexpr std::uint64_t kNx = std::uint64_t{1} << 63;

struct RightsRow {
  const char* name;
  std::uint64_t entry;
  bool read, write, supervisor_fetch, user_fetch;
};

void ExpectRow(const PageFormat& format, const RightsRow& row) {
  const Rights rights = format.RightsOf(row.entry);
  const auto allows = [&](Access access) { return !format.PermissionFault(rights, access); };
  for (Privilege by : {Privilege::kSupervisor, Privilege::kUser}) {
    EXPECT_EQ(allows(Access::Read(by)), row.read);
    EXPECT_EQ(allows(Access::Write(by)), row.write);
  }
  EXPECT_EQ(allows(Access::Fetch(Privilege::kSupervisor)), row.supervisor_fetch);
  EXPECT_EQ(allows(Access::Fetch(Privilege::kUser)), row.user_fetch);
}

class EptMbecRights : public testing::TestWithParam<RightsRow> {};

TEST_P(EptMbecRights, AllowWhatTheManualSays) {
  const PageFormat format = MakeEptMbecFormat(48);
  EXPECT_TRUE(format.IsPresent(GetParam().entry));
  EXPECT_FALSE(format.IsMalformed(GetParam().entry, Level::kPt));
  ExpectRow(format, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Rows, EptMbecRights,
                         testing::Values(RightsRow{"R", kR, true, false, false, false},
                                         RightsRow{"RW", kR | kW, true, true, false, false},
                                         RightsRow{"X", kX, false, false, true, false},
                                         RightsRow{"Xu", kXu, false, false, false, true},
                                         RightsRow{"XXu", kX | kXu, false, false, true, true},
                                         RightsRow{"RX", kR | kX, true, false, true, false},
                                         RightsRow{"RXu", kR | kXu, true, false, false, true},
                                         RightsRow{"RXXu", kR | kX | kXu, true, false, true, true},
                                         RightsRow{"RWX", kR | kW | kX, true, true, true, false},
                                         RightsRow{"RWXu", kR | kW | kXu, true, true, false, true},
                                         RightsRow{"All", kR | kW | kX | kXu, true, true, true,
                                                   true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EptMbecFormat, WriteWithoutReadIsMisconfiguredWhateverElseIsSet) {
  const PageFormat format = MakeEptMbecFormat(48);
  for (std::uint64_t execute : {std::uint64_t{0}, kX, kXu, kX | kXu}) {
    EXPECT_TRUE(format.IsMalformed(kW | execute, Level::kPt));
    EXPECT_FALSE(format.IsMalformed(kR | kW | execute, Level::kPt));
  }
}

class NptGmetRights : public testing::TestWithParam<RightsRow> {};

TEST_P(NptGmetRights, AllowWhatTheManualSays) { ExpectRow(MakeNptGmetFormat(48), GetParam()); }

INSTANTIATE_TEST_SUITE_P(Rows, NptGmetRights,
                         testing::Values(RightsRow{"Supervisor", 3, true, true, true, true},
                                         RightsRow{"User", 7, true, true, false, true},
                                         RightsRow{"ReadOnlyUser", 5, true, false, false, true},
                                         RightsRow{"NoExecute", 7 | kNx, true, true, false, false},
                                         RightsRow{"SupervisorNoExecute", 3 | kNx, true, true,
                                                   false, false}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::mbec
