module;
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
module pagesaw.cpu.monitor;

import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

constexpr std::chrono::microseconds kSleep(50);
constexpr std::uint64_t kWakeByMaskedInterrupts = 1;  // in ECX

// RCX or ECX: extensions.
std::uint64_t Extensions(const Core& core) {
  return core.code_64() ? core.gpr[kRcx] : static_cast<std::uint32_t>(core.gpr[kRcx]);
}

bool Allowed(Core& core) { return (HasMonitor(core) && core.cpl == 0) || core.Raise(kUd); }

}  // namespace

bool HasMonitor(const Core& core) {
  return core.model->Has(Feature::kMonitor) &&
         (core.plain_msrs.Read(kMsrMiscEnable).value_or(0) & kMiscEnableMonitor) != 0;
}

bool Monitor(Core& core, const Op& op) {
  if (!Allowed(core)) return false;
  if (Extensions(core) != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kMonitor)) return false;
  const unsigned unused = 64 - 8u * op.address_bytes;
  std::uint64_t linear = 0;
  if (!Linear(core, static_cast<SegmentName>(op.segment), core.gpr[kRax] << unused >> unused, 1,
              false, linear) ||
      !ProbeRead(core, linear, 1, By::kProgram)) {
    return false;
  }
  core.monitor_armed = true;
  return true;
}

bool Mwait(Core& core, const Op& op) {
  if (!Allowed(core)) return false;
  if ((Extensions(core) & ~kWakeByMaskedInterrupts) != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kMwait)) return false;
  const bool sleeps = core.monitor_armed && !core.attention.load(std::memory_order_relaxed);
  core.monitor_armed = false;
  if (sleeps) std::this_thread::sleep_for(kSleep);
  core.exit = Exit{};
  core.LeaveWith(ExitReason::kRequested);
  return true;
}

}  // namespace pagesaw::cpu
