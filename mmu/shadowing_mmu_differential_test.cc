// Random guests against the shadow MMU: tables that point at one another, writes to them by the
// guest (seen or unseen) and by the host, changes of every control bit that paging knows, loads of
// CR3 that keep translations or not, all kinds of invalidation, memory attributes that the host
// sets, on one to three vCPUs. A model of
// processors with TLBs believes the SPTEs alone; after every access its verdict is compared with
// the walker's, with the tables as they are or as they were at a time when the vCPU could cache
// what has not been invalidated since; and the shadow pages are searched for contradictions.
//
//   --seed=N     the first seed (default: 1)
//   --seconds=S  how long (default: 5)
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_expectation;
import pagesaw.mmu.test_history;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

unsigned g_seed = 1;
unsigned g_seconds = 5;

constexpr std::uint64_t kMemoryBytes = 8u << 20;
constexpr std::uint64_t kReadOnlyBase = 0x1000'0000;
constexpr unsigned kTables = 14;  // the first frames hold tables
constexpr unsigned kSteps = 3000;
constexpr std::size_t kLongestLog = 200;

using Scope = Invalidation::Scope;

struct Vcpu {
  Vcpu(const TestMemory& memory, const MemoryAttributes& attributes, ShadowPages& pages,
       const GuestTables& tables)
      : walker(memory, nullptr, &attributes),
        mmu(ShadowingMmu::Make(pages, memory, tables, walker)) {}

  PagingState state;
  ShadowRoot root;
  std::map<std::pair<std::uint64_t, unsigned>, std::uint64_t> tlb;
  TranslationHistory history;
  std::array<std::uint64_t, 4> known = {};  // addresses of the current mode
  CpuWalker walker;
  std::unique_ptr<ShadowingMmu> mmu;
};

// A write of the guest or the host to memory.
struct Write {
  std::uint64_t time = 0;
  std::uint64_t* at = nullptr;
  std::uint64_t other = 0;  // what was there before; while it is undone, what was written
  bool unseen = false;
};

class Guest final : public TlbFlusher {
 public:
  explicit Guest(unsigned seed)
      : random_(seed),
        memory_(kMemoryBytes),
        tables_(memory_, Features(), &attributes_),
        pages_(SpteCodec(LinearSpteFormat()), *this, Below(3) == 0 ? 24 : 400, &tables_,
               &attributes_) {
    memory_.AddSlot(Gpa(kReadOnlyBase), 1u << 20, true);
    const auto count = 1 + Below(3);
    for (std::uint64_t i = 0; i < count; ++i) {
      cpu_ =
          vcpus_.emplace_back(std::make_unique<Vcpu>(memory_, attributes_, pages_, tables_)).get();
      cpu_->state.features = features_;
      ChangeMode();
    }
    for (unsigned i = 0; i < kTables * 40; ++i) WriteEntry();
  }

  ~Guest() override {
    // A vCPU that goes flushes, but not itself.
    while (!vcpus_.empty()) {
      const std::unique_ptr<Vcpu> gone = std::move(vcpus_.back());
      vcpus_.pop_back();
    }
  }

  // One random step. A complaint, or nothing.
  std::optional<std::string> Step() {
    if (log_.size() >= kLongestLog) ForgetLog();
    if (Chance(4)) cpu_ = vcpus_[Below(vcpus_.size())].get();
    switch (Below(37)) {
      case 0:
        if (Chance(3)) ChangeMode();
        break;
      case 1:
        ChangeBits();
        break;
      case 2:
      case 32:
        LoadCr3();
        break;
      case 33:
        Invpcid();
        break;
      case 36:
        HostSetsAttribute();
        break;
      case 34:
        Invlpg(RandomLinear());
        break;
      case 3:
        cpu_->state.pkru = Below(2) == 0 ? 0 : random_();
        cpu_->state.pkrs = Below(2) == 0 ? 0 : random_();
        cpu_->walker.Reset(cpu_->state);
        cpu_->tlb.clear();
        break;
      case 4:
        Changed(Scope::kAddressSpace);  // the same CR3 again
        break;
      case 5:
      case 6:
        HostWrites();
        break;
      case 7:
      case 8:
      case 9:
      case 10:
      case 11:
      case 12:
        if (auto complaint = GuestWrites()) return complaint;
        break;
      default:
        if (auto complaint = CheckedAccess()) return complaint;
    }
    if (Below(8) != 0) return std::nullopt;
    const ShadowPages::Lock lock = pages_.Acquire();
    return pages_.Audit();
  }

  void FlushAll() override {
    for (const auto& vcpu : vcpus_) vcpu->tlb.clear();
  }

  std::string Describe() const {
    char text[160];
    std::snprintf(text, sizeof(text), "cr0 %#llx cr3 %#llx cr4 %#llx efer %#llx pkru %#x pkrs %#x",
                  static_cast<unsigned long long>(cpu_->state.cr0),
                  static_cast<unsigned long long>(cpu_->state.cr3),
                  static_cast<unsigned long long>(cpu_->state.cr4),
                  static_cast<unsigned long long>(cpu_->state.efer), cpu_->state.pkru,
                  cpu_->state.pkrs);
    return text;
  }

 private:
  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }
  bool Chance(unsigned in) { return Below(in) == 0; }

  PagingFeatures Features() {
    features_.physical_bits = static_cast<std::uint8_t>(36 + Below(16));
    features_.gib_pages = !Chance(4);
    features_.pse36_bits = 40;
    features_.root_bit8_reserved = Chance(2);
    features_.la57 = true;
    return features_;
  }

  // -- the guest's tables and registers

  // What an entry of `table` names. In half of the guests tables stand in layers, as kernels build
  // them, so that the lowest are often written unseen; in the others any is of any level.
  std::uint64_t RandomFrame(std::uint64_t table) {
    const auto first_of = [](std::uint64_t layer) { return (kTables * layer + 3) / 4; };
    if (layered_ && table < kTables && !Chance(10)) {
      const std::uint64_t below = table * 4 / kTables + 1;
      if (below < 4) return first_of(below) + Below(first_of(below + 1) - first_of(below));
      if (Chance(2)) return first_of(3) + Below(kTables - first_of(3));
    }
    if (Chance(40)) return (kReadOnlyBase >> 12) + Below(4);
    if (Chance(40)) return 0x5'0000 + Below(4);
    return Chance(2) ? Below(kTables) : Below(64);
  }

  std::uint64_t RandomEntry(std::uint64_t table) {
    std::uint64_t entry = RandomFrame(table) << 12;
    if (!Chance(12)) entry |= 1;
    if (!Chance(4)) entry |= 2;
    if (!Chance(4)) entry |= 4;
    if (!Chance(3)) entry |= 0x20;
    if (!Chance(3)) entry |= 0x40;
    if (Chance(6)) entry = (entry & ~std::uint64_t{0x1f'f000}) | 0x80;
    if (Chance(40)) entry |= 0x100;
    if (Chance(10)) entry |= std::uint64_t{1} << 63;
    if (Chance(10)) entry |= Below(16) << 59;
    if (Chance(60)) entry |= std::uint64_t{1} << (13 + Below(39));
    return entry;
  }

  unsigned RandomIndex(unsigned count) {
    static constexpr std::array<unsigned, 4> kLow = {0, 1, 2, 3};
    return Chance(4) ? count - 1 : kLow[Below(kLow.size())];
  }

  Gpa RandomEntryAddress(unsigned& bytes) {
    bytes = cpu_->state.mode() == PagingMode::k32Bit || Chance(8) ? 4 : 8;
    const unsigned index = RandomIndex(4096 / bytes);
    return Gpa((Below(kTables) << 12) + std::uint64_t{index} * bytes);
  }

  void Store(Gpa at, std::uint64_t value, unsigned bytes) {
    Log(memory_.Find(GfnOf(at))->HostOf(Gpa(at.bits() & ~std::uint64_t{7})), false);
    if (bytes == 4) {
      memory_.Write<std::uint32_t>(at, static_cast<std::uint32_t>(value));
    } else {
      memory_.Write<std::uint64_t>(at, value);
    }
  }

  void WriteEntry() {
    unsigned bytes = 8;
    const Gpa at = RandomEntryAddress(bytes);
    Store(at, RandomEntry(at.bits() >> 12), bytes);
  }

  void HostWrites() {
    unsigned bytes = 8;
    const Gpa at = RandomEntryAddress(bytes);
    Store(at, RandomEntry(at.bits() >> 12), bytes);
    pages_.GuestWrote(at, bytes);
  }

  // Mostly takes them away again, so that guests get somewhere.
  void HostSetsAttribute() {
    const Gfn first{Chance(20) ? 0x5'0000 + Below(4) : Below(64)};
    std::uint64_t count = Chance(20) ? 1u << 20 : 1 + Below(Chance(3) ? 600 : 3);
    MemoryAttribute attribute;
    if (!Chance(2)) {
      // What SPTEs of linear addresses can say.
      attribute.rights = Rights(Chance(3) ? 0 : Rights::kRead | Below(8) << 1);
      if (Chance(4)) attribute.policy = ViolationPolicy::kLog;
    } else if (Chance(2)) {
      count = 1u << 21;
    }
    if (attributes_.Set(first, count, attribute) == MemoryAttributes::Change::kRestricted) {
      pages_.AttributesChanged(first, count);
    }
  }

  std::uint64_t RandomRoot() {
    if (Chance(30)) return 0x5000'0000;
    return Below(5) << 12;
  }

  std::uint64_t RandomLinear() {
    if (cpu_->state.mode() == PagingMode::k32Bit) {
      return std::uint64_t{RandomIndex(1024)} << 22 | std::uint64_t{RandomIndex(1024)} << 12 |
             Below(4096);
    }
    std::uint64_t linear = Below(4096);
    for (unsigned level = 1; level <= 5; ++level) {
      linear |= std::uint64_t{RandomIndex(512)} << (12 + 9 * (level - 1));
    }
    if (!cpu_->state.long_mode()) return linear & 0xffff'ffff;
    const unsigned shift = 64 - cpu_->state.linear_bits();
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(linear << shift) >> shift);
  }

  Access RandomAccess() {
    const Privilege by = Chance(2) ? Privilege::kUser : Privilege::kSupervisor;
    const bool shadow_stacks = cpu_->state.paging() && (cpu_->state.cr4 & kCr4Cet) != 0;
    const auto kind = Below(shadow_stacks ? 5 : 3);
    if (kind == 3) return Access::ShadowStackRead(by);
    if (kind == 4) return Access::ShadowStackWrite(by);
    if (kind == 0) return Access::Fetch(by);
    const Access access = kind == 1 ? Access::Write(by) : Access::Read(by);
    return by == Privilege::kSupervisor && Chance(3) ? access.WithSmapWaived() : access;
  }

  void ChangeMode() {
    const auto mode = Below(9);
    cpu_->state.cr0 = kCr0Pe | (mode == 0 ? 0 : kCr0Pg);
    cpu_->state.cr4 = 0;
    cpu_->state.efer = 0;
    if (mode >= 3) cpu_->state.cr4 |= kCr4Pae;
    if (mode >= 5) cpu_->state.efer |= kEferLme | kEferLma;
    if (mode >= 5 && !Chance(3)) cpu_->state.cr4 |= kCr4Pcide;
    if (mode >= 7) cpu_->state.cr4 |= kCr4La57;
    cpu_->state.cr3 = RandomCr3();
    FlipBits();
    LoadPdptes();
    for (std::uint64_t& linear : cpu_->known) linear = RandomLinear();
    Changed(Scope::kEverything);
  }

  void FlipBits() {
    const auto flip = [this](std::uint64_t& word, std::uint64_t bit, unsigned in) {
      word = Chance(in) ? word & ~bit : word | bit;
    };
    flip(cpu_->state.cr0, kCr0Wp, 2);
    flip(cpu_->state.cr4, kCr4Pse, 3);
    flip(cpu_->state.cr4, kCr4Smep, 2);
    flip(cpu_->state.cr4, kCr4Smap, 2);
    flip(cpu_->state.cr4, kCr4Pke, 2);
    flip(cpu_->state.cr4, kCr4Pks, 2);
    flip(cpu_->state.efer, kEferNxe, 4);
    flip(cpu_->state.cr4, kCr4Cet, 2);
    // CET needs WP.
    if (!cpu_->state.write_protect()) cpu_->state.cr4 &= ~kCr4Cet;
  }

  void ChangeBits() {
    const PagingState old = cpu_->state;
    if (Chance(2) && (old.cr4 & kCr4Cet) == 0) {
      cpu_->state.cr0 ^= kCr0Wp;
    } else {
      FlipBits();
    }
    if (((old.cr4 ^ cpu_->state.cr4) & kCr4Pse) != 0) return Changed(Scope::kEverything);
    const bool judged_anew =
        ((old.cr4 ^ cpu_->state.cr4) & kCr4Smep) != 0 || old.efer != cpu_->state.efer;
    Changed(judged_anew ? Scope::kAddressSpace : Scope::kNothing);
  }

  std::uint64_t RandomCr3() {
    return RandomRoot() | ((cpu_->state.cr4 & kCr4Pcide) != 0 ? Below(3) : 0);
  }

  void LoadCr3() {
    cpu_->state.cr3 = RandomCr3();
    LoadPdptes();
    const bool keeps = (cpu_->state.cr4 & kCr4Pcide) != 0 && !Chance(3);
    Changed(keeps ? Scope::kNothing : Scope::kAddressSpace);
  }

  void LoadPdptes() {
    if (cpu_->state.mode() != PagingMode::kPae) return;
    const std::uint64_t table = cpu_->state.cr3 & 0xffff'ffe0;
    for (unsigned i = 0; i < 4; ++i) {
      // Well-formed: the processor refuses others.
      const std::uint64_t pdpte = memory_.Find(GfnOf(Gpa(table))) == nullptr
                                      ? 0
                                      : memory_.Read<std::uint64_t>(Gpa(table + 8 * i));
      cpu_->state.pdptes[i] = pdpte & 0x0000'000f'ffff'f001;
    }
  }

  // Registers of the vCPU have been loaded, which invalidates `scope` of its PCID.
  void Changed(Scope scope) {
    const Invalidation invalidation = {.scope = scope, .pcid = cpu_->state.pcid()};
    cpu_->walker.Reset(cpu_->state);
    cpu_->mmu->PagingChanged(cpu_->state, invalidation);
    cpu_->tlb.clear();
    LoadRoot();
    cpu_->history.Enter(cpu_->state, ++now_, invalidation);
  }

  void Invpcid() {
    const bool pcids = (cpu_->state.cr4 & kCr4Pcide) != 0;
    const Invalidation invalidation = {
        .scope = static_cast<Scope>(1 + Below(3)),
        .pcid = static_cast<std::uint16_t>(pcids ? Below(3) : 0),
        .linear = Gva(RandomLinear()),
    };
    Invalidate(invalidation);
  }
  void Invlpg(std::uint64_t linear) {
    Invalidate({.scope = Scope::kAddress, .pcid = cpu_->state.pcid(), .linear = Gva(linear)});
  }
  void Invalidate(const Invalidation& invalidation) {
    cpu_->mmu->Invalidate(invalidation);
    if (invalidation.scope == Scope::kAddress) {
      const std::uint64_t page = invalidation.linear.bits() >> 12;
      std::erase_if(cpu_->tlb, [&](const auto& entry) { return entry.first.first == page; });
    } else {
      cpu_->tlb.clear();
    }
    LoadRoot();
    cpu_->history.Forget(cpu_->state, ++now_, invalidation);
  }

  // -- what memory was

  void ForgetLog() {
    Vcpu* const current = cpu_;
    for (const auto& vcpu : vcpus_) {
      cpu_ = vcpu.get();
      Changed(Scope::kEverything);
    }
    cpu_ = current;
    log_.clear();
  }

  void Log(std::byte* host, bool unseen) {
    log_.push_back({++now_, reinterpret_cast<std::uint64_t*>(host), 0, unseen});
    log_.back().other = *log_.back().at;
  }

  // Whether the access would have had the outcome `got`, and if asked A and D were set, with the
  // tables as they were at a time when the vCPU could cache translations of this address that are
  // still good.
  bool WasTrue(std::uint64_t linear, Access access, const Outcome& got,
               bool with_accessed_dirty = false) {
    bool found = false;
    bool unseen = false;
    std::size_t undone = 0;
    while (!found && undone < log_.size()) {
      Write& write = log_[log_.size() - ++undone];
      std::swap(*write.at, write.other);
      unseen = unseen || write.unseen;
      const std::uint64_t before = undone < log_.size() ? log_[log_.size() - undone - 1].time : 0;
      found = unseen && cpu_->history.CouldCache(cpu_->state, linear, before, write.time) &&
              expectation_.Of(cpu_->state, linear, access) == got &&
              (!with_accessed_dirty || expectation_.HasAccessedDirty(cpu_->state, linear, access));
    }
    for (; undone != 0; --undone) {
      Write& write = log_[log_.size() - undone];
      std::swap(*write.at, write.other);
    }
    return found;
  }

  // -- the processor

  void LoadRoot() {
    if (!cpu_->mmu->roots_obsolete()) return;
    cpu_->root = cpu_->mmu->Root();
    cpu_->tlb.clear();
  }

  Outcome Run(std::uint64_t linear, Access access, bool& from_tlb) {
    from_tlb = false;
    const auto key =
        std::pair(linear >> 12, access.permission_row() | (access.is_shadow_stack() ? 16u : 0));
    for (unsigned tries = 0; tries < 12; ++tries) {
      LoadRoot();
      if (const auto found = cpu_->tlb.find(key); found != cpu_->tlb.end()) {
        from_tlb = true;
        return {Outcome::Kind::kHost, found->second | (linear & 0xfff)};
      }
      HostTableSpace<true> space;
      const WalkResult walk =
          WalkTables<AnyLayout>(cpu_->mmu->format(),
                                {.table = OutputAddress(cpu_->root.table.bits()),
                                 .level = cpu_->root.level,
                                 .address = InputAddress(linear),
                                 .access = access,
                                 .pkru = cpu_->state.pkru,
                                 .pkrs = cpu_->state.pkrs},
                                space);
      if (walk) {
        cpu_->tlb[key] = walk->output.bits() & ~std::uint64_t{0xfff};
        return {Outcome::Kind::kHost, walk->output.bits()};
      }
      const FaultResolution result =
          cpu_->mmu->HandleFault({.address = InputAddress(linear),
                                  .access = access,
                                  .malformed = walk.fault().kind == WalkFault::Kind::kMalformed,
                                  .linear = Gva(linear)});
      switch (result.outcome) {
        case FaultOutcome::kGuestFault:
          return {Outcome::Kind::kGuestFault, result.guest_fault.code.bits()};
        case FaultOutcome::kMmio:
          return {Outcome::Kind::kDevice, result.gpa.bits()};
        case FaultOutcome::kAttributeViolation:
          return {Outcome::Kind::kViolation, result.violation->gpa.bits()};
        case FaultOutcome::kWriteProtected:
          lent_ = result.gpa;
          return {Outcome::Kind::kHost, result.host.bits()};
        default:
          break;
      }
    }
    return {};
  }

  std::string Trace(std::uint64_t linear, Access access) const {
    WalkTrace trace;
    (void)CpuWalker(memory_, cpu_->state).Inspect(InputAddress(linear), access, &trace);
    std::string words;
    for (const WalkStep& step : trace.steps()) {
      char text[64];
      std::snprintf(text, sizeof(text), "\n  at %#llx: %#llx",
                    static_cast<unsigned long long>(step.entry_address.bits()),
                    static_cast<unsigned long long>(step.entry));
      words += text;
    }
    (void)cpu_->mmu->Inspect(InputAddress(linear), access, &trace);
    for (const WalkStep& step : trace.steps()) {
      char text[64];
      std::snprintf(
          text, sizeof(text), "\n  SPTE of page %llu: %#llx",
          static_cast<unsigned long long>(ShadowPages::PageAt(Hpa(step.entry_address.bits()))->id),
          static_cast<unsigned long long>(step.entry));
      words += text;
    }
    return words;
  }

  std::optional<std::string> CheckedAccess() {
    // Often one that has been used before.
    std::uint64_t& known = cpu_->known[Below(cpu_->known.size())];
    const std::uint64_t linear = Chance(4) ? known = RandomLinear() : known;
    const Access access = RandomAccess();
    bool from_tlb = false;
    if (Chance(4)) Invlpg(linear);
    const Outcome want = expectation_.Of(cpu_->state, linear, access);
    const Outcome got = Run(linear, access, from_tlb);
    char what[96];
    std::snprintf(what, sizeof(what),
                  "linear %#llx, access %#x: ", static_cast<unsigned long long>(linear),
                  access.code_bits());
    if (got != want && expectation_.Of(cpu_->state, linear, access) == want &&
        !WasTrue(linear, access, got)) {
      return what + Words(got) + ", want " + Words(want);
    }
    // An entry that was written unseen may have lost A and D since it was cached.
    if (got.kind == Outcome::Kind::kHost && want == got &&
        !expectation_.HasAccessedDirty(cpu_->state, linear, access) &&
        !WasTrue(linear, access, got, true)) {
      return std::string(what) + "A or D is missing" + (from_tlb ? " (TLB)" : "") +
             Trace(linear, access);
    }
    return std::nullopt;
  }

  // The guest stores an entry wherever some linear address leads it.
  std::optional<std::string> GuestWrites() {
    const std::uint64_t linear =
        (RandomLinear() & ~std::uint64_t{0xfff}) | std::uint64_t{RandomIndex(512)} * 8;
    const Access access = Access::Write(Privilege::kSupervisor).WithSmapWaived();
    lent_.reset();
    bool from_tlb = false;
    const Outcome got = Run(linear, access, from_tlb);
    if (got.kind != Outcome::Kind::kHost) return std::nullopt;
    Log(reinterpret_cast<std::byte*>(got.value), !lent_);
    const auto memory = reinterpret_cast<std::uintptr_t>(memory_.Find(Gfn{0})->HostOf(Gpa(0)));
    *reinterpret_cast<std::uint64_t*>(got.value) = RandomEntry((got.value - memory) >> 12);
    if (lent_) {
      const Gpa page(lent_->bits() & ~std::uint64_t{0xfff});
      Chance(2) ? cpu_->mmu->GuestWrote(page, 4096) : cpu_->mmu->GuestWrote(*lent_, 8);
    }
    return std::nullopt;
  }

  std::mt19937_64 random_;
  const bool layered_ = Chance(2);
  PagingFeatures features_;
  TestMemory memory_;
  MemoryAttributes attributes_;
  const Expectation expectation_{memory_, attributes_};
  GuestTables tables_;
  ShadowPages pages_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  Vcpu* cpu_ = nullptr;      // that runs now
  std::optional<Gpa> lent_;  // of the write that was made for the guest
  std::vector<Write> log_;   // since some time that no translation is older than
  std::uint64_t now_ = 0;
};

TEST(ShadowingMmuDifferential, AgreesWithTheWalker) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(g_seconds);
  unsigned seed = g_seed;
  std::uint64_t steps = 0;
  for (; std::chrono::steady_clock::now() < end; ++seed) {
    Guest guest(seed);
    for (unsigned step = 0; step < kSteps; ++step, ++steps) {
      const std::optional<std::string> complaint = guest.Step();
      ASSERT_FALSE(complaint) << "seed " << seed << ", step " << step << ": " << *complaint << "\n"
                              << guest.Describe();
    }
  }
  std::printf("seeds %u to %u, %llu steps\n", g_seed, seed - 1,
              static_cast<unsigned long long>(steps));
}

}  // namespace
}  // namespace pagesaw

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto number = [&](std::string_view name, unsigned& value) {
      if (!argument.starts_with(name)) return;
      value = static_cast<unsigned>(std::strtoul(argv[i] + name.size(), nullptr, 10));
    };
    number("--seed=", pagesaw::g_seed);
    number("--seconds=", pagesaw::g_seconds);
  }
  std::printf("first seed %u\n", pagesaw::g_seed);
  return RUN_ALL_TESTS();
}
