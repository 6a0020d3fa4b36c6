#include "cpu/native_runner.h"

#include <sys/ucontext.h>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// Shared with the assembly below.
extern "C" {
std::uint64_t pagesaw_native_gpr[16];
std::uint64_t pagesaw_native_rflags;
std::uint64_t pagesaw_native_code;
std::uint64_t pagesaw_native_host_rsp;
std::uint8_t pagesaw_native_exit;
alignas(64) std::uint8_t pagesaw_native_extended[832];
std::uint32_t pagesaw_native_components;  // of XCR0: x87, SSE, AVX

void pagesaw_native_enter();
void pagesaw_native_return();
void pagesaw_native_first_exit();
void pagesaw_native_second_exit();
}

// Moves and jumps leave the flags alone; POPF comes before the registers, PUSHF behind them.
asm(R"(
  .text
  .globl pagesaw_native_enter
  .hidden pagesaw_native_enter
pagesaw_native_enter:
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, pagesaw_native_host_rsp(%rip)
  movl pagesaw_native_components(%rip), %eax
  xorl %edx, %edx
  xrstor64 pagesaw_native_extended(%rip)
  pushq pagesaw_native_rflags(%rip)
  popfq
  movq pagesaw_native_gpr+0(%rip), %rax
  movq pagesaw_native_gpr+8(%rip), %rcx
  movq pagesaw_native_gpr+16(%rip), %rdx
  movq pagesaw_native_gpr+24(%rip), %rbx
  movq pagesaw_native_gpr+32(%rip), %rsp
  movq pagesaw_native_gpr+40(%rip), %rbp
  movq pagesaw_native_gpr+48(%rip), %rsi
  movq pagesaw_native_gpr+56(%rip), %rdi
  movq pagesaw_native_gpr+64(%rip), %r8
  movq pagesaw_native_gpr+72(%rip), %r9
  movq pagesaw_native_gpr+80(%rip), %r10
  movq pagesaw_native_gpr+88(%rip), %r11
  movq pagesaw_native_gpr+96(%rip), %r12
  movq pagesaw_native_gpr+104(%rip), %r13
  movq pagesaw_native_gpr+112(%rip), %r14
  movq pagesaw_native_gpr+120(%rip), %r15
  jmpq *pagesaw_native_code(%rip)

  .globl pagesaw_native_second_exit
  .hidden pagesaw_native_second_exit
pagesaw_native_second_exit:
  movb $1, pagesaw_native_exit(%rip)
  jmp 1f
  .globl pagesaw_native_first_exit
  .hidden pagesaw_native_first_exit
pagesaw_native_first_exit:
  movb $0, pagesaw_native_exit(%rip)
1:
  movq %rax, pagesaw_native_gpr+0(%rip)
  movq %rcx, pagesaw_native_gpr+8(%rip)
  movq %rdx, pagesaw_native_gpr+16(%rip)
  movq %rbx, pagesaw_native_gpr+24(%rip)
  movq %rsp, pagesaw_native_gpr+32(%rip)
  movq %rbp, pagesaw_native_gpr+40(%rip)
  movq %rsi, pagesaw_native_gpr+48(%rip)
  movq %rdi, pagesaw_native_gpr+56(%rip)
  movq %r8, pagesaw_native_gpr+64(%rip)
  movq %r9, pagesaw_native_gpr+72(%rip)
  movq %r10, pagesaw_native_gpr+80(%rip)
  movq %r11, pagesaw_native_gpr+88(%rip)
  movq %r12, pagesaw_native_gpr+96(%rip)
  movq %r13, pagesaw_native_gpr+104(%rip)
  movq %r14, pagesaw_native_gpr+112(%rip)
  movq %r15, pagesaw_native_gpr+120(%rip)
  movq pagesaw_native_host_rsp(%rip), %rsp
  pushfq
  popq pagesaw_native_rflags(%rip)

  .globl pagesaw_native_return
  .hidden pagesaw_native_return
pagesaw_native_return:
  movq pagesaw_native_host_rsp(%rip), %rsp
  cld
  movl pagesaw_native_components(%rip), %eax
  xorl %edx, %edx
  xsave64 pagesaw_native_extended(%rip)
  fninit
  movl $0x1f80, -8(%rsp)
  ldmxcsr -8(%rsp)
  testl $4, %eax
  jz 2f
  vzeroupper
2:
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  retq
)");

namespace pagesaw::cpu {
namespace {

// gregs[] in the order of register numbers.
constexpr int kGregs[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

volatile bool running = false;
NativeEnd end;

void OnFault(int signal, siginfo_t*, void* context) {
  if (!running) {  // not ours: die of it
    std::signal(signal, SIG_DFL);
    return;
  }
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  for (int i = 0; i < 16; ++i) {
    pagesaw_native_gpr[i] = static_cast<std::uint64_t>(registers[kGregs[i]]);
  }
  pagesaw_native_rflags = static_cast<std::uint64_t>(registers[REG_EFL]);
  end.fault = true;
  end.vector = static_cast<unsigned>(registers[REG_TRAPNO]);
  end.error_code = static_cast<std::uint64_t>(registers[REG_ERR]);
  end.cr2 = static_cast<std::uint64_t>(registers[REG_CR2]);
  end.rip = static_cast<std::uint64_t>(registers[REG_RIP]);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&pagesaw_native_return);
  registers[REG_EFL] = 2;
}

std::uint32_t Components() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low & 7;
}

void Install() {
  static bool installed = false;
  if (installed) return;
  installed = true;
  static std::byte stack[64 * 1024];
  stack_t alternative = {};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof(stack);
  sigaltstack(&alternative, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = &OnFault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) {
    sigaction(signal, &action, nullptr);
  }
}

}  // namespace

std::uint64_t NativeFirstExit() {
  return reinterpret_cast<std::uint64_t>(&pagesaw_native_first_exit);
}
std::uint64_t NativeSecondExit() {
  return reinterpret_cast<std::uint64_t>(&pagesaw_native_second_exit);
}

NativeExtended NativeExtended::Initial() {
  NativeExtended state;
  const std::uint16_t fcw = 0x37f;
  const std::uint32_t mxcsr = 0x1f80;
  std::memcpy(&state.bytes[0], &fcw, sizeof(fcw));
  std::memcpy(&state.bytes[24], &mxcsr, sizeof(mxcsr));
  return state;
}

NativeEnd RunNative(std::uint64_t code, NativeState& state) {
  Install();
  for (int i = 0; i < 16; ++i) pagesaw_native_gpr[i] = state.gpr[static_cast<unsigned>(i)];
  pagesaw_native_rflags = state.rflags;
  pagesaw_native_code = code;
  pagesaw_native_components = Components();
  std::memcpy(pagesaw_native_extended, state.extended.bytes.data(),
              sizeof(pagesaw_native_extended));
  // Everything is there, in the standard format.
  const std::uint64_t header[8] = {pagesaw_native_components};
  std::memcpy(pagesaw_native_extended + NativeExtended::kHeader, header, sizeof(header));
  end = {};
  running = true;
  asm volatile("" ::: "memory");
  pagesaw_native_enter();
  asm volatile("" ::: "memory");
  running = false;
  for (int i = 0; i < 16; ++i) state.gpr[static_cast<unsigned>(i)] = pagesaw_native_gpr[i];
  state.rflags = pagesaw_native_rflags;
  std::memcpy(state.extended.bytes.data(), pagesaw_native_extended,
              sizeof(pagesaw_native_extended));
  end.at_second_exit = !end.fault && pagesaw_native_exit != 0;
  return end;
}

}  // namespace pagesaw::cpu
