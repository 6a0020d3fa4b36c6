module;
#include <atomic>
#include <cstdint>
module pagesaw.cpu.io;

import pagesaw.cpu.flags_register;
import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;
import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

constexpr std::uint32_t kBitmapBase = 0x66;  // where a 32- or 64-bit TSS says where its bitmap is

// Tells the breakpoints of an access to a port. False: it must be made again.
bool Watched(Core& core, std::uint16_t port, unsigned bytes) {
  return !core.breakpoints.any_port() || core.NoteBreakpoints(core.breakpoints.Port(port, bytes));
}

bool ReadPort(Core& core, std::uint16_t port, unsigned bytes, std::uint64_t& value) {
  if (!Watched(core, port, bytes)) return false;
  BusAccess access{
      .kind = BusAccess::Kind::kPortIn, .bytes = static_cast<std::uint8_t>(bytes), .address = port};
  if (!core.AskBus(access)) return false;
  value = access.value;
  return true;
}

bool WritePort(Core& core, std::uint16_t port, unsigned bytes, std::uint64_t value) {
  if (!Watched(core, port, bytes)) return false;
  BusAccess access{.kind = BusAccess::Kind::kPortOut,
                   .bytes = static_cast<std::uint8_t>(bytes),
                   .address = port,
                   .value = value};
  return core.AskBus(access);
}

// Whether guest mode is left for an access by IN or OUT.
bool LeavesForPort(Core& core, const Op& op, std::uint16_t port, bool in, bool immediate) {
  return Leaves(
      core, op,
      {.what = Intercept::kIo,
       .io = {.port = port, .bytes = op.operand_bytes, .in = in, .immediate_port = immediate}});
}

bool In(Core& core, const Op& op, std::uint16_t port, bool immediate) {
  std::uint64_t value = 0;
  if (!CheckPort(core, port, op.operand_bytes) || LeavesForPort(core, op, port, true, immediate) ||
      !ReadPort(core, port, op.operand_bytes, value)) {
    return false;
  }
  switch (op.operand_bytes) {
    case 1:
      core.Write(kRax * 8, static_cast<std::uint8_t>(value));
      break;
    case 2:
      core.Write(kRax * 8, static_cast<std::uint16_t>(value));
      break;
    default:
      core.Write(kRax * 8, static_cast<std::uint32_t>(value));
      break;
  }
  return true;
}

bool Out(Core& core, const Op& op, std::uint16_t port, bool immediate) {
  if (!CheckPort(core, port, op.operand_bytes) || LeavesForPort(core, op, port, false, immediate)) {
    return false;
  }
  const std::uint64_t mask = (std::uint64_t{1} << (8 * op.operand_bytes)) - 1;
  return WritePort(core, port, op.operand_bytes, core.gpr[kRax] & mask);
}

std::uint64_t AddressRegister(const Core& core, const Op& op, Gpr name) {
  const unsigned unused = 64 - 8u * op.address_bytes;
  return core.gpr[name] << unused >> unused;
}

void SetAddressRegister(Core& core, const Op& op, Gpr name, std::uint64_t value) {
  switch (op.address_bytes) {
    case 2:
      core.Write(static_cast<RegisterOffset>(name * 8), static_cast<std::uint16_t>(value));
      break;
    case 4:
      core.Write(static_cast<RegisterOffset>(name * 8), static_cast<std::uint32_t>(value));
      break;
    default:
      core.gpr[name] = value;
      break;
  }
}

void Advance(Core& core, const Op& op, Gpr name) {
  const std::uint64_t step = op.operand_bytes;
  const bool down = (core.rflags & kFlagDf) != 0;
  const std::uint64_t at = AddressRegister(core, op, name);
  SetAddressRegister(core, op, name, down ? at - step : at + step);
}

bool InsOnce(Core& core, const Op& op, std::uint16_t port) {
  std::uint64_t linear = 0;
  std::uint64_t value = 0;
  // Memory first: what the port gives cannot be given back.
  if (!Linear(core, kEs, AddressRegister(core, op, kRdi), op.operand_bytes, true, linear) ||
      !ProbeWrite(core, linear, op.operand_bytes, By::kProgram) ||
      !ReadPort(core, port, op.operand_bytes, value) ||
      !StoreSlow(core, linear, &value, op.operand_bytes, By::kProgram)) {
    return false;
  }
  Advance(core, op, kRdi);
  return true;
}

bool OutsOnce(Core& core, const Op& op, std::uint16_t port) {
  std::uint64_t linear = 0;
  std::uint64_t value = 0;
  if (!Linear(core, static_cast<SegmentName>(op.segment), AddressRegister(core, op, kRsi),
              op.operand_bytes, false, linear) ||
      !LoadSlow(core, linear, &value, op.operand_bytes, By::kProgram) ||
      !WritePort(core, port, op.operand_bytes, value)) {
    return false;
  }
  Advance(core, op, kRsi);
  return true;
}

// `value` of the event: the linear address of the memory operand.
bool LeavesForString(Core& core, const Op& op, std::uint16_t port, bool in) {
  const auto segment = in ? kEs : static_cast<SegmentName>(op.segment);
  const std::uint64_t offset = AddressRegister(core, op, in ? kRdi : kRsi);
  return Leaves(core, op,
                {.what = Intercept::kIo,
                 .value = core.segments[segment].base + offset,
                 .io = {.port = port,
                        .bytes = op.operand_bytes,
                        .in = in,
                        .string = true,
                        .repeated = op.repeat != 0,
                        .address_bytes = op.address_bytes,
                        .segment = segment}});
}

template <bool (*kOnce)(Core&, const Op&, std::uint16_t)>
bool Repeat(Core& core, const Op& op) {
  const auto port = static_cast<std::uint16_t>(core.gpr[kRdx]);
  // Without iterations there is no access, and so no check of one.
  if (op.repeat != 0 && AddressRegister(core, op, kRcx) == 0) return true;
  if (!CheckPort(core, port, op.operand_bytes)) return false;
  if (LeavesForString(core, op, port, kOnce == &InsOnce)) return false;
  if (op.repeat == 0) return kOnce(core, op, port);
  std::uint64_t left = AddressRegister(core, op, kRcx);
  while (left > 0) {
    if (!kOnce(core, op, port)) return false;
    core.replay.Clear();
    SetAddressRegister(core, op, kRcx, --left);
    --core.budget;
    const bool look_up = core.attention.load(std::memory_order_relaxed) || core.budget <= 0 ||
                         (core.rflags & kFlagTf) != 0 || core.debug_causes != 0;
    if (left > 0 && look_up) {
      core.in_repeat = true;
      core.rip = core.RipOf(&op);
      return true;
    }
  }
  return true;
}

}  // namespace

bool CheckPort(Core& core, std::uint16_t port, unsigned bytes) {
  if (core.real_mode() || (!core.virtual_8086() && MayDoIo(core))) return true;
  const Segment& tr = core.segments[kTr];
  const bool has_bitmap = (tr.type() & 8) != 0 && tr.limit >= kBitmapBase + 1;
  if (!has_bitmap) return core.Raise(kGp, 0);
  std::uint16_t base = 0;
  if (!LoadSystem(core, tr.base + kBitmapBase, base)) return false;
  const std::uint32_t at = std::uint32_t{base} + port / 8u;
  if (at + 1 > tr.limit) return core.Raise(kGp, 0);
  std::uint16_t bits = 0;
  if (!LoadSystem(core, tr.base + at, bits)) return false;
  const unsigned mask = ((1u << bytes) - 1) << (port & 7);
  return (bits & mask) == 0 || core.Raise(kGp, 0);
}

bool InImmediate(Core& core, const Op& op) {
  return In(core, op, static_cast<std::uint8_t>(op.immediate), true);
}
bool InDx(Core& core, const Op& op) {
  return In(core, op, static_cast<std::uint16_t>(core.gpr[kRdx]), false);
}
bool OutImmediate(Core& core, const Op& op) {
  return Out(core, op, static_cast<std::uint8_t>(op.immediate), true);
}
bool OutDx(Core& core, const Op& op) {
  return Out(core, op, static_cast<std::uint16_t>(core.gpr[kRdx]), false);
}
bool Ins(Core& core, const Op& op) { return Repeat<InsOnce>(core, op); }
bool Outs(Core& core, const Op& op) { return Repeat<OutsOnce>(core, op); }

bool Hlt(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kHlt)) return false;
  core.activity = Activity::kHalted;
  return true;
}

}  // namespace pagesaw::cpu
