// From an instruction pointer to a block of ops: translation of the fetch, the code cache,
// decoding.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
export module pagesaw.cpu.fetch;

export import pagesaw.cpu.code_cache;
import pagesaw.cpu.decoder;
import pagesaw.cpu.split_instructions;

export namespace pagesaw::cpu {

class Fetcher {
 public:
  explicit Fetcher(CodeCache& cache) : cache_(&cache) {}

  // The block at RIP, `single`: one instruction of it. Null: the fetch failed, `core.stop` says
  // why. Valid until the next call. Makes the jump cache and the branch that asked know it.
  const Block* Find(Core& core, bool single);

 private:
  Block* Decode(Core& core, std::uint64_t linear, const std::byte* host, CodeMode mode);
  // Whether the instruction at `linear` goes on in the next page, as it is remembered.
  bool IsKnownToBeSplit(std::uint64_t linear, const std::byte* host, CodeMode mode);
  Block* DecodeAcrossPages(Core& core, std::uint64_t linear, const std::byte* host, CodeMode mode);
  Block* Scratch(const DecodedBlock& decoded);

  CodeCache* cache_;
  SplitInstructions split_;
  // An instruction that is not kept: it lies in two pages, or ends close to the segment's limit.
  std::array<Op, 4> scratch_ops_;
  Block scratch_;
};

// The linear address of RIP.
std::uint64_t LinearRip(const Core& core);

// Copies the code at RIP as far as a fetch meets no fault, to the limit of the segment: how many
// bytes of `to` that are.
std::size_t CopyCode(Core& core, std::span<std::byte> to);

}  // namespace pagesaw::cpu
