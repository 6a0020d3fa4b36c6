// Random guests against the shadow MMU: tables that point at one another, writes to them by the
// guest (seen or unseen) and by the host, changes of every control bit that paging knows, loads of
// CR3 that keep translations or not, all kinds of invalidation, memory attributes that the host
// sets and takes back, logs of written pages that it starts, takes and stops, on one to three
// vCPUs. Processors believe the SPTEs alone. After every access its outcome is compared with the
// walker's, with the tables as they are or as they were at a time when the vCPU could cache what
// has not been invalidated since. After every step, whatever it was, no TLB and no SPTE grants more
// than the guest's entries and the attributes, and no write is missing in a log, or could be.
//
//   --seed=N     the first seed (default: 1)
//   --seconds=S  how long (default: 20)
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_expectation;
import pagesaw.mmu.test_history;
import pagesaw.mmu.test_log_witness;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.test_processor;
import pagesaw.mmu.test_random_paging;
import pagesaw.mmu.test_write_history;

namespace pagesaw {
namespace {

unsigned g_seed = 1;
unsigned g_seconds = 20;

constexpr std::uint64_t kMemoryBytes = 8u << 20;
constexpr std::uint64_t kReadOnlyBytes = 1u << 20;
constexpr unsigned kSteps = 3000;
constexpr std::size_t kLongestHistory = 200;

using Complaint = std::optional<std::string>;
using Scope = Invalidation::Scope;

struct Vcpu {
  Vcpu(const GuestMemory& memory, const MemoryAttributes& attributes, ShadowPages& pages,
       const GuestTables& tables)
      : cpu(memory, attributes, pages, tables) {}

  TestProcessor cpu;
  TranslationHistory history;
  std::array<std::uint64_t, 4> known = {};  // addresses of the current mode
};

class Guest final : public TlbFlusher {
 public:
  explicit Guest(unsigned seed)
      : random_(seed),
        memory_(kMemoryBytes),
        features_(random_.Features()),
        tables_(memory_, features_, &attributes_),
        pages_(SpteCodec(LinearSpteFormat()), *this, random_.Chance(3) ? 24 : 400, &tables_,
               &attributes_),
        rom_(memory_.AddSlot(Gpa(RandomPaging::kReadOnlyBase), kReadOnlyBytes, true)) {
    const auto count = 1 + random_.Below(3);
    for (std::uint64_t i = 0; i < count; ++i) {
      vcpu_ =
          vcpus_.emplace_back(std::make_unique<Vcpu>(memory_, attributes_, pages_, tables_)).get();
      ChangeMode();
    }
    unsigned bytes = 8;
    for (unsigned i = 0; i < RandomPaging::kTables * 40; ++i) (void)WriteEntry(bytes);
  }

  ~Guest() override {
    // A vCPU that goes flushes, but not itself.
    while (!vcpus_.empty()) {
      const std::unique_ptr<Vcpu> gone = std::move(vcpus_.back());
      vcpus_.pop_back();
    }
  }

  // One random step. A complaint, or nothing.
  Complaint Step() {
    if (writes_.size() >= kLongestHistory) ForgetWrites();
    if (random_.Chance(4)) vcpu_ = vcpus_[random_.Below(vcpus_.size())].get();
    if (Complaint complaint = Act()) return complaint;
    return Contradiction();
  }

  void FlushAll() override {
    for (const auto& vcpu : vcpus_) vcpu->cpu.Flush();
  }

  std::string Describe() const {
    const PagingState& state = vcpu_->cpu.state();
    char text[160];
    std::snprintf(text, sizeof(text), "cr0 %#llx cr3 %#llx cr4 %#llx efer %#llx pkru %#x pkrs %#x",
                  static_cast<unsigned long long>(state.cr0),
                  static_cast<unsigned long long>(state.cr3),
                  static_cast<unsigned long long>(state.cr4),
                  static_cast<unsigned long long>(state.efer), state.pkru, state.pkrs);
    return text;
  }

 private:
  Complaint Act() {
    const auto kind = random_.Below(40);
    if (kind < 20) return AccessChecked();
    if (kind < 26) return GuestWrites();
    if (kind < 28) return DriveLog(memory_log_);
    switch (kind) {
      case 28:
        if (random_.Chance(3)) ChangeMode();
        break;
      case 29:
        ChangeBits();
        break;
      case 30:
      case 31:
        LoadCr3();
        break;
      case 32:
        Invpcid();
        break;
      case 33:
        Invlpg(random_.Linear(state()));
        break;
      case 34:
        ChangeKeys();
        break;
      case 35:
        Load(state(), Scope::kAddressSpace);  // the same CR3 again
        break;
      case 36:
      case 37:
        HostWrites();
        break;
      case 38:
        HostSetsAttribute();
        break;
      default:
        if (random_.Chance(8)) return DriveLog(rom_log_);
        (void)pages_.TestAndClearYoung(Gfn{0}, RandomPaging::kNamedFrames);
    }
    return std::nullopt;
  }

  const PagingState& state() const { return vcpu_->cpu.state(); }

  // -- registers

  // Loads registers of the vCPU, which invalidates `scope` of its PCID.
  void Load(const PagingState& state, Scope scope) {
    const Invalidation invalidation = {.scope = scope, .pcid = state.pcid()};
    vcpu_->cpu.Load(state, invalidation);
    vcpu_->history.Enter(state, writes_.Tick(), invalidation);
  }

  void ChangeMode() {
    PagingState next = state();
    next.features = features_;
    random_.ChangeMode(next);
    LoadPdptes(next);
    for (std::uint64_t& linear : vcpu_->known) linear = random_.Linear(next);
    Load(next, Scope::kEverything);
  }

  void ChangeBits() {
    const PagingState old = state();
    PagingState next = old;
    random_.ChangeBits(next);
    if (((old.cr4 ^ next.cr4) & kCr4Pse) != 0) return Load(next, Scope::kEverything);
    const bool judged_anew = ((old.cr4 ^ next.cr4) & kCr4Smep) != 0 || old.efer != next.efer;
    Load(next, judged_anew ? Scope::kAddressSpace : Scope::kNothing);
  }

  void ChangeKeys() {
    PagingState next = state();
    random_.ChangeKeys(next);
    vcpu_->cpu.LoadKeys(next);
  }

  void LoadCr3() {
    PagingState next = state();
    next.cr3 = random_.Cr3(next);
    LoadPdptes(next);
    const bool keeps = (next.cr4 & kCr4Pcide) != 0 && !random_.Chance(3);
    Load(next, keeps ? Scope::kNothing : Scope::kAddressSpace);
  }

  void LoadPdptes(PagingState& state) const {
    if (state.mode() != PagingMode::kPae) return;
    const std::uint64_t table = state.cr3 & 0xffff'ffe0;
    for (unsigned i = 0; i < 4; ++i) {
      // Well-formed: the processor refuses others.
      const std::uint64_t pdpte = memory_.Find(GfnOf(Gpa(table))) == nullptr
                                      ? 0
                                      : memory_.Read<std::uint64_t>(Gpa(table + 8 * i));
      state.pdptes[i] = pdpte & 0x0000'000f'ffff'f001;
    }
  }

  void Invpcid() {
    const bool pcids = (state().cr4 & kCr4Pcide) != 0;
    Invalidate({.scope = static_cast<Scope>(1 + random_.Below(3)),
                .pcid = static_cast<std::uint16_t>(pcids ? random_.Below(3) : 0),
                .linear = Gva(random_.Linear(state()))});
  }
  void Invlpg(std::uint64_t linear) {
    Invalidate({.scope = Scope::kAddress, .pcid = state().pcid(), .linear = Gva(linear)});
  }
  void Invalidate(const Invalidation& invalidation) {
    vcpu_->cpu.Invalidate(invalidation);
    vcpu_->history.Forget(state(), writes_.Tick(), invalidation);
  }

  // No vCPU may have cached anything.
  void ForgetWrites() {
    Vcpu* const current = vcpu_;
    for (const auto& vcpu : vcpus_) {
      vcpu_ = vcpu.get();
      Load(state(), Scope::kEverything);
    }
    vcpu_ = current;
    writes_.Clear();
  }

  // -- the host

  // Where, and how many bytes.
  Gpa WriteEntry(unsigned& bytes) {
    const Gpa at = random_.EntryAddress(state(), bytes);
    const std::uint64_t entry = random_.Entry(GfnOf(at).number);
    writes_.Add(memory_.Find(GfnOf(at))->HostOf(Gpa(at.bits() & ~std::uint64_t{7})), false);
    if (bytes == 4) {
      memory_.Write<std::uint32_t>(at, static_cast<std::uint32_t>(entry));
    } else {
      memory_.Write<std::uint64_t>(at, entry);
    }
    return at;
  }

  void HostWrites() {
    unsigned bytes = 8;
    const Gpa at = WriteEntry(bytes);
    pages_.GuestWrote(at, bytes);
  }

  void HostSetsAttribute() {
    const auto [first, count, attribute] = random_.AnyRestriction();
    if (attributes_.Set(first, count, attribute) == MemoryAttributes::Change::kRestricted) {
      pages_.AttributesChanged(first, count);
    }
  }

  Complaint DriveLog(LogWitness& log) {
    if (log.logging()) {
      if (!random_.Chance(8)) return log.Take();
      log.Stop();
    } else if (!log.Start(random_.Chance(2) ? DirtyLogMethod::kDirtyBits
                                            : DirtyLogMethod::kWriteProtect)) {
      return "a log could not be started";
    }
    return std::nullopt;
  }

  // -- what is done through the SPTEs

  // Whether the access would have had the outcome `got`, and if asked A and D were set, with the
  // tables as they were at a time when the vCPU could cache translations of this address that are
  // still good.
  bool WasTrue(std::uint64_t linear, Access access, const Outcome& got, bool with_accessed_dirty) {
    return writes_.EverHeld([&](std::uint64_t from, std::uint64_t to) {
      return vcpu_->history.CouldCache(state(), linear, from, to) &&
             expectation_.Of(state(), linear, access) == got &&
             (!with_accessed_dirty || expectation_.HasAccessedDirty(state(), linear, access));
    });
  }

  Complaint AccessChecked() {
    // Often one that has been used before.
    std::uint64_t& known = vcpu_->known[random_.Below(vcpu_->known.size())];
    if (random_.Chance(4)) known = random_.Linear(state());
    const std::uint64_t linear = known;
    const Access access = random_.AnyAccess(state());
    if (random_.Chance(4)) Invlpg(linear);
    const Outcome want = expectation_.Of(state(), linear, access);
    const auto [got, from_tlb, lent] = vcpu_->cpu.Run(linear, access);
    char what[96];
    std::snprintf(what, sizeof(what),
                  "linear %#llx, access %#x: ", static_cast<unsigned long long>(linear),
                  access.code_bits());
    if (got != want && expectation_.Of(state(), linear, access) == want &&
        !WasTrue(linear, access, got, false)) {
      return what + Words(got) + ", want " + Words(want);
    }
    // An entry that was written unseen may have lost A and D since it was cached.
    if (got.kind == Outcome::Kind::kHost && want == got &&
        !expectation_.HasAccessedDirty(state(), linear, access) &&
        !WasTrue(linear, access, got, true)) {
      return std::string(what) + "A or D is missing" + (from_tlb ? " (TLB)" : "") +
             vcpu_->cpu.Trace(linear, access);
    }
    return std::nullopt;
  }

  // The guest stores an entry wherever some linear address leads it.
  Complaint GuestWrites() {
    const std::uint64_t linear =
        (random_.Linear(state()) & ~std::uint64_t{0xfff}) | std::uint64_t{random_.Index(512)} * 8;
    const Access access = Access::Write(Privilege::kSupervisor).WithSmapWaived();
    const TestProcessor::Result result = vcpu_->cpu.Run(linear, access);
    if (result.outcome.kind != Outcome::Kind::kHost) return std::nullopt;
    auto* const host = reinterpret_cast<std::byte*>(result.outcome.value);
    writes_.Add(host, !result.lent);
    const MemorySlot& slot = memory_log_.slot();
    *reinterpret_cast<std::uint64_t*>(host) =
        random_.Entry(static_cast<std::uint64_t>(host - slot.host) / kPageBytes);
    if (result.lent) {
      const Gpa page(result.lent->bits() & ~std::uint64_t{0xfff});
      random_.Chance(2) ? vcpu_->cpu.mmu().GuestWrote(page, kPageBytes)
                        : vcpu_->cpu.mmu().GuestWrote(*result.lent, 8);
    }
    return memory_log_.CheckWritable(Hpa(result.outcome.value));
  }

  // -- what holds after every step

  Complaint Contradiction() {
    for (const auto& vcpu : vcpus_) {
      for (const TestProcessor::Cached& cached : vcpu->cpu.Tlb()) {
        if (Complaint complaint = TlbGrantsTooMuch(cached)) return complaint;
      }
    }
    if (Complaint complaint = memory_log_.Check(RandomPaging::kNamedFrames)) return complaint;
    const ShadowPages::Lock lock = pages_.Acquire();
    return pages_.Audit();
  }

  Complaint TlbGrantsTooMuch(const TestProcessor::Cached& cached) {
    const Access access = cached.access;
    const Gfn gfn = FrameOf(cached.page);
    const MemoryAttribute attribute = attributes_.Of(gfn);
    const bool writes = access.is_write() || access.is_shadow_stack();
    // Which of both is asked of a fetch depends on the guest's entries.
    const Rights any_of(access.is_fetch() ? Rights::kExecSupervisor | Rights::kExecUser
                        : writes          ? Rights::kWrite
                                          : Rights::kRead);
    if (attribute.policy != ViolationPolicy::kLog && (attribute.rights & any_of) == Rights()) {
      return "a TLB grants what the attribute of frame " + std::to_string(gfn.number) + " refuses";
    }
    return writes ? memory_log_.CheckWritable(cached.page) : std::nullopt;
  }

  Gfn FrameOf(Hpa page) const {
    for (const MemorySlot* slot : {&memory_log_.slot(), &rom_log_.slot()}) {
      const std::uint64_t offset = page.bits() - reinterpret_cast<std::uintptr_t>(slot->host);
      if (offset < slot->page_count * kPageBytes) {
        return Gfn{slot->first.number + offset / kPageBytes};
      }
    }
    return GfnOf(Gpa(RandomPaging::kNoMemory));
  }

  RandomPaging random_;
  TestMemory memory_;
  const PagingFeatures features_;
  MemoryAttributes attributes_;
  const Expectation expectation_{memory_, attributes_};
  const GuestTables tables_;
  ShadowPages pages_;
  const MemorySlot& rom_;
  LogWitness memory_log_{pages_, *memory_.Find(Gfn{0})};
  LogWitness rom_log_{pages_, rom_};
  WriteHistory writes_;  // since some time that no translation is older than
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  Vcpu* vcpu_ = nullptr;  // that runs now
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
