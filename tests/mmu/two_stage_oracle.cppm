// What an x86 processor does with two stages of tables, for tests: the walks of `paging_oracle`,
// put together by the manuals' words. Shares nothing with the code that it judges.
module;
#include <cstdint>
#include <optional>
#include <vector>
export module pagesaw.tests.mmu.two_stage_oracle;

import pagesaw.mmu.paging_oracle;

export namespace pagesaw::oracle {

// The stage below a guest's own tables.
struct SecondStage {
  enum class Kind : std::uint8_t { kNone, kEpt, kNpt } kind = Kind::kNone;
  Ept ept = {};
  NestedPaging npt = {};
  std::uint64_t root = 0;
  bool accessed_dirty = true;       // EPT: bit 6 of the pointer
  bool logs_dirty = false;          // EPT: page-modification logging
  bool pdptes_in_memory = false;    // the guest's own, in PAE paging: AMD
  bool tables_are_written = false;  // accesses to the guest's tables count as writes
};

// How an access ends, for the one who runs the guest.
struct Ending {
  enum class Kind : std::uint8_t {
    kArrives,    // `value`: physical address in the hypervisor's space
    kPageFault,  // `value`: error code
    kNested,     // `value`: physical address in the guest's space; `info`
    kForbidden,  // `value`: physical address that the host forbids
  } kind = Kind::kArrives;
  std::uint64_t value = 0;
  // kNested: the exit qualification, EXITINFO1, or one of the following.
  std::uint64_t info = 0;
  static constexpr std::uint64_t kMisconfiguration = std::uint64_t{1} << 63;
  static constexpr std::uint64_t kLogFull = std::uint64_t{1} << 62;
};

// An entry, in the hypervisor's physical space, that a translation has used, and what of A and D it
// has afterwards.
struct Use {
  std::uint64_t at = 0;
  unsigned bytes = 8;
  std::uint64_t set = 0;
};

// `World` is memory and its master:
//   uint64_t ReadNested(at, bytes, pdpte), ReadGuest(at, bytes, pdpte): an entry of either stage
//   bool Forbids(at, Access): the host's opinion, of a table as of any memory
//   bool ForbidsFetch(at, user_page, user): the same of fetches
//   bool IsMemory(at, write)
//   bool log_full()
template <typename World>
class TwoStageWalk {
 public:
  TwoStageWalk(const Processor& guest, const SecondStage& second, World& world)
      : guest_(guest), second_(second), world_(world) {}

  // Every way in which the access may end: mostly one. Where two refusals meet whose order nobody
  // promises there are more.
  std::vector<Ending> Run(std::uint64_t linear, const Access& access) {
    endings_.clear();
    uses_.clear();
    tables_.clear();
    std::uint64_t physical = linear;
    Page page;
    if (guest_.levels == 0 || WalkGuest(linear, access, physical, page)) {
      Finish(physical, access, page);
    }
    return endings_;
  }
  // Entries used by the last Run, if it arrives.
  const std::vector<Use>& uses() const { return uses_; }

  // The second stage alone, for an access of a final address that is a user-mode one or not.
  std::optional<std::uint64_t> RunSecond(std::uint64_t address, const Access& access,
                                         bool user_address) {
    endings_.clear();
    uses_.clear();
    return Second(address, access, {.user_address = user_address});
  }

 private:
  struct Purpose {
    bool table = false;
    bool user_address = true;
    unsigned advanced = 0;  // bits 11:9 of the qualification
  };
  struct Table {
    std::uint64_t address = 0;   // of the entry, in the guest's space
    std::uint64_t physical = 0;  // in the hypervisor's
    unsigned bytes = 8;
    std::uint64_t entry = 0;
    bool leaf = false;
  };

  void End(Ending::Kind kind, std::uint64_t value, std::uint64_t info = 0) {
    endings_.push_back({kind, value, info});
  }
  bool Forbidden(std::uint64_t at, const Access& access) {
    if (!world_.Forbids(at, access)) return false;
    End(Ending::Kind::kForbidden, at);
    return true;
  }

  // The guest's tables. [intel/vol3] "Paging"
  bool WalkGuest(std::uint64_t linear, const Access& access, std::uint64_t& physical, Page& page) {
    constexpr std::uint32_t kP = 1, kRw = 2, kUs = 4, kRsvd = 8, kId = 16, kPk = 32;
    std::uint32_t asked = (access.write ? kRw : 0) | (access.user ? kUs : 0);
    if (access.fetch && (guest_.smep || (guest_.levels > 2 && guest_.nxe))) asked |= kId;
    const unsigned bytes = guest_.levels == 2 ? 4 : 8;
    const unsigned index_bits = guest_.levels == 2 ? 10 : 9;
    const std::uint64_t address_mask = guest_.levels == 2 ? 0xffff'f000 : 0x000f'ffff'ffff'f000;
    std::uint64_t table = guest_.root & (guest_.levels == 3 ? 0xffff'ffe0 : address_mask);
    for (unsigned level = guest_.levels;; --level) {
      const unsigned shift = 12 + index_bits * (level - 1);
      const std::uint64_t index = linear >> shift & ((1u << index_bits) - 1);
      const bool is_pdpte = guest_.levels == 3 && level == 3;
      std::uint64_t entry = guest_.pdpte[index & 3];
      if (!is_pdpte || second_.pdptes_in_memory) {
        if (!ReadTable(table + index * bytes, bytes, is_pdpte, entry)) return false;
      }
      if ((entry & 1) == 0) return End(Ending::Kind::kPageFault, asked), false;
      if (HasReservedBit(guest_, level, entry)) {
        return End(Ending::Kind::kPageFault, asked | kP | kRsvd), false;
      }
      if (!is_pdpte) {
        page.writable = page.writable && (entry >> 1 & 1) != 0;
        page.user = page.user && (entry >> 2 & 1) != 0;
        page.execute_disabled =
            page.execute_disabled || (guest_.levels > 2 && guest_.nxe && (entry >> 63 & 1) != 0);
      }
      const bool may_be_large =
          level == 3 ? guest_.levels >= 4 : level == 2 && (guest_.levels > 2 || guest_.pse);
      if (level > 1 && !(may_be_large && (entry >> 7 & 1) != 0)) {
        table = entry & address_mask;
        continue;
      }
      tables_.back().leaf = true;
      page.key = static_cast<unsigned>(entry >> 59 & 15);
      const bool key = KeyRefuses(guest_, page, access);
      if (key || RightsRefuse(guest_, page, access)) {
        return End(Ending::Kind::kPageFault, asked | kP | (key ? kPk : 0)), false;
      }
      const std::uint64_t offset_mask = (std::uint64_t{1} << shift) - 1;
      physical = (entry & address_mask & ~offset_mask) | (linear & offset_mask);
      if (guest_.levels == 2 && level == 2) physical |= (entry >> 13 & 0xff) << 32;
      return true;
    }
  }

  // [intel/vol3] "EPT and Accesses to Paging-Structure Entries"; [amd/vol2] "Nested Table Walk"
  bool ReadTable(std::uint64_t address, unsigned bytes, bool is_pdpte, std::uint64_t& entry) {
    const Access access = {.write = second_.tables_are_written, .user = true};
    const auto physical = Second(address, access, {.table = true});
    if (!physical) return false;
    if (Forbidden(*physical, {.user = true})) return false;
    if (access.write && Forbidden(*physical, access)) return false;
    entry = world_.ReadGuest(*physical, bytes, is_pdpte);
    if (!is_pdpte) tables_.push_back({address, *physical, bytes, entry});
    return true;
  }

  // The final address, and A and D of the guest's entries. Of an access that arrives in no memory
  // nobody promises whether they are set first.
  void Finish(std::uint64_t address, const Access& access, const Page& page) {
    const bool paging = guest_.levels != 0;
    const bool user_address = !paging || page.user;
    const bool writable = !paging || page.writable;
    const unsigned advanced =
        (user_address ? 1u : 0) | (writable ? 2u : 0) | (paging && page.execute_disabled ? 4u : 0);
    const auto physical =
        Second(address, access, {.user_address = user_address, .advanced = advanced});
    bool arrives = false;
    if (physical) {
      const bool forbidden = access.fetch
                                 ? world_.ForbidsFetch(*physical, user_address, access.user)
                                 : world_.Forbids(*physical, access);
      arrives = !forbidden && world_.IsMemory(*physical, access.write);
      if (!arrives) {
        End(forbidden ? Ending::Kind::kForbidden : Ending::Kind::kArrives, *physical);
      }
    }
    if (!UpdateTables(access)) return;
    if (arrives) End(Ending::Kind::kArrives, *physical);
  }

  bool UpdateTables(const Access& access) {
    for (const Table& table : tables_) {
      const std::uint64_t set = 1u << 5 | (table.leaf && access.write ? 1u << 6 : 0);
      if ((table.entry & set) != set) {
        const Access update = {.write = true, .user = true};
        if (!Second(table.address, update, {.table = true})) return false;
        if (Forbidden(table.physical, update)) return false;
      }
      uses_.push_back({table.physical, table.bytes, set});
    }
    return true;
  }

  // Where `address` is in the hypervisor's space, or nothing, and it has ended.
  std::optional<std::uint64_t> Second(std::uint64_t address, const Access& access,
                                      const Purpose& purpose) {
    if (second_.kind == SecondStage::Kind::kNone) return address;
    reads_.clear();
    std::optional<std::uint64_t> forbidden;
    const bool pae = second_.kind == SecondStage::Kind::kNpt && second_.npt.levels == 3;
    const auto read = [&](std::uint64_t at, unsigned bytes) -> std::uint64_t {
      const bool is_pdpte = pae && reads_.empty();
      if (world_.Forbids(at, Access{})) {
        forbidden = at;
        return 0;
      }
      reads_.push_back({.physical = at,
                        .bytes = bytes,
                        .entry = world_.ReadNested(at, bytes, is_pdpte),
                        .leaf = false});
      return reads_.back().entry;
    };
    std::uint64_t physical = 0;
    std::optional<std::uint64_t> info;
    if (second_.kind == SecondStage::Kind::kEpt) {
      info =
          ByEpt(address, access, purpose, physical, [&](std::uint64_t at) { return read(at, 8); });
    } else {
      info = ByNpt(address, access, purpose, physical, read);
    }
    if (forbidden) return End(Ending::Kind::kForbidden, *forbidden), std::nullopt;
    if (info) return End(Ending::Kind::kNested, address, *info), std::nullopt;
    if (!MarkUsed(address, access, pae)) return std::nullopt;
    return physical;
  }

  template <typename Read>
  std::optional<std::uint64_t> ByEpt(std::uint64_t address, const Access& access,
                                     const Purpose& purpose, std::uint64_t& physical, Read read) {
    using Kind = EptVerdict::Kind;
    const EptAccess asked = {
        .write = access.write, .fetch = access.fetch, .user_address = purpose.user_address};
    const EptVerdict verdict = Translate(second_.ept, second_.root, address, asked, read);
    physical = verdict.physical;
    if (verdict.kind == Kind::kAllowed) return std::nullopt;
    if (verdict.kind == Kind::kMisconfiguration) return Ending::kMisconfiguration;
    // [intel/vol3] "Exit Qualification for EPT Violations"
    std::uint64_t info = access.fetch ? 4u : access.write ? 2u : 1u;
    if (purpose.table && access.write) info = 3;
    const unsigned known = second_.ept.mode_based_execute ? 15 : 7;
    info |= (verdict.qualification_rights & known) << 3 | 1u << 7;
    if (!purpose.table) info |= 1u << 8 | purpose.advanced << 9;
    return info;
  }

  template <typename Read>
  std::optional<std::uint64_t> ByNpt(std::uint64_t address, const Access& access,
                                     const Purpose& purpose, std::uint64_t& physical, Read read) {
    const Verdict verdict = Translate(second_.npt, second_.root, address, access, read);
    physical = verdict.physical;
    if (!verdict.fault) return std::nullopt;
    return verdict.code | std::uint64_t{1} << (purpose.table ? 33 : 32);
  }

  // A and D of the entries just read.
  bool MarkUsed(std::uint64_t address, const Access& access, bool pae) {
    if (!second_.accessed_dirty) return true;
    const bool ept = second_.kind == SecondStage::Kind::kEpt;
    const std::uint64_t accessed = ept ? 1u << 8 : 1u << 5, dirty = accessed << 1;
    const bool gets_dirty = access.write && (reads_.back().entry & dirty) == 0;
    if (gets_dirty && second_.logs_dirty && world_.log_full()) {
      End(Ending::Kind::kNested, address, Ending::kLogFull);
      return false;
    }
    for (std::size_t i = pae ? 1 : 0; i < reads_.size(); ++i) {
      const bool leaf = i + 1 == reads_.size();
      const std::uint64_t set = accessed | (leaf && access.write ? dirty : 0);
      const Table& read = reads_[i];
      if ((read.entry & set) != set && Forbidden(read.physical, {.write = true})) return false;
      uses_.push_back({read.physical, read.bytes, set});
    }
    return true;
  }

  const Processor& guest_;
  const SecondStage& second_;
  World& world_;
  std::vector<Ending> endings_;
  std::vector<Use> uses_;
  std::vector<Table> tables_;  // the guest's, as used
  std::vector<Table> reads_;   // of the second stage, by its last walk
};

}  // namespace pagesaw::oracle
