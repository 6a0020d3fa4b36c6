// Messages of VmService.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "pagesaw/control/v1/vm_service.pb.h"
module pagesaw.control.server;
import :messages;
import pagesaw.control.arguments;
import pagesaw.cpu.named_model;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

// Of a time limit: a year, so that sums of times cannot wrap.
constexpr std::int64_t kMaxTimeLimitMs = std::int64_t{366} * 24 * 3600 * 1000;

absl::Status Refuse(std::string_view field, std::string value, std::string_view must) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), " ", value, ": must ", std::string(must)));
}

absl::Status CheckPath(std::string_view field, const std::string& path) {
  if (path.empty() || path.front() == '/') return absl::OkStatus();
  return Refuse(field, absl::StrCat("'", absl::CEscape(path), "'"), "be an absolute path");
}

absl::Status CheckRanges(const v1::VmConfig& config) {
  if (config.has_memory_bytes() && config.memory_bytes() <= 0) {
    return Refuse("memory_bytes", absl::StrCat(config.memory_bytes()),
                  "be a positive multiple of 4096");
  }
  if (config.has_cpu_count() && config.cpu_count() <= 0) {
    return Refuse("cpu_count", absl::StrCat(config.cpu_count()), "be 1 or more");
  }
  if (config.time_limit_ms() < 0 || config.time_limit_ms() > kMaxTimeLimitMs) {
    return Refuse("time_limit_ms", absl::StrCat(config.time_limit_ms()),
                  absl::StrCat("be from 0 to ", kMaxTimeLimitMs));
  }
  if (!v1::VmConfig::Tdp_IsValid(config.tdp())) {
    return Refuse("tdp", absl::StrCat(config.tdp()), "be a value of the enum");
  }
  if (!v1::VmConfig::ExecuteSplit_IsValid(config.execute_split())) {
    return Refuse("execute_split", absl::StrCat(config.execute_split()), "be a value of the enum");
  }
  if (auto status = CheckPath("image_path", config.image_path()); !status.ok()) return status;
  if (!v1::VmConfig::Clock_IsValid(config.clock())) {
    return Refuse("clock", absl::StrCat(config.clock()), "be a value of the enum");
  }
  if (auto status = CheckPath("initrd_path", config.initrd_path()); !status.ok()) return status;
  return CheckPath("disk_path", config.disk_path());
}

v1::Vm::State StateOf(VmState state) {
  switch (state) {
    case VmState::kCreated:
      return v1::Vm::CREATED;
    case VmState::kRunning:
      return v1::Vm::RUNNING;
    case VmState::kPaused:
      return v1::Vm::PAUSED;
    case VmState::kStopped:
      return v1::Vm::STOPPED;
  }
  return v1::Vm::STATE_UNSPECIFIED;
}

v1::VmExit::Reason ReasonOf(StopReason reason) {
  switch (reason) {
    case StopReason::kNone:
      return v1::VmExit::REASON_UNSPECIFIED;
    case StopReason::kRequested:
      return v1::VmExit::REQUESTED;
    case StopReason::kDebugExit:
      return v1::VmExit::DEBUG_EXIT;
    case StopReason::kShutdown:
      return v1::VmExit::SHUTDOWN;
    case StopReason::kReset:
      return v1::VmExit::RESET;
    case StopReason::kPowerOff:
      return v1::VmExit::POWER_OFF;
    case StopReason::kTimeLimit:
      return v1::VmExit::TIME_LIMIT;
    case StopReason::kError:
      return v1::VmExit::ERROR;
  }
  return v1::VmExit::REASON_UNSPECIFIED;
}

v1::VmConfig::ExecuteSplit SplitOf(ExecuteSplit split) {
  switch (split) {
    case ExecuteSplit::kAuto:
      return v1::VmConfig::EXECUTE_SPLIT_UNSPECIFIED;
    case ExecuteSplit::kOn:
      return v1::VmConfig::EXECUTE_SPLIT_ON;
    case ExecuteSplit::kOff:
      return v1::VmConfig::EXECUTE_SPLIT_OFF;
  }
  return v1::VmConfig::EXECUTE_SPLIT_UNSPECIFIED;
}

void Fill(v1::VmConfig& message, const VmConfig& config) {
  message.set_vendor(config.vendor);
  message.set_tdp(config.tdp ? v1::VmConfig::TDP_ON : v1::VmConfig::TDP_OFF);
  message.set_memory_bytes(static_cast<std::int64_t>(config.memory_bytes));
  message.set_cpu_count(static_cast<std::int32_t>(config.cpu_count));
  message.set_image_path(config.image_path);
  message.set_command_line(config.cmdline);
  message.set_initrd_path(config.initrd_path);
  message.set_cpu_model(config.cpu_model);
  message.set_cpu_features(config.cpu_features);
  message.set_execute_split(SplitOf(config.execute_split));
  message.set_time_limit_ms(config.time_limit.count());
  message.set_spte_accessed_dirty_off(!config.spte_accessed_dirty);
  message.set_clock(config.clock == ClockKind::kVirtual ? v1::VmConfig::CLOCK_VIRTUAL
                                                        : v1::VmConfig::CLOCK_HOST);
  message.set_disk_path(config.disk_path);
  message.set_disk_read_only(config.disk_read_only);
  message.set_virtio_console(config.virtio_console);
  message.set_virtio_entropy(config.virtio_entropy);
}

void Fill(v1::Segment& message, const Segment& segment) {
  message.set_selector(segment.selector);
  message.set_attributes(segment.attributes);
  message.set_limit(segment.limit);
  message.set_base(segment.base);
}

void Fill(v1::DescriptorTable& message, const DescriptorTable& table) {
  message.set_base(table.base);
  message.set_limit(table.limit);
}

absl::Status Apply(std::string_view name, const v1::Segment& message, Segment& segment) {
  if (message.selector() > 0xffff || message.attributes() > 0xffff) {
    return Refuse(name,
                  absl::StrCat("0x", absl::Hex(message.selector()), " with attributes 0x",
                               absl::Hex(message.attributes())),
                  "have a selector and attributes of 16 bits");
  }
  segment = {.selector = static_cast<std::uint16_t>(message.selector()),
             .attributes = static_cast<std::uint16_t>(message.attributes()),
             .limit = message.limit(),
             .base = message.base()};
  return absl::OkStatus();
}

absl::Status Apply(std::string_view name, const v1::DescriptorTable& message,
                   DescriptorTable& table) {
  if (message.limit() > 0xffff) {
    return Refuse(name, absl::StrCat("limit 0x", absl::Hex(message.limit())),
                  "have a limit of 16 bits");
  }
  table = {.base = message.base(), .limit = static_cast<std::uint16_t>(message.limit())};
  return absl::OkStatus();
}

// The vendor follows from the model; a wish for another one is a mistake.
absl::Status ChooseModel(const v1::VmConfig& wish, VmConfig& config) {
  if (!wish.vendor().empty()) config.vendor = wish.vendor();
  config.cpu_model = wish.cpu_model();
  if (!cpu::IsModelName(config.cpu_model)) {
    return absl::InvalidArgumentError(cpu::UnknownModel(config.cpu_model));
  }
  const cpu::NamedModel* model = cpu::FindNamedModel(config.cpu_model);
  if (model == nullptr) return absl::OkStatus();
  if (!wish.vendor().empty() && wish.vendor() != model->vendor) {
    return absl::InvalidArgumentError(absl::StrCat("vendor '", wish.vendor(), "': CPU model '",
                                                   config.cpu_model, "' is of vendor ",
                                                   std::string(model->vendor)));
  }
  config.vendor = std::string(model->vendor);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VmConfig> ConfigOf(const v1::CreateVmRequest& request) {
  const v1::VmConfig& wish = request.config();
  if (auto status = CheckRanges(wish); !status.ok()) return status;
  VmConfig config;
  config.name = request.vm_id();
  if (auto status = ChooseModel(wish, config); !status.ok()) return status;
  config.tdp = wish.tdp() != v1::VmConfig::TDP_OFF;
  if (wish.has_memory_bytes()) {
    config.memory_bytes = static_cast<std::uint64_t>(wish.memory_bytes());
  }
  if (wish.has_cpu_count()) config.cpu_count = static_cast<unsigned>(wish.cpu_count());
  config.image_path = wish.image_path();
  config.cmdline = wish.command_line();
  config.initrd_path = wish.initrd_path();
  config.cpu_features = wish.cpu_features();
  config.time_limit = std::chrono::milliseconds(wish.time_limit_ms());
  config.spte_accessed_dirty = !wish.spte_accessed_dirty_off();
  if (wish.clock() == v1::VmConfig::CLOCK_VIRTUAL) config.clock = ClockKind::kVirtual;
  config.disk_path = wish.disk_path();
  config.disk_read_only = wish.disk_read_only();
  config.virtio_console = wish.virtio_console();
  config.virtio_entropy = wish.virtio_entropy();
  if (wish.execute_split() == v1::VmConfig::EXECUTE_SPLIT_ON) {
    config.execute_split = ExecuteSplit::kOn;
  } else if (wish.execute_split() == v1::VmConfig::EXECUTE_SPLIT_OFF) {
    config.execute_split = ExecuteSplit::kOff;
  }
  return config;
}

void Fill(v1::VmExit& message, const VmExit& exit) {
  message.set_reason(ReasonOf(exit.reason));
  message.set_debug_exit_value(exit.debug_exit_value);
  message.set_process_status(ProcessStatus(exit));
  message.set_description(exit.message);
}

void Fill(v1::Vm& message, const Vm& vm) {
  message.set_name(VmResourceName(vm.name()));
  Fill(*message.mutable_config(), vm.config());
  const VmState state = vm.state();
  message.set_state(StateOf(state));
  if (state == VmState::kStopped) Fill(*message.mutable_exit(), vm.exit());
  if (state == VmState::kPaused) {
    for (const Violation& violation : vm.violations().Holding()) {
      Fill(*message.add_violations(), violation);
    }
  }
}

// X(field, place) for registers of 64 bits, S(field, place) for segments, T for descriptor tables.
#define PAGESAW_REGISTERS(X, S, T) \
  X(rax, gpr[kRax])                \
  X(rcx, gpr[kRcx])                \
  X(rdx, gpr[kRdx])                \
  X(rbx, gpr[kRbx])                \
  X(rsp, gpr[kRsp])                \
  X(rbp, gpr[kRbp])                \
  X(rsi, gpr[kRsi])                \
  X(rdi, gpr[kRdi])                \
  X(r8, gpr[kR8])                  \
  X(r9, gpr[kR9])                  \
  X(r10, gpr[kR10])                \
  X(r11, gpr[kR11])                \
  X(r12, gpr[kR12])                \
  X(r13, gpr[kR13])                \
  X(r14, gpr[kR14])                \
  X(r15, gpr[kR15])                \
  X(rip, rip)                      \
  X(rflags, rflags)                \
  X(cr0, cr0)                      \
  X(cr2, cr2)                      \
  X(cr3, cr3)                      \
  X(cr4, cr4)                      \
  X(efer, efer)                    \
  S(es, segments[kEs])             \
  S(cs, segments[kCs])             \
  S(ss, segments[kSs])             \
  S(ds, segments[kDs])             \
  S(fs, segments[kFs])             \
  S(gs, segments[kGs]) S(ldtr, segments[kLdtr]) S(tr, segments[kTr]) T(gdtr, gdtr) T(idtr, idtr)

void Fill(v1::Registers& message, const CpuState& state) {
#define PAGESAW_VALUE(field, place) message.set_##field(state.place);
#define PAGESAW_MESSAGE(field, place) Fill(*message.mutable_##field(), state.place);
  PAGESAW_REGISTERS(PAGESAW_VALUE, PAGESAW_MESSAGE, PAGESAW_MESSAGE)
#undef PAGESAW_VALUE
#undef PAGESAW_MESSAGE
  message.set_pkru(state.pkru);
}

absl::Status ApplyRegisters(const v1::Registers& registers, CpuState& state) {
#define PAGESAW_VALUE(field, place) \
  if (registers.has_##field()) state.place = registers.field();
#define PAGESAW_MESSAGE(field, place)                                                \
  if (registers.has_##field()) {                                                     \
    if (auto status = Apply(#field, registers.field(), state.place); !status.ok()) { \
      return status;                                                                 \
    }                                                                                \
  }
  PAGESAW_REGISTERS(PAGESAW_VALUE, PAGESAW_MESSAGE, PAGESAW_MESSAGE)
#undef PAGESAW_VALUE
#undef PAGESAW_MESSAGE
  if (registers.has_pkru()) {
    if (registers.pkru() > UINT32_MAX) {
      return Refuse("pkru", absl::StrCat("0x", absl::Hex(registers.pkru())), "have 32 bits");
    }
    state.pkru = static_cast<std::uint32_t>(registers.pkru());
  }
  return absl::OkStatus();
}

#undef PAGESAW_REGISTERS

}  // namespace pagesaw
