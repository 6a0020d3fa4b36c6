#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>

import pagesaw.mmu.permission_table;

namespace pagesaw {
namespace {

struct TableCase {
  const char* name;
  PermissionInputs inputs;
  PermissionTable want;
};

class PermissionTableValues : public testing::TestWithParam<TableCase> {};

TEST_P(PermissionTableValues, AreThoseComputedByHand) {
  EXPECT_EQ(MakePermissionTable(GetParam().inputs), GetParam().want);
}

INSTANTIATE_TEST_SUITE_P(
    Configurations, PermissionTableValues,
    testing::Values(TableCase{"Legacy",
                              {},
                              {0x5555, 0x3333, 0x5f5f, 0x3f3f, 0x5555, 0x3333, 0x5f5f, 0x3f3f,
                               0x00ff, 0x33ff, 0x0fff, 0x3fff, 0x00ff, 0x33ff, 0x0fff, 0x3fff}},
                    TableCase{"LegacyWithoutWriteProtect",
                              {.write_protect = false},
                              {0x5555, 0x0000, 0x5f5f, 0x3f3f, 0x5555, 0x0000, 0x5f5f, 0x3f3f,
                               0x00ff, 0x00ff, 0x0fff, 0x3fff, 0x00ff, 0x00ff, 0x0fff, 0x3fff}},
                    TableCase{"LegacySmep",
                              {.split_execute = true},
                              {0x5555, 0x3333, 0x5f5f, 0x3f3f, 0x5555, 0x3333, 0x5f5f, 0x3f3f,
                               0xf0ff, 0xf3ff, 0x0fff, 0x3fff, 0xf0ff, 0xf3ff, 0x0fff, 0x3fff}},
                    TableCase{"LegacySmepSmap",
                              {.split_execute = true, .smap = true},
                              {0xf5f5, 0xf3f3, 0x5f5f, 0x3f3f, 0x5555, 0x3333, 0x5f5f, 0x3f3f,
                               0xf0ff, 0xf3ff, 0x0fff, 0x3fff, 0xf0ff, 0xf3ff, 0x0fff, 0x3fff}},
                    TableCase{"ExplicitExecute",
                              {.second_stage = true, .explicit_execute = true},
                              {0x5555, 0x3333, 0x5555, 0x3333, 0x5555, 0x3333, 0x5555, 0x3333,
                               0x00ff, 0x33ff, 0x00ff, 0x33ff, 0x00ff, 0x33ff, 0x00ff, 0x33ff}},
                    TableCase{
                        "ExplicitExecuteSplit",
                        {.second_stage = true, .explicit_execute = true, .split_execute = true},
                        {0x5555, 0x3333, 0x5555, 0x3333, 0x5555, 0x3333, 0x5555, 0x3333, 0x00ff,
                         0x33ff, 0x0f0f, 0x3f3f, 0x00ff, 0x33ff, 0x0f0f, 0x3f3f}},
                    TableCase{"LegacySecondStageSplit",
                              {.second_stage = true, .split_execute = true},
                              {0x5555, 0x3333, 0x5555, 0x3333, 0x5555, 0x3333, 0x5555, 0x3333,
                               0xf0ff, 0xf3ff, 0x00ff, 0x33ff, 0xf0ff, 0xf3ff, 0x00ff, 0x33ff}}),
    [](const auto& info) { return std::string(info.param.name); });

// The oracle: one question at a time, in the words of the manuals.
enum class Kind { kRead, kWrite, kFetch };
struct Question {
  Kind kind;
  bool user_mode, ac_suspends_smap;
  bool r, w, u, x;  // the rights: U is XU, X is XS where execution is explicit
};

bool DataAllowed(const PermissionInputs& in, const Question& q) {
  const bool needs_write = q.kind == Kind::kWrite;
  if (in.explicit_execute) return needs_write ? q.w : q.r;
  if (!needs_write && !q.r) return false;
  if (in.second_stage && in.split_execute) {
    // Whether a page is a user's has no bearing on data.
  } else if (q.user_mode) {
    if (!q.u) return false;
  } else if (q.u && in.smap && !q.ac_suspends_smap) {
    return false;
  }
  if (!needs_write || q.w) return true;
  return !q.user_mode && !in.write_protect;
}

bool FetchAllowed(const PermissionInputs& in, const Question& q) {
  if (in.explicit_execute) {
    if (!in.split_execute) return q.x;
    return q.user_mode ? q.u : q.x;
  }
  if (in.no_execute && !q.x) return false;
  if (!q.user_mode) return !(q.u && in.split_execute);
  return q.u || (in.second_stage && in.split_execute);
}

TEST(PermissionTable, AgreesWithOracleForEveryAccessRightAndInput) {
  for (unsigned config = 0; config < 64; ++config) {
    const auto flag = [config](unsigned bit) { return (config >> bit & 1) != 0; };
    const PermissionInputs in = {.second_stage = flag(0),
                                 .explicit_execute = flag(1),
                                 .split_execute = flag(2),
                                 .smap = flag(3),
                                 .write_protect = flag(4),
                                 .no_execute = flag(5)};
    // SMAP belongs to the first stage; explicit execution to the second.
    if ((in.second_stage && in.smap) || (in.explicit_execute && !in.second_stage)) continue;
    const PermissionTable table = MakePermissionTable(in);
    for (unsigned column = 0; column < 16; ++column) {
      for (Kind kind : {Kind::kRead, Kind::kWrite, Kind::kFetch}) {
        for (bool user : {false, true}) {
          for (bool waived : {false, true}) {
            const Question q = {kind,
                                user,
                                waived,
                                (column & 1) != 0,
                                (column & 2) != 0,
                                (column & 4) != 0,
                                (column & 8) != 0};
            const bool allowed = kind == Kind::kFetch ? FetchAllowed(in, q) : DataAllowed(in, q);
            const unsigned row = (kind == Kind::kWrite ? 1u : 0) + (user ? 2 : 0) +
                                 (waived ? 4 : 0) + (kind == Kind::kFetch ? 8 : 0);
            EXPECT_EQ((table[row] >> column & 1) == 0, allowed)
                << "config " << config << " row " << row << " column " << column;
          }
        }
      }
    }
  }
}

TEST(ProtectionKeyMask, HasTheKnownValues) {
  EXPECT_EQ(MakeProtectionKeyMask({.user_keys = true}), 0xdd00u);
  EXPECT_EQ(MakeProtectionKeyMask({.user_keys = true, .write_protect = false}), 0xd500u);
  EXPECT_EQ(MakeProtectionKeyMask({}), 0u);
  EXPECT_EQ(MakeProtectionKeyMask({.supervisor_keys = true}), 0x0du);
  EXPECT_EQ(MakeProtectionKeyMask({.supervisor_keys = true, .write_protect = false}), 0x05u);
}

}  // namespace
}  // namespace pagesaw
