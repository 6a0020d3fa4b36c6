#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.core.processor;
import pagesaw.cpu.selection;
import pagesaw.cpu.system_selection;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

// lidt [0x7000]; lgdt [0x7010]; mov ax, 0x10; mov ds, ax; mov ss, ax; push 0x10; pop fs (16 bits);
// mov ecx, fs; mov ecx, FS_BASE; mov eax, 0x5000; xor edx, edx; wrmsr; mov rsi, fs:[8]; int 0x30;
// add rbx, 1; pushfq; or dword [rsp], AC; popfq; mov r8, cr4; mov dr0, rsi; mov r9, dr0; smsw r10;
// (LSTAR = target, STAR = 8 in both fields by wrmsr); syscall;
// target: push 8; lea rax, [far]; push rax; retfq; far: jmp far [0x7020]; done: sti; nop; cli; hlt
const Bytes kProgram = {
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0x70, 0x00, 0x00, 0x0f, 0x01, 0x14, 0x25, 0x10, 0x70, 0x00, 0x00,
    0x66, 0xb8, 0x10, 0x00, 0x66, 0x8e, 0xd8, 0x66, 0x8e, 0xd0, 0x6a, 0x10, 0x66, 0x0f, 0xa1, 0x8c,
    0xe1, 0xb9, 0x00, 0x01, 0x00, 0xc0, 0xb8, 0x00, 0x50, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, 0x64,
    0x48, 0x8b, 0x34, 0x25, 0x08, 0x00, 0x00, 0x00, 0xcd, 0x30, 0x48, 0x83, 0xc3, 0x01, 0x9c, 0x81,
    0x0c, 0x24, 0x00, 0x00, 0x04, 0x00, 0x9d, 0x41, 0x0f, 0x20, 0xe0, 0x0f, 0x23, 0xc6, 0x41, 0x0f,
    0x21, 0xc1, 0x49, 0x0f, 0x01, 0xe2, 0xb9, 0x82, 0x00, 0x00, 0xc0, 0x48, 0x8d, 0x05, 0x14, 0x00,
    0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, 0xb9, 0x81, 0x00, 0x00, 0xc0, 0x31, 0xc0, 0xba, 0x08, 0x00,
    0x08, 0x00, 0x0f, 0x30, 0x0f, 0x05, 0x6a, 0x08, 0x48, 0x8d, 0x05, 0x03, 0x00, 0x00, 0x00, 0x50,
    0x48, 0xcb, 0xff, 0x2c, 0x25, 0x20, 0x70, 0x00, 0x00, 0xfb, 0x90, 0xfa, 0xf4};
constexpr std::uint64_t kDone = TestProcessor::kCode + 0x89;
// add rbx, 0x10; iretq
const Bytes kHandler = {0x48, 0x83, 0xc3, 0x10, 0x48, 0xcf};
constexpr std::uint64_t kHandlerAt = TestProcessor::kCode + 0x100;

template <class T>
void Store(TestProcessor& machine, std::uint64_t linear, T value) {
  __builtin_memcpy(machine.memory() + linear, &value, sizeof(T));
}

TEST(SystemSelection, RunsAProgramOfSystemInstructions) {
  TestProcessor machine(std::get<CpuModel>(MakeModel({})));
  Store<std::uint16_t>(machine, 0x7000, 0xfff);
  Store<std::uint64_t>(machine, 0x7002, 0x6000);  // the IDT
  Store<std::uint16_t>(machine, 0x7010, 0x17);
  Store<std::uint64_t>(machine, 0x7012, 0x7100);  // the GDT
  Store<std::uint32_t>(machine, 0x7020, kDone);
  Store<std::uint16_t>(machine, 0x7024, 8);
  Store<std::uint64_t>(machine, 0x7108, 0x00af'9b00'0000'ffff);
  Store<std::uint64_t>(machine, 0x7110, 0x00cf'9300'0000'ffff);
  Store<std::uint64_t>(machine, 0x6300, 0x0000'8e00'0008'0000 | kHandlerAt);
  Store<std::uint64_t>(machine, 0x5008, 0x1234'5678);
  machine.Write(kHandlerAt, kHandler);
  const Exit exit = machine.RunCode(kProgram);
  ASSERT_EQ(exit.reason, ExitReason::kHalt);
  const CpuState state = machine.processor().GetState();
  EXPECT_EQ(state.rip, kDone + 4);
  EXPECT_EQ(state.gpr[kRbx], 0x11u);
  EXPECT_EQ(state.gpr[kRsi], 0x1234'5678u);
  EXPECT_EQ(state.gpr[kR8], state.cr4);
  EXPECT_EQ(state.gpr[kR9], 0x1234'5678u);
  EXPECT_EQ(state.gpr[kR10], state.cr0);
  EXPECT_EQ(state.gpr[kRsp], TestProcessor::kStackTop - 6);
  EXPECT_EQ(state.segments[kFs].selector, 0x10);
  EXPECT_NE(state.rflags & kFlagAc, 0u);
  EXPECT_EQ(state.rflags & kFlagIf, 0u);
}

struct DecodeCase {
  const char* name;
  Bytes bytes;
  bool want_selected;
  bool want_ends;
};
class SystemSelectionOf : public testing::TestWithParam<DecodeCase> {};

TEST_P(SystemSelectionOf, KnowsTheInstruction) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  const CpuModel model = std::get<CpuModel>(MakeModel({}));
  Decoded decoded;
  decoded.model = &model;
  ASSERT_TRUE(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, GetParam().bytes.data(),
                                                  GetParam().bytes.size(), &decoded.instruction,
                                                  decoded.operands)));
  Op op;
  const Selection selection = SelectSystem(decoded, op);
  EXPECT_EQ(selection.run != nullptr, GetParam().want_selected);
  EXPECT_EQ(selection.ends_block, GetParam().want_ends);
}

INSTANTIATE_TEST_SUITE_P(
    Instructions, SystemSelectionOf,
    testing::Values(DecodeCase{"MovOfGeneralRegisters", {0x89, 0xc8}, false, false},
                    DecodeCase{"NearReturn", {0xc3}, false, false},
                    DecodeCase{"PushRax", {0x50}, false, false},
                    DecodeCase{"MovCr3", {0x0f, 0x22, 0xd8}, true, true},
                    DecodeCase{"MovDs", {0x8e, 0xd8}, true, false},
                    DecodeCase{"Rdmsr", {0x0f, 0x32}, true, false},
                    DecodeCase{"Wrmsr", {0x0f, 0x30}, true, true},
                    DecodeCase{"Invlpg", {0x0f, 0x01, 0x38}, true, true},
                    DecodeCase{"Outsb", {0xf3, 0x6e}, true, true},
                    DecodeCase{"FninitWithoutUnit", {0xdb, 0xe3}, true, true},
                    DecodeCase{"Emms", {0x0f, 0x77}, false, false},
                    DecodeCase{"Xorps", {0x0f, 0x57, 0xc0}, false, false},
                    DecodeCase{"Vmcall", {0x0f, 0x01, 0xc1}, true, true},
                    DecodeCase{"Vmmcall", {0x0f, 0x01, 0xd9}, true, true},
                    DecodeCase{"Vmlaunch", {0x0f, 0x01, 0xc2}, true, true},
                    DecodeCase{"Monitor", {0x0f, 0x01, 0xc8}, true, false},
                    DecodeCase{"Mwait", {0x0f, 0x01, 0xc9}, true, true}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::cpu
