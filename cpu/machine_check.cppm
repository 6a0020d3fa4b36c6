// The machine-check registers of a processor on which no machine check ever happens.
// [intel/vol3] "Machine-Check MSRs"; [amd/vol2] "Machine-Check MSRs"
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.machine_check;

export namespace pagesaw::cpu {

class MachineCheckBanks {
 public:
  static constexpr unsigned kBanks = 10;

  // Whether MSR `index` is one of them. Read and Write are for those.
  static bool Owns(std::uint32_t index);
  std::uint64_t Read(std::uint32_t index) const;
  // False, and nothing has changed, if the register does not take `value`. A bank's status can only
  // be cleared, unless `status_writable`. [amd/vol2] "Hardware Configuration Register (HWCR)"
  bool Write(std::uint32_t index, std::uint64_t value, bool status_writable);

 private:
  std::uint64_t status_ = 0;
  std::uint64_t control_ = ~std::uint64_t{0};
  std::array<std::uint64_t, 4 * kBanks> banks_ = {};  // control, status, address, miscellaneous
};

}  // namespace pagesaw::cpu
