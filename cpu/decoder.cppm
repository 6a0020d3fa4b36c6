// From bytes to blocks of ops: Zydis decodes, the modules that know instructions choose handlers.
module;
#include <cstddef>
#include <cstdint>
export module pagesaw.cpu.decoder;

export import pagesaw.cpu.code_cache;

export namespace pagesaw::cpu {

// Bytes of code that lie together in memory: to the end of a page, or a copy of the few that an
// instruction across two pages has.
struct CodeBytes {
  const std::byte* first = nullptr;
  std::size_t count = 0;
  std::uint16_t page_offset = 0;  // of `first`
};

// The most ops that one block has: instructions, branch slots and the one that ends it.
inline constexpr std::size_t kMaxBlockOps = 130;
inline constexpr std::size_t kMaxBlockInstructions = 64;

struct DecodedBlock {
  std::size_t ops = 0;  // 0: the first instruction runs past the end of the bytes
  std::uint32_t instructions = 0;
  std::size_t bytes = 0;
};

// Decodes straight-line code into `ops`, room for kMaxBlockOps. Bytes that are no instruction
// become one that raises what the processor raises for them.
DecodedBlock DecodeBlock(const CodeBytes& bytes, CodeMode mode, const CpuModel& model, Op* ops);

}  // namespace pagesaw::cpu
