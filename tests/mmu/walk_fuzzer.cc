// The walk of linear addresses, by inputs of a fuzzer: registers, tables and an access, compared
// with the oracle; entries afterwards as well.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <span>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.test_memory;
import pagesaw.tests.mmu.choices;

namespace pagesaw {
namespace {

constexpr std::uint64_t kFrames = 8;
constexpr std::uint64_t kMemoryBytes = kFrames << 12;

[[noreturn]] void Fail(const char* what, const oracle::Processor& p, std::uint64_t linear,
                       const oracle::Verdict& want) {
  std::fprintf(stderr,
               "%s: linear %#llx, %u levels, root %#llx, M %u; want fault %d code %#x level %u "
               "physical %#llx\n",
               what, static_cast<unsigned long long>(linear), p.levels,
               static_cast<unsigned long long>(p.root), p.maxphyaddr, want.fault, want.code,
               want.level, static_cast<unsigned long long>(want.physical));
  std::abort();
}

// The same registers, for the oracle and for the walker.
oracle::Processor RandomProcessor(Choices& choices, PagingState& state) {
  oracle::Processor p;
  static constexpr unsigned kLevels[] = {2, 3, 4, 5, 4, 5, 0, 3};
  p.levels = kLevels[choices.Below(8)];
  const std::uint64_t bits = choices.Below(0x1'0000);
  const auto flag = [bits](unsigned bit) { return (bits >> bit & 1) != 0; };
  p.pse = flag(0);
  p.nxe = flag(1);
  p.wp = flag(2);
  p.smep = flag(3);
  p.smap = flag(4);
  p.pke = flag(5);
  p.pks = flag(6);
  p.pages_1g = flag(7);
  p.root_bit8_mbz = flag(8);
  p.maxphyaddr = static_cast<unsigned>(36 + choices.Below(17));
  p.pse36_bits = std::min(40u, p.maxphyaddr);
  p.pkru = static_cast<std::uint32_t>(choices.Below(std::uint64_t{1} << 32));
  p.pkrs = static_cast<std::uint32_t>(choices.Below(std::uint64_t{1} << 32));
  p.root = choices.Below(kFrames) << 12 | choices.Below(0x1000);
  for (std::uint64_t& pdpte : p.pdpte) {
    pdpte = choices.Below(kFrames) << 12 | (choices.Chance(8) ? choices.Below(0x1000) : 1);
  }
  state.cr0 = kCr0Pe | (p.levels != 0 ? kCr0Pg : 0) | (p.wp ? kCr0Wp : 0);
  state.cr3 = p.root;
  state.cr4 = (p.levels >= 3 ? kCr4Pae : 0) | (p.levels == 5 ? kCr4La57 : 0) |
              (p.pse ? kCr4Pse : 0) | (p.smep ? kCr4Smep : 0) | (p.smap ? kCr4Smap : 0) |
              (p.pke ? kCr4Pke : 0) | (p.pks ? kCr4Pks : 0);
  state.efer = (p.levels >= 4 ? kEferLma | kEferLme : 0) | (p.nxe ? kEferNxe : 0);
  state.pkru = p.pkru;
  state.pkrs = p.pkrs;
  std::copy(std::begin(p.pdpte), std::end(p.pdpte), state.pdptes.begin());
  state.features.physical_bits = static_cast<std::uint8_t>(p.maxphyaddr);
  state.features.gib_pages = p.pages_1g;
  state.features.pse36_bits = static_cast<std::uint8_t>(p.pse36_bits);
  state.features.root_bit8_reserved = p.root_bit8_mbz;
  return p;
}

// Entries all over the tables; most lead somewhere.
void FillTables(Choices& choices, TestMemory& memory) {
  const unsigned count = 1 + static_cast<unsigned>(choices.Below(64));
  for (unsigned i = 0; i < count; ++i) {
    const std::uint64_t at = choices.Below(kFrames) << 12 | choices.Below(4) * 8;
    std::uint64_t entry = choices.Below(kFrames) << 12 | 0x27;
    if (choices.Chance(2)) entry ^= choices.Below(0x1000);
    if (choices.Chance(4)) entry ^= std::uint64_t{1} << choices.Below(64);
    if (choices.Chance(8)) entry = choices.Word();
    memory.Write(Gpa(at), entry);
  }
}

std::uint64_t RandomLinear(Choices& choices, unsigned levels) {
  std::uint64_t linear = choices.Below(0x1000);
  const unsigned index_bits = levels == 2 ? 10 : 9;
  for (unsigned level = 0; level < levels; ++level) {
    linear |= choices.Below(4) << (12 + index_bits * level);
  }
  if (choices.Chance(8)) linear ^= std::uint64_t{1} << choices.Below(64);
  return linear;
}

void WalkOnce(Choices& choices, TestMemory& memory) {
  PagingState state;
  const oracle::Processor processor = RandomProcessor(choices, state);
  const std::uint64_t linear = RandomLinear(choices, processor.levels);
  const auto kind = choices.Below(3), who = choices.Below(3);
  const oracle::Access access = {
      .write = kind == 1, .fetch = kind == 2, .user = who == 1, .with_ac = who == 2};
  const Privilege by = access.user ? Privilege::kUser : Privilege::kSupervisor;
  Access ours = access.fetch   ? Access::Fetch(by)
                : access.write ? Access::Write(by)
                               : Access::Read(by);
  if (access.with_ac) ours = ours.WithSmapWaived();

  // What lies in no memory cannot be read: as if it were not present.
  bool outside = false;
  const oracle::Verdict want =
      oracle::Translate(processor, linear, access, [&](std::uint64_t at, unsigned bytes) {
        if (at >= kMemoryBytes) outside = true;
        if (at >= kMemoryBytes) return std::uint64_t{0};
        return bytes == 4 ? memory.Read<std::uint32_t>(Gpa(at))
                          : memory.Read<std::uint64_t>(Gpa(at));
      });
  std::array<std::byte, kMemoryBytes> before;
  std::memcpy(before.data(), memory.Find(Gfn{0})->host, before.size());
  CpuWalker walker(memory, state);
  const auto compare = [&](const WalkResult& got) {
    if (want.general_protection) {
      if (got || got.fault().kind != WalkFault::Kind::kNonCanonical) {
        Fail("no address of this mode", processor, linear, want);
      }
    } else if (static_cast<bool>(got) == want.fault) {
      Fail("faults or not", processor, linear, want);
    } else if (got && got->output.bits() != want.physical) {
      Fail("another address", processor, linear, want);
    } else if (!got && (got.fault().code.bits() != want.code ||
                        (processor.levels != 0 && Number(got.fault().level) != want.level))) {
      Fail("another fault", processor, linear, want);
    } else if (!got && outside != (got.fault().kind == WalkFault::Kind::kNoMemory)) {
      Fail("in memory or not", processor, linear, want);
    }
  };
  compare(walker.Inspect(InputAddress(linear), ours, nullptr));
  if (std::memcmp(before.data(), memory.Find(Gfn{0})->host, before.size()) != 0) {
    Fail("looking changed memory", processor, linear, want);
  }
  compare(walker.Walk(InputAddress(linear), ours));
  const bool unchanged = std::memcmp(before.data(), memory.Find(Gfn{0})->host, before.size()) == 0;
  if ((want.fault || want.general_protection) && !unchanged) {
    Fail("a walk that faults changed memory", processor, linear, want);
  }
}

}  // namespace
}  // namespace pagesaw

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pagesaw::Choices choices(std::span(data, size));
  pagesaw::TestMemory memory(pagesaw::kMemoryBytes);
  pagesaw::FillTables(choices, memory);
  for (unsigned walks = 0; walks < 64 && !choices.exhausted(); ++walks) {
    pagesaw::WalkOnce(choices, memory);
  }
  return 0;
}
