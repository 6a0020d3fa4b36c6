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

constexpr std::chrono::nanoseconds kSleep(50'000);
// In ECX.
constexpr std::uint64_t kWakeByMaskedInterrupts = 1;
constexpr std::uint64_t kTimer = 2;

// RCX or ECX: extensions.
std::uint64_t Extensions(const Core& core) {
  return core.code_64() ? core.gpr[kRcx] : static_cast<std::uint32_t>(core.gpr[kRcx]);
}

bool Allowed(Core& core) { return (HasMonitor(core) && core.cpl == 0) || core.Raise(kUd); }
bool AllowedX(Core& core) { return core.model->Has(Feature::kMonitorx) || core.Raise(kUd); }

bool Arm(Core& core, const Op& op) {
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

bool Wait(Core& core, const Op& op, std::uint64_t known, std::chrono::nanoseconds limit) {
  if ((Extensions(core) & ~known) != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kMwait)) return false;
  // The host sleeps longer than asked: what is shorter than a sleep is not worth one.
  const bool sleeps =
      core.monitor_armed && limit >= kSleep && !core.attention.load(std::memory_order_relaxed);
  core.monitor_armed = false;
  if (sleeps) std::this_thread::sleep_for(kSleep);
  core.exit = Exit{};
  core.LeaveWith(ExitReason::kRequested);
  return true;
}

}  // namespace

bool HasMonitor(const Core& core) {
  return core.model->Has(Feature::kMonitor) &&
         (core.plain_msrs.Read(kMsrMiscEnable).value_or(0) & kMiscEnableMonitor) != 0;
}

bool Monitor(Core& core, const Op& op) { return Allowed(core) && Arm(core, op); }

bool Mwait(Core& core, const Op& op) {
  return Allowed(core) && Wait(core, op, kWakeByMaskedInterrupts, kSleep);
}

bool Monitorx(Core& core, const Op& op) { return AllowedX(core) && Arm(core, op); }

bool Mwaitx(Core& core, const Op& op) {
  const bool timed = (Extensions(core) & kTimer) != 0;
  const std::chrono::nanoseconds ticks(static_cast<std::uint32_t>(core.gpr[kRbx]));
  return AllowedX(core) && Wait(core, op, kWakeByMaskedInterrupts | kTimer, timed ? ticks : kSleep);
}

}  // namespace pagesaw::cpu
