module;
#include <cstdint>
#include <optional>
module pagesaw.machine.msr_file;

import pagesaw.machine.apic_registers;

namespace pagesaw {
namespace {

// [intel/vol4] "Architectural MSRs"
constexpr std::uint32_t kTsc = 0x10, kApicBase = 0x1b, kTscAdjust = 0x3b, kTscDeadline = 0x6e0;

bool IsX2apic(std::uint32_t index) { return index - apic::kX2apicFirstMsr < apic::kX2apicMsrCount; }

}  // namespace

// [amd/vol2] "Performance Monitoring Counters": four legacy pairs, six core pairs.
bool MsrFile::IsCounter(std::uint32_t index) const {
  return options_.legacy_amd_counters && (index - 0xc001'0000 < 8 || index - 0xc001'0200 < 12);
}

void MsrFile::Dispatch(BusAccess& access) {
  const auto index = static_cast<std::uint32_t>(access.address);
  if (access.kind == BusAccess::Kind::kMsrRead) {
    access.refused = !Read(index, access.value);
  } else {
    access.refused = !Write(index, access.value);
  }
}

bool MsrFile::Read(std::uint32_t index, std::uint64_t& value) {
  if (IsX2apic(index)) {
    const std::optional<std::uint64_t> read = apic_.ReadMsr(index);
    value = read.value_or(0);
    return read.has_value();
  }
  if (index == kApicBase) {
    value = apic_.base();
    return true;
  }
  if (index == kTsc || index == kTscAdjust) {
    value = index == kTsc ? apic_.tsc() : apic_.tsc_adjust();
    return true;
  }
  if (index == kTscDeadline && options_.tsc_deadline) {
    value = apic_.tsc_deadline();
    return true;
  }
  value = 0;
  return IsCounter(index);
}

bool MsrFile::Write(std::uint32_t index, std::uint64_t value) {
  if (IsX2apic(index)) return apic_.WriteMsr(index, value);
  if (index == kApicBase) return apic_.WriteBase(value);
  if (index == kTscDeadline && options_.tsc_deadline) {
    apic_.WriteTscDeadline(value);
    return true;
  }
  if (index == kTsc || index == kTscAdjust) {
    index == kTsc ? apic_.WriteTsc(value) : apic_.WriteTscAdjust(value);
    return true;
  }
  // Counters that never count can be cleared, not started.
  return IsCounter(index) && value == 0;
}

}  // namespace pagesaw
