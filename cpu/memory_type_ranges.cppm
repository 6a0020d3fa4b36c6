// The memory-type range registers. They are kept and checked as a processor's are; memory types
// change nothing here, where every access is coherent.
// [intel/vol3] "Memory Type Range Registers (MTRRs)"; [amd/vol2] "Memory-Type Range Registers"
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.memory_type_ranges;

export namespace pagesaw::cpu {

class MemoryTypeRanges {
 public:
  static constexpr unsigned kVariableRanges = 8;

  // As firmware leaves them: on, memory is write-back, the legacy video memory uncached.
  MemoryTypeRanges();

  // Whether MSR `index` is one of them. Read and Write are for those.
  static bool Owns(std::uint32_t index);
  std::uint64_t Read(std::uint32_t index) const;
  // False, and nothing has changed, if the register cannot be written or `value` has a reserved
  // type or bit, with `physical_bits` the width of physical addresses.
  bool Write(std::uint32_t index, std::uint64_t value, unsigned physical_bits);

 private:
  std::uint64_t default_type_;
  std::array<std::uint64_t, 2 * kVariableRanges> variable_ = {};  // base, mask, base, ...
  std::array<std::uint64_t, 11> fixed_;
};

}  // namespace pagesaw::cpu
