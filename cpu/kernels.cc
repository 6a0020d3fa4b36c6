module;
#include <array>
#include <cstddef>
#include <cstdint>
module pagesaw.cpu.kernels;

// Opcodes that have an immediate byte: 256 copies each. Those of map 0F exist for every prefix.
#define PAGESAW_0F_IMMEDIATE 0x70, 0xc2, 0xc4, 0xc5, 0xc6
#define PAGESAW_0F3A_66_IMMEDIATE                                                                 \
  0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22, 0x40, \
      0x41, 0x42, 0x44, 0x60, 0x61, 0x62, 0x63, 0xdf
#define PAGESAW_0F3A_IMMEDIATE 0x0f, 0xcc
#define PAGESAW_0F3A_VEX_IMMEDIATE                                                                \
  0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x14, 0x15, \
      0x16, 0x17, 0x18, 0x19, 0x1d, 0x20, 0x21, 0x22, 0x38, 0x39, 0x40, 0x41, 0x42, 0x44, 0x46,   \
      0x4a, 0x4b, 0x4c, 0x60, 0x61, 0x62, 0x63, 0xdf
#define PAGESAW_TEXT(...) #__VA_ARGS__
#define PAGESAW_LIST(LIST) PAGESAW_TEXT(LIST)

extern "C" {
extern const std::byte pagesaw_kernels[];
extern const std::byte pagesaw_x87_registers[];
extern const std::byte pagesaw_x87_memory[];
void pagesaw_kernel_sse(void* frame, const std::byte* kernel);
void pagesaw_kernel_sse_float(void* frame, const std::byte* kernel);
void pagesaw_kernel_avx(void* frame, const std::byte* kernel);
void pagesaw_kernel_avx_float(void* frame, const std::byte* kernel);
void pagesaw_kernel_mmx(void* frame, const std::byte* kernel);
std::uint64_t pagesaw_kernel_x87(void* state, void* operand, const std::byte* kernel,
                                 std::uint64_t rflags);
}

// Every copy is an instruction and RET in 8 bytes; ModRM D1h names registers 2 and 1.
asm(R"(
  .macro pagesaw_start
    .balign 8, 0xcc
  .endm
  .macro pagesaw_old prefix, w, map
    pagesaw_start
    .if \prefix
      .byte \prefix
    .endif
    .if \w
      .byte 0x48
    .endif
    .byte 0x0f
    .if \map
      .byte \map
    .endif
  .endm
  .macro pagesaw_old_map prefix, w, map
    .set pagesaw_i, 0
    .rept 256
      pagesaw_old \prefix, \w, \map
      .byte pagesaw_i, 0xd1, 0xc3
      .set pagesaw_i, pagesaw_i + 1
    .endr
  .endm
  .macro pagesaw_old_immediate prefix, w, map, opcode
    .set pagesaw_i, 0
    .rept 256
      pagesaw_old \prefix, \w, \map
      .byte \opcode, 0xd1, pagesaw_i, 0xc3
      .set pagesaw_i, pagesaw_i + 1
    .endr
  .endm
  .macro pagesaw_vex_map map, bits
    .set pagesaw_i, 0
    .rept 256
      pagesaw_start
      .byte 0xc4, 0xe0 | \map, 0x78 | \bits, pagesaw_i, 0xd1, 0xc3
      .set pagesaw_i, pagesaw_i + 1
    .endr
  .endm
  .macro pagesaw_vex_immediate map, bits, opcode
    .set pagesaw_i, 0
    .rept 256
      pagesaw_start
      .byte 0xc4, 0xe0 | \map, 0x78 | \bits, \opcode, 0xd1, pagesaw_i, 0xc3
      .set pagesaw_i, pagesaw_i + 1
    .endr
  .endm

  .text
  .balign 64
  .globl pagesaw_kernels
  .hidden pagesaw_kernels
pagesaw_kernels:
  .irp map, 0, 0x38
    .irp prefix, 0, 0x66, 0xf3, 0xf2
      .irp w, 0, 1
        pagesaw_old_map \prefix, \w, \map
      .endr
    .endr
  .endr
  .irp map, 1, 2
    .irp bits, 0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
      pagesaw_vex_map \map, \bits
    .endr
  .endr
  .irp prefix, 0, 0x66, 0xf3, 0xf2
    .irp opcode, )" PAGESAW_LIST(PAGESAW_0F_IMMEDIATE) R"(
      pagesaw_old_immediate \prefix, 0, 0, \opcode
    .endr
  .endr
  .irp bits, 0, 1, 2, 3, 4, 5, 6, 7
    .irp opcode, )" PAGESAW_LIST(PAGESAW_0F_IMMEDIATE) R"(
      pagesaw_vex_immediate 1, \bits, \opcode
    .endr
  .endr
  .irp w, 0, 1
    .irp opcode, )" PAGESAW_LIST(PAGESAW_0F3A_66_IMMEDIATE) R"(
      pagesaw_old_immediate 0x66, \w, 0x3a, \opcode
    .endr
  .endr
  .irp opcode, )" PAGESAW_LIST(PAGESAW_0F3A_IMMEDIATE) R"(
    pagesaw_old_immediate 0, 0, 0x3a, \opcode
  .endr
  .irp bits, 1, 5, 0x81, 0x85
    .irp opcode, )" PAGESAW_LIST(PAGESAW_0F3A_VEX_IMMEDIATE) R"(
      pagesaw_vex_immediate 3, \bits, \opcode
    .endr
  .endr

  .balign 64
  .globl pagesaw_x87_registers
  .hidden pagesaw_x87_registers
pagesaw_x87_registers:
  .set pagesaw_j, 0xd8
  .rept 8
    .set pagesaw_i, 0xc0
    .rept 64
      .byte pagesaw_j, pagesaw_i, 0xc3, 0xcc
      .set pagesaw_i, pagesaw_i + 1
    .endr
    .set pagesaw_j, pagesaw_j + 1
  .endr
  .globl pagesaw_x87_memory
  .hidden pagesaw_x87_memory
pagesaw_x87_memory:                   # the operand is at RSI
  .set pagesaw_j, 0xd8
  .rept 8
    .set pagesaw_i, 6
    .rept 8
      .byte pagesaw_j, pagesaw_i, 0xc3, 0xcc
      .set pagesaw_i, pagesaw_i + 8
    .endr
    .set pagesaw_j, pagesaw_j + 1
  .endr
)");

// Frames: see KernelFrame.
asm(R"(
  .macro pagesaw_entry name, float, avx, mmx
  .text
  .balign 16
  .globl pagesaw_kernel_\name
  .hidden pagesaw_kernel_\name
pagesaw_kernel_\name:
  movq %rdi, %r8
  movq 144(%r8), %rax
  movq 152(%r8), %rcx
  movq 160(%r8), %rdx
  .if \float
    stmxcsr 180(%r8)
    ldmxcsr 176(%r8)
  .endif
  .if \avx
    vmovdqa (%r8), %ymm0
    vmovdqa 32(%r8), %ymm1
    vmovdqa 64(%r8), %ymm2
    vmovdqa 96(%r8), %ymm3
  .else
    movdqa (%r8), %xmm0
    movdqa 32(%r8), %xmm1
    movdqa 64(%r8), %xmm2
  .endif
  .if \mmx
    movq 128(%r8), %mm1
    movq 136(%r8), %mm2
  .endif
  callq *%rsi
  pushfq
  popq 168(%r8)
  .if \float
    stmxcsr 176(%r8)
    ldmxcsr 180(%r8)
  .endif
  movq %rcx, 152(%r8)
  movq %rdx, 160(%r8)
  .if \avx
    vmovdqa %ymm0, (%r8)
    vmovdqa %ymm1, 32(%r8)
    vmovdqa %ymm2, 64(%r8)
    vzeroupper
  .else
    movdqa %xmm0, (%r8)
    movdqa %xmm1, 32(%r8)
    movdqa %xmm2, 64(%r8)
  .endif
  .if \mmx
    movq %mm1, 128(%r8)
    movq %mm2, 136(%r8)
    emms
  .endif
  retq
  .endm

  pagesaw_entry sse, 0, 0, 0
  pagesaw_entry sse_float, 1, 0, 0
  pagesaw_entry avx, 0, 1, 0
  pagesaw_entry avx_float, 1, 1, 0
  pagesaw_entry mmx, 1, 0, 1

  .balign 16
  .globl pagesaw_kernel_x87
  .hidden pagesaw_kernel_x87
pagesaw_kernel_x87:                   # (state, operand, copy, flags)
  subq $8, %rsp
  stmxcsr (%rsp)
  fxrstor64 (%rdi)
  pushq %rcx
  popfq
  callq *%rdx
  pushfq
  popq %rax
  fxsave64 (%rdi)
  fninit
  ldmxcsr (%rsp)
  addq $8, %rsp
  retq
)");

namespace pagesaw::cpu {
namespace {

constexpr std::size_t kKernelBytes = 8;
constexpr std::uint32_t kPerMap = 256;

constexpr std::uint8_t k0fImmediate[] = {PAGESAW_0F_IMMEDIATE};
constexpr std::uint8_t k0f3a66Immediate[] = {PAGESAW_0F3A_66_IMMEDIATE};
constexpr std::uint8_t k0f3aImmediate[] = {PAGESAW_0F3A_IMMEDIATE};
constexpr std::uint8_t k0f3aVexImmediate[] = {PAGESAW_0F3A_VEX_IMMEDIATE};

// Where the groups start, in maps of 256 copies, in the order of the assembly.
constexpr std::uint32_t kOldMaps = 0;
constexpr std::uint32_t kVexMaps = kOldMaps + 2 * 4 * 2;
constexpr std::uint32_t kOld0f = kVexMaps + 2 * 16;
constexpr std::uint32_t kVex0f = kOld0f + 4 * sizeof(k0fImmediate);
constexpr std::uint32_t kOld0f3a66 = kVex0f + 8 * sizeof(k0fImmediate);
constexpr std::uint32_t kOld0f3a = kOld0f3a66 + 2 * sizeof(k0f3a66Immediate);
constexpr std::uint32_t kVex0f3a = kOld0f3a + sizeof(k0f3aImmediate);
static_assert((kVex0f3a + 4 * sizeof(k0f3aVexImmediate)) * kPerMap < kNoKernel);

static_assert(offsetof(KernelFrame, mmx_rm) == 128 && offsetof(KernelFrame, rax) == 144 &&
              offsetof(KernelFrame, rflags) == 168 && offsetof(KernelFrame, mxcsr) == 176 &&
              offsetof(KernelFrame, host_mxcsr) == 180);
static_assert(offsetof(ExtendedState, mxcsr) == 24 && offsetof(ExtendedState, st) == 32 &&
              offsetof(ExtendedState, xmm) == 160 && offsetof(ExtendedState, ymm_high) == 512);

// The copy in group `first` of the opcode in `list`, the list having been repeated `times` before.
template <std::size_t kCount>
std::uint32_t InList(const std::uint8_t (&list)[kCount], std::uint32_t first, std::uint32_t times,
                     const Encoding& encoding) {
  for (std::uint32_t i = 0; i < kCount; ++i) {
    if (list[i] != encoding.opcode) continue;
    return (first + times * static_cast<std::uint32_t>(kCount) + i) * kPerMap + encoding.immediate;
  }
  return kNoKernel;
}

std::uint32_t FindOld(const Encoding& encoding) {
  const std::uint32_t w = encoding.w ? 1 : 0;
  if (encoding.map == 3) {
    if (encoding.prefix == 0) return InList(k0f3aImmediate, kOld0f3a, 0, encoding);
    return encoding.prefix == 1 ? InList(k0f3a66Immediate, kOld0f3a66, w, encoding) : kNoKernel;
  }
  if (encoding.map == 1) {
    const std::uint32_t found = InList(k0fImmediate, kOld0f, encoding.prefix, encoding);
    if (found != kNoKernel) return found;
  }
  const std::uint32_t map = (encoding.map - 1u) * 8 + encoding.prefix * 2u + w;
  return (kOldMaps + map) * kPerMap + encoding.opcode;
}

std::uint32_t FindVex(const Encoding& encoding) {
  const std::uint32_t w = encoding.w ? 1 : 0;
  const std::uint32_t bits = (encoding.l ? 4u : 0) | encoding.prefix;
  if (encoding.map == 3) {
    if (encoding.prefix != 1) return kNoKernel;
    return InList(k0f3aVexImmediate, kVex0f3a, w * 2 + (encoding.l ? 1 : 0), encoding);
  }
  if (encoding.map == 1) {
    const std::uint32_t found = InList(k0fImmediate, kVex0f, bits, encoding);
    if (found != kNoKernel) return found;
  }
  return (kVexMaps + (encoding.map - 1u) * 16 + w * 8 + bits) * kPerMap + encoding.opcode;
}

}  // namespace

std::uint32_t FindKernel(const Encoding& encoding) {
  return encoding.vex ? FindVex(encoding) : FindOld(encoding);
}

void RunKernel(KernelEntry entry, std::uint32_t kernel, KernelFrame& frame) {
  using Entry = void (*)(void*, const std::byte*);
  static constexpr std::array<Entry, 5> kEntries = {&pagesaw_kernel_sse, &pagesaw_kernel_sse_float,
                                                    &pagesaw_kernel_avx, &pagesaw_kernel_avx_float,
                                                    &pagesaw_kernel_mmx};
  kEntries[static_cast<unsigned>(entry)](&frame, pagesaw_kernels + kernel * kKernelBytes);
}

std::uint64_t RunX87(ExtendedState& state, std::uint8_t escape, std::uint8_t modrm, void* operand,
                     std::uint64_t rflags) {
  const std::byte* kernel = modrm >= 0xc0
                                ? pagesaw_x87_registers + (escape * 64u + (modrm - 0xc0u)) * 4
                                : pagesaw_x87_memory + (escape * 8u + (modrm >> 3 & 7u)) * 4;
  return pagesaw_kernel_x87(&state, operand, kernel, rflags);
}

}  // namespace pagesaw::cpu
