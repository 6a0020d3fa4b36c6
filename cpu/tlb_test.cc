#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>

import pagesaw.core.address;
import pagesaw.cpu.tlb;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kLinear = 0x7fff'1234'5000;
constexpr std::uint64_t kHost = 0x1000'0000;

class TlbTest : public testing::Test {
 protected:
  TlbEntry& Enter(BankName name, std::uint64_t linear, Level level) {
    TlbBank& bank = tlb_->bank(name);
    tlb_->NoteFill(bank, linear, level);
    TlbEntry& entry = bank.At(linear);
    entry = {
        .read_tag = linear, .write_tag = linear, .fetch_tag = linear, .addend = kHost - linear};
    return entry;
  }

  std::unique_ptr<Tlb> tlb_ = std::make_unique<Tlb>();
};

TEST_F(TlbTest, FlushForgetsEveryBank) {
  const TlbEntry& user = Enter(BankName::kUser, kLinear, Level::kPt);
  const TlbEntry& supervisor = Enter(BankName::kSupervisor, kLinear, Level::kPd);
  tlb_->Flush();
  EXPECT_EQ(user.read_tag, kNoTag);
  EXPECT_EQ(supervisor.fetch_tag, kNoTag);
}

TEST_F(TlbTest, FlushPageForgetsThatPageInEveryBankAlone) {
  const TlbEntry& gone = Enter(BankName::kUser, kLinear, Level::kPt);
  const TlbEntry& kept = Enter(BankName::kSupervisor, kLinear + 0x1000, Level::kPt);
  EXPECT_FALSE(tlb_->FlushPage(kLinear + 0xfff));
  EXPECT_EQ(gone.read_tag, kNoTag);
  EXPECT_EQ(kept.read_tag, kLinear + 0x1000);
}

struct PieceCase {
  const char* name;
  Level level;
  std::uint64_t distance;  // from the page flushed to another one that is cached
  bool kept;
};

class TlbPieces : public TlbTest, public testing::WithParamInterface<PieceCase> {};

TEST_P(TlbPieces, GoWithTheirPage) {
  const PieceCase& row = GetParam();
  constexpr std::uint64_t kStart = 0x7fc0'0000'0000;
  const TlbEntry& entry = Enter(BankName::kSupervisor, kStart + row.distance, row.level);
  tlb_->NoteFill(tlb_->bank(BankName::kSupervisor), kStart, row.level);
  EXPECT_FALSE(tlb_->FlushPage(kStart));
  EXPECT_EQ(entry.read_tag == kNoTag, !row.kept);
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, TlbPieces,
    testing::Values(PieceCase{"NextSmallPage", Level::kPt, 0x1000, true},
                    PieceCase{"SameLargePage", Level::kPd, 0x1ff000, false},
                    PieceCase{"NextLargePage", Level::kPd, 0x201000, true},
                    PieceCase{"SameHugePage", Level::kPdpt, 0x3fff'f000, false},
                    PieceCase{"NextHugePage", Level::kPdpt, 0x4000'1000, true}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(TlbTest, FlushPageTellsWhetherCodeWasThere) {
  Enter(BankName::kUser, kLinear, Level::kPd);
  tlb_->NoteCode(kLinear + 0x7000);
  EXPECT_FALSE(tlb_->FlushPage(kLinear + 0x20'0000));
  EXPECT_TRUE(tlb_->FlushPage(kLinear));
}

TEST_F(TlbTest, FlushKeysForgetsDataOfThoseKeysAlone) {
  const TlbEntry& gone = Enter(BankName::kUser, kLinear, Level::kPt);
  const TlbEntry& other = Enter(BankName::kUser, kLinear + 0x1000, Level::kPt);
  const TlbEntry& plain = Enter(BankName::kSupervisor, kLinear + 0x2000, Level::kPt);
  tlb_->NoteKey(kLinear, 2);
  tlb_->NoteKey(kLinear + 0x1000, 3);
  tlb_->NoteKey(kLinear + 0x2000, 0);
  tlb_->FlushKeys(1u << 2);
  EXPECT_EQ(gone.read_tag, kNoTag);
  EXPECT_EQ(gone.write_tag, kNoTag);
  EXPECT_EQ(gone.fetch_tag, kLinear);
  EXPECT_EQ(other.write_tag, kLinear + 0x1000);
  EXPECT_EQ(plain.write_tag, kLinear + 0x2000);
}

TEST_F(TlbTest, FlushKeysForgetsAllDataForKeyZeroOrTooManyPages) {
  const TlbEntry& entry = Enter(BankName::kUser, kLinear, Level::kPt);
  tlb_->NoteKey(kLinear, 0);
  tlb_->FlushKeys(1);
  EXPECT_EQ(entry.read_tag, kNoTag);
  for (std::uint64_t i = 0; i < 9; ++i) {
    Enter(BankName::kUser, kLinear + i * 0x1000, Level::kPt);
    tlb_->NoteKey(kLinear + i * 0x1000, 1);
  }
  tlb_->FlushKeys(1u << 1);
  EXPECT_EQ(tlb_->bank(BankName::kUser).At(kLinear + 0x8000).read_tag, kNoTag);
}

TEST_F(TlbTest, AnnouncedWritesToAHostPageMatchNoAddress) {
  const TlbEntry& entry = Enter(BankName::kUser, kLinear, Level::kPt);
  tlb_->AnnounceWritesTo(kHost + 0x800);
  EXPECT_EQ(entry.write_tag, kLinear | kAnnounced);
  EXPECT_EQ(entry.read_tag, kLinear);
}

TEST_F(TlbTest, AnnouncedWritesToAnotherHostPageKeepsThem) {
  const TlbEntry& entry = Enter(BankName::kUser, kLinear, Level::kPt);
  tlb_->AnnounceWritesTo(kHost + 0x1000);
  EXPECT_EQ(entry.write_tag, kLinear);
}

}  // namespace
}  // namespace pagesaw::cpu
