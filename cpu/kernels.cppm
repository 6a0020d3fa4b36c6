// One native copy of every vector and x87 instruction, on fixed registers: what the host's own
// processor computes is the architectural result. An instruction of the guest is executed by moving
// its operands to those registers, calling the copy, and moving them back.
module;
#include <cstddef>
#include <cstdint>
export module pagesaw.cpu.kernels;

export import pagesaw.core.cpu_state;

export namespace pagesaw::cpu {

// A vector instruction as its opcode bytes name it. [intel/vol2] "Instruction Format"
struct Encoding {
  bool vex = false;
  std::uint8_t map = 1;     // 1: 0F, 2: 0F38, 3: 0F3A
  std::uint8_t prefix = 0;  // 0: none, 1: 66, 2: F3, 3: F2
  std::uint8_t opcode = 0;
  std::uint8_t immediate = 0;
  bool w = false;
  bool l = false;
};

// The number of its native copy; kNoKernel if there is none. That there is one does not mean that
// the bytes are an instruction: whoever asks has decoded them.
inline constexpr std::uint32_t kNoKernel = 0xf'ffff;
std::uint32_t FindKernel(const Encoding& encoding);

// What a copy works on. Which register plays which part is the same for all of them.
struct alignas(32) KernelFrame {
  std::uint64_t implicit[4];  // XMM0 or YMM0: VEX.vvvv, or the implicit operand of old encodings
  std::uint64_t rm[4];        // 1: ModRM.rm
  std::uint64_t reg[4];       // 2: ModRM.reg
  std::uint64_t is4[4];       // 3: the register that a VEX immediate names
  std::uint64_t mmx_rm;       // MM1
  std::uint64_t mmx_reg;      // MM2
  std::uint64_t rax;          // 0, where an instruction takes it
  std::uint64_t gpr_rm;       // RCX
  std::uint64_t gpr_reg;      // RDX
  std::uint64_t rflags;
  std::uint32_t mxcsr;
  std::uint32_t host_mxcsr;
};

// What is loaded before the copy and stored behind it.
enum class KernelEntry : std::uint8_t {
  kSse,       // XMM registers
  kSseFloat,  // and MXCSR
  kAvx,       // YMM registers
  kAvxFloat,
  kMmx,  // MMX and XMM registers, MXCSR
};

// Executes copy `kernel`. An exception that `frame.mxcsr` does not mask must not occur.
void RunKernel(KernelEntry entry, std::uint32_t kernel, KernelFrame& frame);

// An x87 instruction: the escape byte's low 3 bits and the ModRM byte. A memory operand, whose
// address the ModRM byte gives, is `operand`. `state` is the x87 state before and after; unmasked
// exceptions are left pending in it. RFLAGS go in and come out.
std::uint64_t RunX87(ExtendedState& state, std::uint8_t escape, std::uint8_t modrm, void* operand,
                     std::uint64_t rflags);

}  // namespace pagesaw::cpu
