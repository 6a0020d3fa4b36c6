// Decoded code, by the host page that its bytes came from: what a guest page is mapped at does not
// matter. Bounded: when it is full, it forgets everything and starts again.
module;
#include <absl/container/flat_hash_map.h>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>
export module pagesaw.cpu.code_cache;

export import pagesaw.cpu.code_registry;
export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// What besides the bytes decides how code is decoded.
struct CodeMode {
  CodeSize size = CodeSize::k64;
  bool protected_mode = true;
  bool single = false;  // one instruction a block: single steps, interrupt shadows
  bool cet = false;     // branches mind shadow stacks and branch tracking

  constexpr unsigned key() const {
    return static_cast<unsigned>(size) | (protected_mode ? 4u : 0) | (single ? 8u : 0) |
           (cet ? 16u : 0);
  }
};

class CodeCache final : public CodeWatcher {
 public:
  // Ops that are kept at most; 32 bytes each.
  static constexpr std::size_t kMaxOps = 256 * 1024;
  // Pages that are held at most.
  static constexpr std::size_t kMaxPages = 64 * 1024;

  // `member` is this processor's part in its VM's registry, or null for a processor that shares its
  // memory with no other.
  explicit CodeCache(CodeRegistry::Member* member = nullptr);
  ~CodeCache() override;

  // The block whose first byte is at `host`, or null.
  Block* Find(const std::byte* host, CodeMode mode);

  // Room for a block of at most `ops` ops, to be filled and then kept by `Keep`. Makes room by
  // forgetting everything if need be: then blocks found before are gone, and `generation` has
  // changed.
  Op* Reserve(std::size_t ops);
  // Comes before any byte of the page of `host` is read for decoding. True if it was not held.
  bool Hold(const std::byte* host);
  // Whether what was decoded from the page since may be kept; else it may run once.
  bool MayKeep(const std::byte* host) const;
  // Keeps the block of `bytes` bytes that was built in the reserved room: `used` ops.
  Block* Keep(const std::byte* host, std::size_t bytes, CodeMode mode, Op* ops, std::size_t used,
              std::uint32_t instructions);

  // Changes whenever a block is forgotten.
  std::uint64_t generation() const { return generation_; }

  void Clear();

  bool HoldsCode(std::uint64_t host) const override;
  void Changed(std::uint64_t host, std::size_t bytes) override;
  // The same when another processor made the change.
  void Forget(std::uint64_t host, std::size_t bytes);

 private:
  struct Page {
    std::vector<std::uint64_t> blocks;  // their keys
    std::uint64_t code_lines = 0;       // which 64-byte lines of the page blocks were made from
  };
  struct FreeArena {
    void operator()(Op* ops) const;
  };

  static std::uint64_t KeyOf(const std::byte* host, CodeMode mode) {
    return reinterpret_cast<std::uint64_t>(host) << 5 | mode.key();
  }

  CodeRegistry::Member* const member_;
  std::unique_ptr<Op, FreeArena> arena_;  // unconstructed: touched as it fills
  std::size_t used_ = 0;
  std::uint64_t generation_ = 1;
  std::deque<Block> blocks_;
  absl::flat_hash_map<std::uint64_t, Block*> by_address_;
  absl::flat_hash_map<std::uint64_t, Page> pages_;
};

// The handler that forgotten ops are given: execution goes on with what the memory holds now.
void Forgotten(Core& core, const Op* op) [[clang::preserve_none]];

}  // namespace pagesaw::cpu
