module;
#include <Zydis/Zydis.h>
#include <cstdint>
module pagesaw.cpu.system_selection;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.control_registers;
import pagesaw.cpu.dispatch;
import pagesaw.cpu.exceptions;
import pagesaw.cpu.far_transfer;
import pagesaw.cpu.flags_register;
import pagesaw.cpu.hypercall;
import pagesaw.cpu.intercept;
import pagesaw.cpu.io;
import pagesaw.cpu.memory;
import pagesaw.cpu.monitor;
import pagesaw.cpu.msr;
import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

bool Undefined(Core& core, const Op&) { return core.Raise(kUd); }
bool Nothing(Core&, const Op&) { return true; }
bool Pause(Core& core, const Op& op) { return !Leaves(core, op, Intercept::kPause); }
// There is no system management mode to return from.
bool Rsm(Core& core, const Op& op) { return !Leaves(core, op, Intercept::kRsm) && core.Raise(kUd); }

// CLFLUSH and its like: an access without effect, as no cache holds what memory does not.
bool FlushLine(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  return OperandAddress(core, op, 1, false, linear) && ProbeRead(core, linear, 1, By::kProgram);
}

// Without its CPUID bit the x87 unit is not there. [intel/vol3] "Device Not Available Exception
// (#NM)": with CR0.EM or CR0.TS set an x87 instruction is software's to do.
bool X87(Core& core, const Op&) {
  return core.Raise((core.cr0 & (kCr0Em | kCr0Ts)) != 0 ? kNm : kUd);
}

template <Instruction kInstruction>
constexpr Selection Follows() {
  return {.run = &Plain<kInstruction>, .ends_block = false};
}
template <Instruction kInstruction>
constexpr Selection Ends() {
  return {.run = &Ending<kInstruction>, .ends_block = true};
}

// Those whose op is as the decoder left it.
Selection SelectPlain(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_SLDT:
      return Follows<Sldt>();
    case ZYDIS_MNEMONIC_STR:
      return Follows<Str>();
    case ZYDIS_MNEMONIC_LAR:
      return Follows<Lar>();
    case ZYDIS_MNEMONIC_LSL:
      return Follows<Lsl>();
    case ZYDIS_MNEMONIC_SGDT:
      return Follows<Sgdt>();
    case ZYDIS_MNEMONIC_SIDT:
      return Follows<Sidt>();
    case ZYDIS_MNEMONIC_SWAPGS:
      return Follows<Swapgs>();
    case ZYDIS_MNEMONIC_RDFSBASE:
      return Follows<ReadFsBase>();
    case ZYDIS_MNEMONIC_RDGSBASE:
      return Follows<ReadGsBase>();
    case ZYDIS_MNEMONIC_WRFSBASE:
      return Follows<WriteFsBase>();
    case ZYDIS_MNEMONIC_WRGSBASE:
      return Follows<WriteGsBase>();
    case ZYDIS_MNEMONIC_SMSW:
      return Follows<Smsw>();
    case ZYDIS_MNEMONIC_LMSW:
      return Ends<Lmsw>();
    case ZYDIS_MNEMONIC_CLTS:
      return Follows<Clts>();
    case ZYDIS_MNEMONIC_INVLPG:
      return Ends<Invlpg>();
    case ZYDIS_MNEMONIC_INVD:
      return Follows<Invd>();
    case ZYDIS_MNEMONIC_WBINVD:
      return Follows<Wbinvd>();
    case ZYDIS_MNEMONIC_RSM:
      return Ends<Rsm>();
    case ZYDIS_MNEMONIC_RDPKRU:
      return Follows<Rdpkru>();
    case ZYDIS_MNEMONIC_WRPKRU:
      return Ends<Wrpkru>();
    case ZYDIS_MNEMONIC_XGETBV:
      return Follows<Xgetbv>();
    case ZYDIS_MNEMONIC_XSETBV:
      return Ends<Xsetbv>();
    case ZYDIS_MNEMONIC_CLAC:
      return Follows<Clac>();
    case ZYDIS_MNEMONIC_STAC:
      return Follows<Stac>();
    case ZYDIS_MNEMONIC_CLI:
      return Follows<Cli>();
    case ZYDIS_MNEMONIC_STI:
      return Ends<Sti>();
    case ZYDIS_MNEMONIC_HLT:
      return Ends<Hlt>();
    case ZYDIS_MNEMONIC_INT:
      return Ends<Int>();
    case ZYDIS_MNEMONIC_INT1:
      return Ends<Int1>();
    case ZYDIS_MNEMONIC_INT3:
      return Ends<Int3>();
    case ZYDIS_MNEMONIC_INTO:
      return Ends<Into>();
    case ZYDIS_MNEMONIC_SYSCALL:
      return Ends<Syscall>();
    case ZYDIS_MNEMONIC_SYSENTER:
      return Ends<Sysenter>();
    case ZYDIS_MNEMONIC_RDMSR:
      return Follows<Rdmsr>();
    case ZYDIS_MNEMONIC_WRMSR:
      return Ends<Wrmsr>();
    case ZYDIS_MNEMONIC_RDTSC:
      return Follows<Rdtsc>();
    case ZYDIS_MNEMONIC_RDTSCP:
      return Follows<Rdtscp>();
    case ZYDIS_MNEMONIC_RDPMC:
      return Follows<Rdpmc>();
    case ZYDIS_MNEMONIC_RDPID:
      return Follows<Rdpid>();
    case ZYDIS_MNEMONIC_CPUID:
      return Follows<Cpuid>();
    case ZYDIS_MNEMONIC_RDRAND:
      return Follows<Rdrand>();
    case ZYDIS_MNEMONIC_RDSEED:
      return Follows<Rdseed>();
    case ZYDIS_MNEMONIC_PAUSE:
      return Follows<Pause>();
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
      return Follows<Nothing>();
    default:
      return {};
  }
}

Selection SelectCacheLine(const Decoded& decoded) {
  const auto gated = [&decoded](Feature feature) {
    return decoded.model->Has(feature) ? Follows<FlushLine>() : Ends<Undefined>();
  };
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_CLFLUSH:
      return gated(Feature::kClflush);
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
      return gated(Feature::kClflushopt);
    case ZYDIS_MNEMONIC_CLWB:
      return gated(Feature::kClwb);
    default:
      return {};
  }
}

ZydisRegisterClass ClassOf(const ZydisDecodedOperand& operand) {
  return operand.type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(operand.reg.value)
                                                     : ZYDIS_REGCLASS_INVALID;
}

// MOV, PUSH and POP that name a segment, control or debug register.
Selection SelectMove(const Decoded& decoded, Op& op) {
  const ZydisRegisterClass to = ClassOf(decoded.operands[0]);
  const ZydisRegisterClass from = ClassOf(decoded.operands[1]);
  if (to == ZYDIS_REGCLASS_SEGMENT) {
    return op.first == kSs ? Ends<MovToSegment>() : Follows<MovToSegment>();
  }
  if (from == ZYDIS_REGCLASS_SEGMENT) {
    if (op.memory) op.second = op.first;
    return Follows<MovFromSegment>();
  }
  if (to == ZYDIS_REGCLASS_CONTROL) return Ends<MovToControl>();
  if (from == ZYDIS_REGCLASS_CONTROL) return Follows<MovFromControl>();
  if (to == ZYDIS_REGCLASS_DEBUG) return Ends<MovToDebug>();
  if (from == ZYDIS_REGCLASS_DEBUG) return Follows<MovFromDebug>();
  return {};
}

// PUSHF and POPF by mnemonic, whatever the decoder thinks the width is.
Selection OfBytes(Op& op, std::uint8_t bytes, Selection selection) {
  op.operand_bytes = bytes;
  return selection;
}

Selection SelectStackAndReturns(const Decoded& decoded, Op& op) {
  const auto bytes = static_cast<std::uint8_t>(decoded.instruction.operand_width / 8);
  const bool segment = ClassOf(decoded.operands[0]) == ZYDIS_REGCLASS_SEGMENT;
  const bool wide = decoded.instruction.raw.rex.W != 0;
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
      return segment ? OfBytes(op, bytes, Follows<PushSegment>()) : Selection{};
    case ZYDIS_MNEMONIC_POP:
      if (!segment) return {};
      return OfBytes(op, bytes, op.first == kSs ? Ends<PopSegment>() : Follows<PopSegment>());
    case ZYDIS_MNEMONIC_PUSHF:
      return OfBytes(op, 2, Follows<Pushf>());
    case ZYDIS_MNEMONIC_PUSHFD:
      return OfBytes(op, 4, Follows<Pushf>());
    case ZYDIS_MNEMONIC_PUSHFQ:
      return OfBytes(op, 8, Follows<Pushf>());
    case ZYDIS_MNEMONIC_POPF:
      return OfBytes(op, 2, Ends<Popf>());
    case ZYDIS_MNEMONIC_POPFD:
      return OfBytes(op, 4, Ends<Popf>());
    case ZYDIS_MNEMONIC_POPFQ:
      return OfBytes(op, 8, Ends<Popf>());
    case ZYDIS_MNEMONIC_IRET:
      return OfBytes(op, 2, Ends<Iret>());
    case ZYDIS_MNEMONIC_IRETD:
      return OfBytes(op, 4, Ends<Iret>());
    case ZYDIS_MNEMONIC_IRETQ:
      return OfBytes(op, 8, Ends<Iret>());
    case ZYDIS_MNEMONIC_SYSRET:
      return OfBytes(op, wide ? 8 : 4, Ends<Sysret>());
    case ZYDIS_MNEMONIC_SYSEXIT:
      return OfBytes(op, wide ? 8 : 4, Ends<Sysexit>());
    case ZYDIS_MNEMONIC_LGDT:
      return OfBytes(op, bytes, Follows<Lgdt>());
    case ZYDIS_MNEMONIC_LIDT:
      return OfBytes(op, bytes, Follows<Lidt>());
    default:
      return {};
  }
}

// Those whose one register operand is a source.
Selection SelectSource(const Decoded& decoded, Op& op) {
  const RegisterOffset source = op.first;
  const auto with = [&op, source](Selection selection) {
    op.second = source;
    return selection;
  };
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_LLDT:
      return with(Follows<Lldt>());
    case ZYDIS_MNEMONIC_LTR:
      return with(Follows<Ltr>());
    case ZYDIS_MNEMONIC_VERR:
      return with(Follows<Verr>());
    case ZYDIS_MNEMONIC_VERW:
      return with(Follows<Verw>());
    case ZYDIS_MNEMONIC_INVPCID:
      return with(Ends<Invpcid>());
    default:
      return {};
  }
}

Selection SelectFarPointer(const Decoded& decoded, Op& op) {
  const auto into = [&op](SegmentName name) {
    op.second = name;
    return name == kSs ? Ends<LoadFarPointer>() : Follows<LoadFarPointer>();
  };
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_LES:
      return into(kEs);
    case ZYDIS_MNEMONIC_LDS:
      return into(kDs);
    case ZYDIS_MNEMONIC_LSS:
      return into(kSs);
    case ZYDIS_MNEMONIC_LFS:
      return into(kFs);
    case ZYDIS_MNEMONIC_LGS:
      return into(kGs);
    default:
      return {};
  }
}

Selection SelectFarTransfer(const Decoded& decoded, Op& op) {
  if (decoded.instruction.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR) return {};
  const ZydisDecodedOperand& operand = decoded.operands[0];
  const bool direct = operand.type == ZYDIS_OPERAND_TYPE_POINTER;
  op.operand_bytes = static_cast<std::uint8_t>(decoded.instruction.operand_width / 8);
  if (direct) {
    op.immediate =
        std::uint64_t{operand.ptr.segment} << 32 | static_cast<std::uint32_t>(operand.ptr.offset);
  }
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
      return direct ? Ends<FarJump>() : Ends<FarJumpIndirect>();
    case ZYDIS_MNEMONIC_CALL:
      return direct ? Ends<FarCall>() : Ends<FarCallIndirect>();
    case ZYDIS_MNEMONIC_RET:
      op.immediate &= 0xffff;
      return Ends<FarReturn>();
    default:
      return {};
  }
}

// The segment of the source of OUTS, which may have a prefix.
void FillStringSegment(const Decoded& decoded, Op& op) {
  for (unsigned i = 0; i < decoded.instruction.operand_count; ++i) {
    const ZydisDecodedOperand& operand = decoded.operands[i];
    if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    op.segment = static_cast<std::uint8_t>(ZydisRegisterGetId(operand.mem.segment));
  }
}

// The segment of MONITOR's line: DS, or that of a prefix.
Selection SelectWaiting(const Decoded& decoded, Op& op) {
  const ZydisMnemonic mnemonic = decoded.instruction.mnemonic;
  if (mnemonic == ZYDIS_MNEMONIC_MWAIT) return Ends<Mwait>();
  if (mnemonic == ZYDIS_MNEMONIC_MWAITX) return Ends<Mwaitx>();
  if (mnemonic != ZYDIS_MNEMONIC_MONITOR && mnemonic != ZYDIS_MNEMONIC_MONITORX) return {};
  struct Row {
    ZydisInstructionAttributes attribute;
    SegmentName segment;
  };
  static constexpr Row kRows[] = {{ZYDIS_ATTRIB_HAS_SEGMENT_CS, kCs},
                                  {ZYDIS_ATTRIB_HAS_SEGMENT_SS, kSs},
                                  {ZYDIS_ATTRIB_HAS_SEGMENT_ES, kEs},
                                  {ZYDIS_ATTRIB_HAS_SEGMENT_FS, kFs},
                                  {ZYDIS_ATTRIB_HAS_SEGMENT_GS, kGs}};
  op.segment = kDs;
  for (const Row& row : kRows) {
    if ((decoded.instruction.attributes & row.attribute) != 0) op.segment = row.segment;
  }
  return mnemonic == ZYDIS_MNEMONIC_MONITOR ? Follows<Monitor>() : Follows<Monitorx>();
}

Selection SelectPorts(const Decoded& decoded, Op& op) {
  const auto outs = [&decoded, &op](std::uint8_t bytes) {
    FillStringSegment(decoded, op);
    return OfBytes(op, bytes, Ends<Outs>());
  };
  const auto width = [](const ZydisDecodedOperand& operand) {
    return static_cast<std::uint8_t>(operand.size / 8);
  };
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_IN:
      op.operand_bytes = width(decoded.operands[0]);
      return decoded.operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? Follows<InImmediate>()
                                                                      : Follows<InDx>();
    case ZYDIS_MNEMONIC_OUT:
      op.operand_bytes = width(decoded.operands[1]);
      return decoded.operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? Follows<OutImmediate>()
                                                                      : Follows<OutDx>();
    case ZYDIS_MNEMONIC_INSB:
      return OfBytes(op, 1, Ends<Ins>());
    case ZYDIS_MNEMONIC_INSW:
      return OfBytes(op, 2, Ends<Ins>());
    case ZYDIS_MNEMONIC_INSD:
      return OfBytes(op, 4, Ends<Ins>());
    case ZYDIS_MNEMONIC_OUTSB:
      return outs(1);
    case ZYDIS_MNEMONIC_OUTSW:
      return outs(2);
    case ZYDIS_MNEMONIC_OUTSD:
      return outs(4);
    default:
      return {};
  }
}

// What a virtualization extension adds. Without one they are undefined, as anything unknown is.
bool OfExtension(Core& core, const Op& op) {
  if (core.unit == nullptr) return core.Raise(kUd);
  InterceptedEvent event = {.what = Intercept::kInstruction,
                            .gpr = static_cast<std::uint8_t>(op.first / 8 & 15),
                            .second_gpr = static_cast<std::uint8_t>(op.second / 8 & 15),
                            .operand_bytes = op.operand_bytes,
                            .instruction = static_cast<VirtInstruction>(op.immediate)};
  DescribeInstruction(core, op, event);
  core.guest.op = &op;
  return core.unit->Execute(*core.unit_host, event);
}

// VMCALL and VMMCALL: ours, if it is said that we are there, outside guest mode.
bool CallSomeHypervisor(Core& core, const Op& op) {
  const bool ours = !core.guest.active && core.model->Has(Feature::kHypervisor);
  return ours ? CallHypervisor(core, op) : OfExtension(core, op);
}

Selection SelectExtension(const Decoded& decoded, Op& op) {
  struct Row {
    ZydisMnemonic mnemonic;
    VirtInstruction instruction;
  };
  static constexpr Row kRows[] = {
      {ZYDIS_MNEMONIC_CLGI, VirtInstruction::kClgi},
      {ZYDIS_MNEMONIC_INVEPT, VirtInstruction::kInvept},
      {ZYDIS_MNEMONIC_INVLPGA, VirtInstruction::kInvlpga},
      {ZYDIS_MNEMONIC_INVVPID, VirtInstruction::kInvvpid},
      {ZYDIS_MNEMONIC_SKINIT, VirtInstruction::kSkinit},
      {ZYDIS_MNEMONIC_STGI, VirtInstruction::kStgi},
      {ZYDIS_MNEMONIC_VMCALL, VirtInstruction::kVmcall},
      {ZYDIS_MNEMONIC_VMCLEAR, VirtInstruction::kVmclear},
      {ZYDIS_MNEMONIC_VMFUNC, VirtInstruction::kVmfunc},
      {ZYDIS_MNEMONIC_VMLAUNCH, VirtInstruction::kVmlaunch},
      {ZYDIS_MNEMONIC_VMLOAD, VirtInstruction::kVmload},
      {ZYDIS_MNEMONIC_VMMCALL, VirtInstruction::kVmmcall},
      {ZYDIS_MNEMONIC_VMPTRLD, VirtInstruction::kVmptrld},
      {ZYDIS_MNEMONIC_VMPTRST, VirtInstruction::kVmptrst},
      {ZYDIS_MNEMONIC_VMREAD, VirtInstruction::kVmread},
      {ZYDIS_MNEMONIC_VMRESUME, VirtInstruction::kVmresume},
      {ZYDIS_MNEMONIC_VMRUN, VirtInstruction::kVmrun},
      {ZYDIS_MNEMONIC_VMSAVE, VirtInstruction::kVmsave},
      {ZYDIS_MNEMONIC_VMWRITE, VirtInstruction::kVmwrite},
      {ZYDIS_MNEMONIC_VMXOFF, VirtInstruction::kVmxoff},
      {ZYDIS_MNEMONIC_VMXON, VirtInstruction::kVmxon},
  };
  for (const Row& row : kRows) {
    if (row.mnemonic != decoded.instruction.mnemonic) continue;
    op.immediate = static_cast<std::uint64_t>(row.instruction);
    const bool call =
        row.instruction == VirtInstruction::kVmmcall || row.instruction == VirtInstruction::kVmcall;
    return call ? Ends<CallSomeHypervisor>() : Ends<OfExtension>();
  }
  return {};
}

Selection SelectAbsent(const Decoded& decoded) {
  return decoded.instruction.meta.isa_ext == ZYDIS_ISA_EXT_X87 ? Ends<X87>() : Selection{};
}

}  // namespace

Selection SelectSystem(const Decoded& decoded, Op& op) {
  if (op.lock) return {};
  Selection selection = SelectPlain(decoded.instruction.mnemonic);
  if (selection.run == nullptr && decoded.instruction.mnemonic == ZYDIS_MNEMONIC_MOV) {
    selection = SelectMove(decoded, op);
  }
  if (selection.run == nullptr) selection = SelectCacheLine(decoded);
  if (selection.run == nullptr) selection = SelectStackAndReturns(decoded, op);
  if (selection.run == nullptr) selection = SelectSource(decoded, op);
  if (selection.run == nullptr) selection = SelectFarPointer(decoded, op);
  if (selection.run == nullptr) selection = SelectFarTransfer(decoded, op);
  if (selection.run == nullptr) selection = SelectPorts(decoded, op);
  if (selection.run == nullptr) selection = SelectExtension(decoded, op);
  if (selection.run == nullptr) selection = SelectWaiting(decoded, op);
  if (selection.run == nullptr) selection = SelectAbsent(decoded);
  return selection;
}

}  // namespace pagesaw::cpu
