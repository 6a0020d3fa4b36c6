module;
#include <array>
#include <cstdint>
#include <optional>
module pagesaw.cpu.plain_msrs;

namespace pagesaw::cpu {
namespace {

enum Vendors : std::uint8_t { kIntel = 1, kAmd = 2, kBoth = 3 };

struct Row {
  std::uint32_t index;
  Vendors vendors;
  std::uint64_t initial;
  std::uint64_t writable;     // 0: the register cannot be written at all
  std::uint64_t ignored = 0;  // bits that writes may have and do not change
};

constexpr std::uint64_t kAll = ~std::uint64_t{0};
constexpr std::uint64_t kOne = 1;

// Fast strings, automatic thermal control, enhanced SpeedStep, MONITOR, CPUID limit, xTPR, and
// execute disable off. Fixed: no performance monitoring, no branch trace, no PEBS.
constexpr std::uint64_t kMiscEnableWritable = 1u << 0 | 1u << 3 | 1u << 16 | kMiscEnableMonitor |
                                              kMiscEnableLimitCpuid | 1u << 23 |
                                              kMiscEnableNoExecuteDisable;
constexpr std::uint64_t kMiscEnableFixed = 1u << 7 | 1u << 11 | 1u << 12;

constexpr std::array kRows = {
    Row{kMsrPlatformId, kIntel, 0, 0}, Row{kMsrSmiCount, kIntel, 0, 0},
    Row{kMsrSpeculationControl, kIntel, 0, 1u << 0},  // IBRS
    // A write before CPUID asks for the revision, which stands in the upper half.
    Row{kMsrMicrocode, kIntel, kOne << 32, kAll, kAll}, Row{kMsrMicrocode, kAmd, 0x0800'1138, 0},
    // The ratio of the counter to 100 MHz, and that CPUID can be made to fault.
    Row{kMsrPlatformInfo, kIntel, 10u << 8 | kOne << 31, 0},
    Row{kMsrPackageCstates, kIntel, 1u << 15, 0},  // locked: no C-states
    Row{kMsrMiscFeatures, kIntel, 0, kMiscFeatureCpuidFaulting},
    // AMD's do not have it. Guests of hypervisors look for it there, too.
    Row{kMsrMiscEnable, kBoth, 1u << 0 | kMiscEnableMonitor | 1u << 11 | 1u << 12,
        kMiscEnableWritable, kMiscEnableFixed},
    Row{kMsrSyscfg, kAmd, 0, 0x7c'0000},  // of fixed ranges and TOP_MEM
    Row{kMsrHwcr, kAmd, 1u << 24,
        1u << 3 | 1u << 4 | 1u << 6 | 1u << 8 | kHwcrMcStatusWritable | 1u << 24},
    Row{kMsrTopMem, kAmd, 0, 0xffff'ff80'0000}, Row{kMsrTopMem2, kAmd, 0, 0xffff'ff80'0000},
    Row{kMsrNbCfg, kAmd, 0, kAll}, Row{kMsrInterruptPending, kAmd, 0, 0},
    Row{kMsrLsCfg, kAmd, 0, kAll}, Row{0xc001'1021, kAmd, 0, kAll},  // IC_CFG
    Row{0xc001'1022, kAmd, 0, kAll},                                 // DC_CFG
    Row{0xc001'1023, kAmd, 0, kAll},                                 // TW_CFG
    Row{0xc001'1028, kAmd, 0, kAll},                                 // FP_CFG
    Row{kMsrDeCfg, kAmd, 2, kAll},                                   // LFENCE serializes
    Row{0xc001'102a, kAmd, 0, kAll},                                 // CU_CFG2
    Row{0xc001'102c, kAmd, 0, kAll},                                 // EX_CFG
    Row{0xc001'102d, kAmd, 0, kAll},                                 // LS_CFG2
};

}  // namespace

PlainMsrs::PlainMsrs(bool amd) : amd_(amd) {
  static_assert(kRows.size() == kCount);
  for (unsigned i = 0; i < kCount; ++i) held_[i] = kRows[i].initial;
}

unsigned PlainMsrs::Find(std::uint32_t index) const {
  unsigned i = 0;
  while (i < kCount &&
         (kRows[i].index != index || (kRows[i].vendors & (amd_ ? kAmd : kIntel)) == 0)) {
    ++i;
  }
  return i;
}

std::optional<std::uint64_t> PlainMsrs::Read(std::uint32_t index) const {
  const unsigned i = Find(index);
  if (i == kCount) return std::nullopt;
  return held_[i];
}

bool PlainMsrs::Write(std::uint32_t index, std::uint64_t value) {
  const unsigned i = Find(index);
  if (i == kCount || kRows[i].writable == 0) return false;
  const std::uint64_t writable = kRows[i].writable & ~kRows[i].ignored;
  const std::uint64_t changed = held_[i] ^ value;
  if ((changed & ~(writable | kRows[i].ignored)) != 0) return false;
  held_[i] ^= changed & writable;
  return true;
}

}  // namespace pagesaw::cpu
