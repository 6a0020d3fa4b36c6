#include <gtest/gtest.h>

#include <memory>

import pagesaw.cpu.tlb;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kLinear = 0x7fff'1234'5000;
constexpr std::uint64_t kHost = 0x1000'0000;

class TlbTest : public testing::Test {
 protected:
  TlbEntry& Enter(BankName name, std::uint64_t linear, bool large) {
    TlbBank& bank = tlb_->bank(name);
    bank.used = true;
    bank.large = bank.large || large;
    TlbEntry& entry = bank.At(linear);
    entry = {
        .read_tag = linear, .write_tag = linear, .fetch_tag = linear, .addend = kHost - linear};
    return entry;
  }

  std::unique_ptr<Tlb> tlb_ = std::make_unique<Tlb>();
};

TEST_F(TlbTest, FlushForgetsEveryBank) {
  const TlbEntry& user = Enter(BankName::kUser, kLinear, false);
  const TlbEntry& supervisor = Enter(BankName::kSupervisor, kLinear, true);
  tlb_->Flush();
  EXPECT_EQ(user.read_tag, kNoTag);
  EXPECT_EQ(supervisor.fetch_tag, kNoTag);
}

TEST_F(TlbTest, FlushPageForgetsThatPageInEveryBankAlone) {
  const TlbEntry& gone = Enter(BankName::kUser, kLinear, false);
  const TlbEntry& kept = Enter(BankName::kSupervisor, kLinear + 0x1000, false);
  tlb_->FlushPage(kLinear + 0xfff);
  EXPECT_EQ(gone.read_tag, kNoTag);
  EXPECT_EQ(kept.read_tag, kLinear + 0x1000);
}

TEST_F(TlbTest, FlushPageForgetsAllPiecesOfLargePages) {
  const TlbEntry& piece = Enter(BankName::kSupervisor, kLinear + 0x5000, true);
  tlb_->FlushPage(kLinear);
  EXPECT_EQ(piece.read_tag, kNoTag);
}

TEST_F(TlbTest, FlushWritesToAHostPageLeavesReads) {
  const TlbEntry& entry = Enter(BankName::kUser, kLinear, false);
  tlb_->FlushWritesTo(kHost + 0x800);
  EXPECT_EQ(entry.write_tag, kNoTag);
  EXPECT_EQ(entry.read_tag, kLinear);
}

TEST_F(TlbTest, FlushWritesToAnotherHostPageKeepsThem) {
  const TlbEntry& entry = Enter(BankName::kUser, kLinear, false);
  tlb_->FlushWritesTo(kHost + 0x1000);
  EXPECT_EQ(entry.write_tag, kLinear);
}

}  // namespace
}  // namespace pagesaw::cpu
