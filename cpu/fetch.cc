module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
module pagesaw.cpu.fetch;

import pagesaw.cpu.hardware_walk;
import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kPageMask = 0xfff;
constexpr std::size_t kMaxInstructionBytes = 15;

// Translates the fetch of the byte at `linear`.
bool TranslateFetch(Core& core, std::uint64_t linear, const std::byte*& host) {
  const bool user = core.cpl == 3;
  TlbBank& bank = core.tlb.bank(user ? BankName::kUser : BankName::kSupervisor);
  TlbEntry& entry = bank.At(linear);
  const std::uint64_t tag = linear & ~kPageMask;
  if (entry.fetch_tag == tag) {
    host = reinterpret_cast<const std::byte*>(linear + entry.addend);
    return true;
  }
  HostPage page;
  const Access access = Access::Fetch(user ? Privilege::kUser : Privilege::kSupervisor);
  if (!WalkHardware(core, linear, access, page)) return false;
  if (IsApicPage(core, page.host)) [[unlikely]] {
    host = AccessApicPage(core, PageAccess::Kind::kFetch, linear, 0);
    return host != nullptr;
  }
  const std::uint64_t addend = page.host - linear;
  if (entry.addend != addend) entry = TlbEntry{};
  if (entry.read_tag != tag) entry.read_tag = kNoTag;
  if ((entry.write_tag & ~kAnnounced) != tag) entry.write_tag = kNoTag;
  entry.fetch_tag = tag;
  entry.addend = addend;
  NoteInTlb(core, bank, linear, page);
  host = reinterpret_cast<const std::byte*>(page.host);
  return true;
}

// Bytes from RIP to the limit of the code segment; many in 64-bit mode.
std::uint64_t BytesToLimit(const Core& core) {
  if (core.code_64()) return ~std::uint64_t{0};
  const Segment& cs = core.segments[kCs];
  return core.rip > cs.limit ? 0 : cs.limit - core.rip + 1;
}

}  // namespace

std::uint64_t LinearRip(const Core& core) {
  return core.code_64() ? core.rip : static_cast<std::uint32_t>(core.segments[kCs].base + core.rip);
}

std::size_t CopyCode(Core& core, std::span<std::byte> to) {
  const Stop stop = core.stop;
  const Exit exit = core.exit;
  const Pending exception = core.exception;
  const std::size_t most = std::min<std::uint64_t>(BytesToLimit(core), to.size());
  std::size_t done = 0;
  while (done < most) {
    const std::uint64_t at = LinearRip(core) + done;
    const std::uint64_t linear = core.code_64() ? at : static_cast<std::uint32_t>(at);
    const std::byte* host = nullptr;
    if (!IsCanonical(Gva(linear), (core.cr4 & kCr4La57) != 0 ? 57 : 48)) break;
    if (!TranslateFetch(core, linear, host)) break;
    const std::size_t piece =
        std::min<std::size_t>(most - done, kPageMask + 1 - (linear & kPageMask));
    CopyHost(to.data() + done, host, piece);
    done += piece;
  }
  core.stop = stop;
  core.exit = exit;
  core.exception = exception;
  return done;
}

const Block* Fetcher::Find(Core& core, bool single) {
  Op* const link = core.link;
  core.link = nullptr;
  if (!single && core.code_64()) {
    const JumpCacheEntry& known = core.jump_cache[JumpCacheIndex(core.rip)];
    // What was forgotten leads here.
    const bool matches = known.rip == core.rip && known.context == core.context;
    if (matches && known.block->ops->run != &Forgotten) return known.block;
  }
  const std::uint64_t to_limit = BytesToLimit(core);
  const std::uint64_t linear = LinearRip(core);
  if (to_limit == 0 ||
      (core.code_64() && !IsCanonical(Gva(linear), (core.cr4 & kCr4La57) != 0 ? 57 : 48))) {
    core.Raise(kGp, 0);
    return nullptr;
  }
  const std::byte* host = nullptr;
  if (!TranslateFetch(core, linear, host)) return nullptr;
  const CodeMode mode = {.size = core.code_size,
                         .protected_mode = core.protected_mode(),
                         .single = single,
                         .cet = core.enforces_control_flow()};
  if (to_limit < kPageMask + 1) {
    return DecodeAcrossPages(core, linear, host, mode);
  }
  Block* block = cache_->Find(host, mode);
  if (block == nullptr) {
    const std::uint64_t generation = cache_->generation();
    block = Decode(core, linear, host, mode);
    if (cache_->generation() != generation) {
      core.FlushTranslations();  // what jumps remember may be gone
      return block;
    }
  }
  if (block == nullptr || block == &scratch_ || single) return block;
  core.tlb.NoteCode(linear);
  core.jump_cache[JumpCacheIndex(core.rip)] = {core.rip, core.context, block};
  if (link != nullptr && core.rip - block->ops->ip == core.ip_base) {
    link->immediate = reinterpret_cast<std::uint64_t>(block);
  }
  return block;
}

Block* Fetcher::Decode(Core& core, std::uint64_t linear, const std::byte* host, CodeMode mode) {
  const auto offset = static_cast<std::uint16_t>(linear & kPageMask);
  const CodeBytes bytes = {host, kPageMask + 1 - offset, offset};
  if (IsKnownToBeSplit(linear, host, mode)) return DecodeAcrossPages(core, linear, host, mode);
  Op* ops = cache_->Reserve(kMaxBlockOps);
  if (cache_->Hold(host)) core.tlb.AnnounceWritesTo(reinterpret_cast<std::uint64_t>(host));
  if (!cache_->MayKeep(host)) return DecodeAcrossPages(core, linear, host, mode);
  const DecodedBlock decoded = DecodeBlock(bytes, mode, *core.model, ops);
  if (decoded.ops == 0) return DecodeAcrossPages(core, linear, host, mode);
  return cache_->Keep(host, decoded.bytes, mode, ops, decoded.ops, decoded.instructions);
}

bool Fetcher::IsKnownToBeSplit(std::uint64_t linear, const std::byte* host, CodeMode mode) {
  const auto offset = static_cast<std::uint16_t>(linear & kPageMask);
  const std::size_t in_first = kPageMask + 1 - offset;
  if (in_first >= kMaxInstructionBytes) return false;
  std::array<std::byte, kMaxInstructionBytes> copy;
  CopyHost(copy.data(), host, in_first);
  mode.single = true;
  return split_.At(linear).BeginsWith({copy.data(), in_first}, offset, mode);
}

// One instruction, to be executed once: it may lie in two pages, or be written to meanwhile.
Block* Fetcher::DecodeAcrossPages(Core& core, std::uint64_t linear, const std::byte* host,
                                  CodeMode mode) {
  mode.single = true;
  std::array<std::byte, kMaxInstructionBytes> copy;
  const auto offset = static_cast<std::uint16_t>(linear & kPageMask);
  const std::uint64_t to_limit = std::min<std::uint64_t>(BytesToLimit(core), copy.size());
  const std::size_t in_first = std::min<std::size_t>(to_limit, kPageMask + 1 - offset);
  CopyHost(copy.data(), host, in_first);
  SplitInstruction& known = split_.At(linear);
  DecodedBlock decoded;
  if (!known.BeginsWith({copy.data(), in_first}, offset, mode)) {
    decoded = DecodeBlock({copy.data(), in_first, offset}, mode, *core.model, scratch_ops_.data());
  }
  if (decoded.ops == 0 && in_first < to_limit) {
    const std::byte* second = nullptr;
    const std::uint64_t next = (linear | kPageMask) + 1;
    if (!TranslateFetch(core, core.code_64() ? next : static_cast<std::uint32_t>(next), second)) {
      return nullptr;
    }
    CopyHost(copy.data() + in_first, second, to_limit - in_first);
    const std::span<const std::byte> code(copy.data(), to_limit);
    if (known.page_offset == offset && known.mode == mode.key() && known.IsAt(code)) {
      scratch_ops_ = known.ops;
      return Scratch(known.decoded);
    }
    decoded =
        DecodeBlock({code.data(), code.size(), offset}, mode, *core.model, scratch_ops_.data());
    // Bytes that are no instruction have no length that says which of them decided.
    if (decoded.bytes > in_first) {
      known = {copy,        static_cast<std::uint8_t>(decoded.bytes), offset, mode.key(), decoded,
               scratch_ops_};
    }
  }
  if (decoded.ops == 0) {
    core.Raise(kGp, 0);  // it runs past the limit, or past 15 bytes
    return nullptr;
  }
  return Scratch(decoded);
}

Block* Fetcher::Scratch(const DecodedBlock& decoded) {
  scratch_ = {scratch_ops_.data(), static_cast<std::uint32_t>(decoded.ops), decoded.instructions};
  return &scratch_;
}

}  // namespace pagesaw::cpu
