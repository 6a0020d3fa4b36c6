// For every format of SPTEs that is registered, every set of rights, every size and every access:
// what `SpteCodec` believes an SPTE allows is what the processor's own walk does on it, and what
// the manuals say of the bits that it wrote; and no SPTE grants a right that was not asked for.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <variant>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.cpu.core;
import pagesaw.cpu.hardware_walk;
import pagesaw.cpu.model;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_memory;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using cpu::Core;
using cpu::HostPage;
using cpu::Stop;

// Who and what.
struct Asked {
  enum Kind { kRead, kWrite, kFetch } kind;
  bool user;
  bool with_ac;
};

std::vector<Asked> EveryAccess() {
  std::vector<Asked> all;
  for (const Asked::Kind kind : {Asked::kRead, Asked::kWrite, Asked::kFetch}) {
    all.push_back({kind, true, false});
    all.push_back({kind, false, false});
    all.push_back({kind, false, true});
  }
  return all;
}

Access OursOf(const Asked& asked) {
  const Privilege by = asked.user ? Privilege::kUser : Privilege::kSupervisor;
  const Access access = asked.kind == Asked::kFetch   ? Access::Fetch(by)
                        : asked.kind == Asked::kWrite ? Access::Write(by)
                                                      : Access::Read(by);
  return asked.with_ac ? access.WithSmapWaived() : access;
}

std::string Words(Rights rights, std::uint64_t spte, const Asked& asked) {
  char text[120];
  std::snprintf(text, sizeof(text), "rights %#x, SPTE %#llx, %s %s%s", rights.bits(),
                static_cast<unsigned long long>(spte), asked.user ? "user" : "supervisor",
                asked.kind == Asked::kFetch   ? "fetch"
                : asked.kind == Asked::kWrite ? "write"
                                              : "read",
                asked.with_ac ? " with AC" : "");
  return text;
}

// A processor over host tables of one format. The page in question is at kFrame, in a table of its
// own at each level.
class Walked {
 public:
  static constexpr std::uint64_t kFrame = 0x0000'0080'4020'1000;
  static constexpr std::uint64_t kHost = 0x7000'4000'0000;  // aligned for every size

  explicit Walked(const PageFormat& format)
      : codec_(format),
        tables_(static_cast<std::uint64_t*>(std::aligned_alloc(4096, kTables * std::size_t{4096}))),
        model_(std::get<cpu::CpuModel>(cpu::MakeModel({}))),
        core_(std::make_unique<Core>()) {
    std::memset(tables_.get(), 0, kTables * std::size_t{4096});
    core_->model = &model_;
    core_->tables = {.format = &codec_.format(),
                     .root = Hpa(AddressOf(0)),
                     .level = Level::kPml4,
                     .second_stage = format.second_stage};
  }

  Core& core() { return *core_; }
  const SpteCodec& codec() const { return codec_; }

  // Makes `spte` a leaf at `level` for kFrame.
  void Put(std::uint64_t spte, Level level) {
    unsigned table = 0;
    for (Level at = Level::kPml4; at != level; at = Below(at)) {
      Entry(table, at, kFrame) = codec_.Link(Hpa(AddressOf(table + 1)));
      ++table;
    }
    Entry(table, level, kFrame) = spte;
  }
  // Maps guest frame 0 and the next few one to one on memory of the test, for a guest's tables.
  void PutGuestTables(std::byte* host) {
    unsigned table = 0;
    for (Level at = Level::kPml4; at != Level::kPt; at = Below(at)) {
      const unsigned next = at == Level::kPml4 ? 4 : table + 1;
      Entry(table, at, 0) = codec_.Link(Hpa(AddressOf(next)));
      table = next;
    }
    for (std::uint64_t page = 0; page < 8; ++page) {
      Entry(table, Level::kPt, page << 12) =
          codec_.Leaf({.page = Hpa(reinterpret_cast<std::uintptr_t>(host) + (page << 12))});
    }
  }

  // Whether the processor's walk of `linear` allows it; where it then is.
  bool Allows(std::uint64_t linear, const Asked& asked, HostPage& page) {
    core_->stop = Stop::kNone;
    core_->second_stage_tlb.Flush();
    core_->paging_structures.Flush();
    return cpu::WalkHardware(*core_, linear, OursOf(asked), page);
  }

 private:
  static constexpr unsigned kTables = 8;
  struct Free {
    void operator()(std::uint64_t* block) const { std::free(block); }
  };

  std::uint64_t AddressOf(unsigned table) const {
    return reinterpret_cast<std::uintptr_t>(tables_.get() + std::size_t{table} * 512);
  }
  std::uint64_t& Entry(unsigned table, Level level, std::uint64_t frame) {
    return tables_.get()[std::size_t{table} * 512 + IndexAt(Gpa(frame), level)];
  }

  SpteCodec codec_;
  std::unique_ptr<std::uint64_t, Free> tables_;
  cpu::CpuModel model_;
  std::unique_ptr<Core> core_;
};

// Calls `visit(leaf, spte)` for every leaf that can be asked for.
template <typename Visit>
void ForEachLeaf(const SpteCodec& codec, Visit visit) {
  for (Level level : {Level::kPt, Level::kPd, Level::kPdpt}) {
    for (unsigned rights = 0; rights < 32; ++rights) {
      for (unsigned flags = 0; flags < 8; ++flags) {
        const LeafSpte leaf = {.page = Hpa(Walked::kHost),
                               .level = level,
                               .rights = Rights(rights),
                               .host_writable = (flags & 1) != 0,
                               .mmu_writable = (flags & 2) != 0,
                               .dirty = (flags & 4) != 0};
        visit(leaf, codec.Leaf(leaf));
      }
    }
  }
}

// -- second stages

std::vector<std::string> FormatNames() { return {"ept", "ept-mbec", "npt", "npt-gmet"}; }

PluginRegistry& Registry() {
  static PluginRegistry registry;
  static const bool filled = [] {
    return !vmx::MakeVmxPlugin()->Register(registry) && !svm::MakeSvmPlugin()->Register(registry) &&
           !mbec::MakeMbecPlugin()->Register(registry);
  }();
  EXPECT_TRUE(filled);
  return registry;
}

TEST(SpteOracle, KnowsEveryRegisteredFormat) {
  EXPECT_EQ(Registry().tdp_formats().size(), FormatNames().size());
}

// What the manuals say of `spte` under tables that grant everything.
bool SecondStageAllows(const std::string& name, std::uint64_t spte, const Asked& asked) {
  const bool write = asked.kind == Asked::kWrite, fetch = asked.kind == Asked::kFetch;
  const auto bit = [spte](unsigned n) { return (spte >> n & 1) != 0; };
  if (name.starts_with("ept")) {
    if (!fetch) return bit(write ? 1 : 0);
    return bit(name == "ept-mbec" && asked.user ? 10 : 2);
  }
  const oracle::Page page = {
      .writable = bit(1), .user = bit(2), .execute_disabled = bit(63), .key = 0};
  return bit(0) &&
         !oracle::NestedRightsRefuse({.guest_mode_execute_trap = name == "npt-gmet"}, page,
                                     {.write = write, .fetch = fetch, .user = asked.user});
}

class SecondStageSpte : public testing::TestWithParam<std::string> {
 protected:
  static constexpr std::uint64_t kLinear = 0x0000'1234'5678'9000;

  SecondStageSpte() : walked_(Registry().FindTdpFormat(GetParam())->make(47)) {
    walked_.PutGuestTables(reinterpret_cast<std::byte*>(memory_.Slots().front().host));
    Core& core = walked_.core();
    core.cr0 = kCr0Pe | kCr0Pg | kCr0Wp;
    core.cr4 = kCr4Pae;
    core.efer = kEferLma | kEferLme | kEferNxe;
    core.cr3 = 0x1000;
    core.UpdatePaging();
  }

  // Makes kLinear the frame kFrame, as a page of users or of supervisors: with mode-based execute
  // control the page, not the processor, says whose access the second stage sees.
  void MapLinear(bool user) {
    const std::uint64_t bits = user ? 0x67 : 0x63;
    memory_.Write<std::uint64_t>(Gpa(0x1000 + 8 * (kLinear >> 39 & 511)), 0x2000 | bits);
    memory_.Write<std::uint64_t>(Gpa(0x2000 + 8 * (kLinear >> 30 & 511)), 0x3000 | bits);
    memory_.Write<std::uint64_t>(Gpa(0x3000 + 8 * (kLinear >> 21 & 511)), 0x4000 | bits);
    memory_.Write<std::uint64_t>(Gpa(0x4000 + 8 * (kLinear >> 12 & 511)), Walked::kFrame | bits);
  }

  TestMemory memory_{64 << 10};
  Walked walked_;
};

INSTANTIATE_TEST_SUITE_P(Formats, SecondStageSpte, testing::ValuesIn(FormatNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST_P(SecondStageSpte, AllowsWhatTheProcessorAndTheManualsSay) {
  const SpteCodec& codec = walked_.codec();
  ForEachLeaf(codec, [&](const LeafSpte& leaf, std::uint64_t spte) {
    walked_.Put(spte, leaf.level);
    for (const Asked& asked : EveryAccess()) {
      if (asked.with_ac) continue;  // of no meaning to a second stage
      MapLinear(asked.user);
      HostPage page;
      const bool allowed = walked_.Allows(kLinear, asked, page);
      const std::string words = Words(leaf.rights, spte, asked);
      ASSERT_TRUE(allowed || walked_.core().stop == Stop::kExit) << words;
      ASSERT_EQ(allowed, SecondStageAllows(GetParam(), spte, asked)) << words;
      if (spte != 0 && (codec.format().layout.read != 0 || asked.user ||
                        codec.format().user_pages_refuse_supervisor_fetch)) {
        ASSERT_EQ(codec.Allows(spte, OursOf(asked)), allowed) << words;
      }
      if (allowed) {
        ASSERT_EQ(page.host, Walked::kHost + (leaf.level == Level::kPt   ? 0
                                              : leaf.level == Level::kPd ? 0x1000
                                                                         : 0x20'1000))
            << words;
      }
      const bool granted = asked.kind == Asked::kRead ? leaf.rights.read()
                           : asked.kind == Asked::kWrite
                               ? leaf.rights.write() && leaf.host_writable && leaf.mmu_writable
                           : asked.user ? leaf.rights.exec_user()
                                        : leaf.rights.exec_supervisor();
      ASSERT_LE(allowed, granted) << words << ": more than was asked for";
      if (codec.CanExpress(leaf.rights) && leaf.host_writable && leaf.mmu_writable) {
        ASSERT_EQ(allowed, granted) << words << ": less than was asked for";
      }
    }
  });
}

// -- one stage: SPTEs that shadow paging makes of linear addresses

class LinearSpte : public testing::TestWithParam<unsigned> {};

INSTANTIATE_TEST_SUITE_P(Levels, LinearSpte, testing::Values(0, 2, 3, 4, 5),
                         [](const auto& info) { return std::to_string(info.param); });

class NoFlusher final : public TlbFlusher {
 public:
  void FlushAll() override {}
};

TEST_P(LinearSpte, AllowsWhatTheProcessorAndTheManualsSay) {
  const unsigned levels = GetParam();
  Walked walked(LinearSpteFormat());
  const TestMemory memory(64 << 10);
  const PagingFeatures features;
  const GuestTables tables(memory, features);
  NoFlusher flusher;
  ShadowPages pages(SpteCodec(LinearSpteFormat()), flusher, 100, &tables);
  CpuWalker walker(memory);
  const auto mmu = ShadowingMmu::Make(pages, memory, tables, walker);
  Core& core = walked.core();
  for (unsigned bits = 0; bits < 32; ++bits) {
    const auto on = [bits](unsigned bit) { return (bits >> bit & 1) != 0; };
    oracle::Processor processor = {.levels = levels == 0 ? 5 : levels,
                                   .wp = true,
                                   .smep = levels != 0 && on(1),
                                   .smap = levels != 0 && on(2),
                                   .pke = levels >= 4 && on(3),
                                   .pks = levels >= 4 && on(4)};
    core.cr0 = kCr0Pe | (levels != 0 ? kCr0Pg : 0) | (on(0) ? kCr0Wp : 0);
    core.cr4 = (levels >= 3 ? kCr4Pae : 0) | (levels == 5 ? kCr4La57 : 0) | (on(1) ? kCr4Smep : 0) |
               (on(2) ? kCr4Smap : 0) | (on(3) ? kCr4Pke : 0) | (on(4) ? kCr4Pks : 0);
    core.efer = levels >= 4 ? kEferLma | kEferLme : 0;
    processor.pkru = core.pkru = 0x5555'5e44;  // key 1: no access; 5: no write; 6: neither
    processor.pkrs = core.pkrs = 0x5555'5e44;
    core.UpdatePaging();
    walker.Reset(core.paging);
    mmu->PagingChanged(core.paging, {});
    const PageFormat& format = mmu->format();
    for (unsigned key : {0u, 1u, 4u, 5u, 6u}) {
      ForEachLeaf(walked.codec(), [&](const LeafSpte& asked_leaf, std::uint64_t) {
        LeafSpte leaf = asked_leaf;
        leaf.protection_key = static_cast<std::uint8_t>(key);
        const std::uint64_t spte = walked.codec().Leaf(leaf);
        walked.Put(spte, leaf.level);
        const oracle::Page page = {.writable = (spte >> 1 & 1) != 0,
                                   .user = (spte >> 2 & 1) != 0,
                                   .execute_disabled = (spte >> 63 & 1) != 0,
                                   .key = key};
        for (const Asked& asked : EveryAccess()) {
          const oracle::Access access = {.write = asked.kind == Asked::kWrite,
                                         .fetch = asked.kind == Asked::kFetch,
                                         .user = asked.user,
                                         .with_ac = asked.with_ac};
          // R/W of an SPTE binds supervisors whatever CR0.WP says; what keys refuse depends on it.
          oracle::Processor keys = processor;
          keys.levels = 5;
          keys.wp = on(0);
          const bool want = (spte & 1) != 0 && !oracle::RightsRefuse(processor, page, access) &&
                            !oracle::KeyRefuses(keys, page, access);
          HostPage host;
          const bool allowed = walked.Allows(Walked::kFrame, asked, host);
          const std::string words =
              Words(leaf.rights, spte, asked) + ", control bits " + std::to_string(bits);
          ASSERT_EQ(allowed, want) << words;
          if (spte == 0) continue;
          const Rights rights = format.RightsOf(spte);
          const bool ours =
              SpteCodec(format).Allows(spte, OursOf(asked)) &&
              !format.ProtectionKeyFault(spte, rights, OursOf(asked), core.pkru, core.pkrs);
          ASSERT_EQ(ours, allowed) << words;
          // Only the mode that the page belongs to is judged by the rights that were asked for.
          if (!allowed || leaf.rights.user() != asked.user) continue;
          const bool granted = asked.kind == Asked::kRead ? leaf.rights.read()
                               : asked.kind == Asked::kWrite
                                   ? leaf.rights.write() && leaf.host_writable && leaf.mmu_writable
                               : asked.user ? leaf.rights.exec_user()
                                            : leaf.rights.exec_supervisor();
          ASSERT_TRUE(granted) << words << ": more than was asked for";
        }
      });
    }
  }
}

}  // namespace
}  // namespace pagesaw
