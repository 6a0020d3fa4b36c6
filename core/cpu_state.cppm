// The architectural state of an x86-64 processor, as it is read and written from outside.
module;
#include <array>
#include <cstdint>
export module pagesaw.core.cpu_state;

export namespace pagesaw {

// General-purpose registers by their number in instructions.
enum Gpr : std::uint8_t {
  kRax,
  kRcx,
  kRdx,
  kRbx,
  kRsp,
  kRbp,
  kRsi,
  kRdi,
  kR8,
  kR9,
  kR10,
  kR11,
  kR12,
  kR13,
  kR14,
  kR15,
};

// Segment registers by their number in instructions, then the system segments.
enum SegmentName : std::uint8_t { kEs, kCs, kSs, kDs, kFs, kGs, kLdtr, kTr };
inline constexpr unsigned kSegmentCount = 8;

// EFLAGS bits. [intel/vol1] "EFLAGS Register"
inline constexpr std::uint64_t kFlagCf = 1u << 0;
inline constexpr std::uint64_t kFlagFixed = 1u << 1;
inline constexpr std::uint64_t kFlagPf = 1u << 2;
inline constexpr std::uint64_t kFlagAf = 1u << 4;
inline constexpr std::uint64_t kFlagZf = 1u << 6;
inline constexpr std::uint64_t kFlagSf = 1u << 7;
inline constexpr std::uint64_t kFlagTf = 1u << 8;
inline constexpr std::uint64_t kFlagIf = 1u << 9;
inline constexpr std::uint64_t kFlagDf = 1u << 10;
inline constexpr std::uint64_t kFlagOf = 1u << 11;
inline constexpr std::uint64_t kFlagIopl = 3u << 12;
inline constexpr std::uint64_t kFlagNt = 1u << 14;
inline constexpr std::uint64_t kFlagRf = 1u << 16;
inline constexpr std::uint64_t kFlagVm = 1u << 17;
inline constexpr std::uint64_t kFlagAc = 1u << 18;
inline constexpr std::uint64_t kFlagVif = 1u << 19;
inline constexpr std::uint64_t kFlagVip = 1u << 20;
inline constexpr std::uint64_t kFlagId = 1u << 21;

// A segment register with its hidden part. `attributes` are bits 40 to 55 of the descriptor, limit
// bits cleared: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
// [intel/vol3] "Segment Descriptors"
struct Segment {
  std::uint16_t selector = 0;
  std::uint16_t attributes = 0;
  std::uint32_t limit = 0xffff;  // in bytes, granularity applied
  std::uint64_t base = 0;

  constexpr unsigned type() const { return attributes & 15; }
  constexpr bool is_code_or_data() const { return (attributes & 0x10) != 0; }
  constexpr bool is_code() const { return (attributes & 0x18) == 0x18; }
  constexpr unsigned dpl() const { return (attributes >> 5) & 3; }
  constexpr bool present() const { return (attributes & 0x80) != 0; }  // false: unusable
  constexpr bool long_mode() const { return (attributes & 0x2000) != 0; }
  constexpr bool big() const { return (attributes & 0x4000) != 0; }
  constexpr unsigned rpl() const { return selector & 3; }
  constexpr bool operator==(const Segment&) const = default;
};

struct DescriptorTable {
  std::uint64_t base = 0;
  std::uint16_t limit = 0xffff;
  constexpr bool operator==(const DescriptorTable&) const = default;
};

enum class Activity : std::uint8_t { kActive, kHalted, kShutdown, kWaitForSipi };

// The x87, MMX, SSE and AVX registers; the first 512 bytes are as FXSAVE64 stores them.
// [intel/vol2] "FXSAVE"
struct alignas(64) ExtendedState {
  struct X87Register {
    std::uint64_t significand = 0;
    std::uint16_t sign_exponent = 0;
    std::array<std::uint16_t, 3> unused = {};
    constexpr bool operator==(const X87Register&) const = default;
  };
  using Vector = std::array<std::uint64_t, 2>;

  std::uint16_t fcw = 0x37f;
  std::uint16_t fsw = 0;
  std::uint8_t ftw = 0;  // bit i: physical register i is not empty
  std::uint8_t unused = 0;
  std::uint16_t fop = 0;
  std::uint64_t fip = 0, fdp = 0;
  std::uint32_t mxcsr = 0x1f80;
  std::uint32_t mxcsr_mask = 0xffff;
  std::array<X87Register, 8> st = {};  // from the top of the stack
  std::array<Vector, 16> xmm = {};
  std::array<std::uint64_t, 12> reserved = {};
  std::array<Vector, 16> ymm_high = {};

  constexpr unsigned top() const { return fsw >> 11 & 7; }
  constexpr bool operator==(const ExtendedState&) const = default;
};

// Control-flow enforcement: shadow stacks and indirect branch tracking.
// [intel/vol1] "Control-flow Enforcement Technology (CET)"
struct CetState {
  std::uint64_t ssp = 0;
  std::uint64_t user = 0, supervisor = 0;           // IA32_U_CET, IA32_S_CET
  std::array<std::uint64_t, 4> privilege_ssp = {};  // IA32_PL0_SSP to IA32_PL3_SSP
  std::uint64_t interrupt_ssp_table = 0;
  constexpr bool operator==(const CetState&) const = default;
};

struct CpuState {
  std::array<std::uint64_t, 16> gpr = {};
  std::uint64_t rip = 0;
  std::uint64_t rflags = kFlagFixed;
  std::array<Segment, kSegmentCount> segments = {};
  DescriptorTable gdtr, idtr;
  std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, efer = 0;
  std::uint64_t xcr0 = 1, xss = 0;
  std::array<std::uint64_t, 4> pdptes = {};
  std::array<std::uint64_t, 4> dr = {};
  std::uint64_t dr6 = 0xffff'0ff0, dr7 = 0x400;
  std::uint32_t pkru = 0, pkrs = 0;
  std::uint64_t star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
  std::uint64_t sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  std::uint64_t pat = 0x0007'0406'0007'0406;
  std::uint64_t tsc_aux = 0;
  CetState cet;
  Activity activity = Activity::kActive;
  bool interrupt_shadow = false;  // after STI or a load of SS
  bool nmi_blocked = false;
  ExtendedState extended;

  // 0 to 3. SS.DPL is the CPL at all times.
  constexpr unsigned cpl() const { return segments[kSs].dpl(); }
  bool operator==(const CpuState&) const = default;
};

// The state after RESET. [intel/vol3] "Processor State After Reset"
constexpr CpuState ResetState() {
  CpuState state;
  state.cr0 = 0x6000'0010;
  state.rip = 0xfff0;
  state.gpr[kRdx] = 0x600;
  state.extended.fcw = 0x40;
  state.extended.ftw = 0xff;
  for (unsigned i = kEs; i <= kGs; ++i) state.segments[i].attributes = 0x93;
  state.segments[kCs] = {
      .selector = 0xf000, .attributes = 0x9b, .limit = 0xffff, .base = 0xffff0000};
  state.segments[kLdtr].attributes = 0x82;
  state.segments[kTr].attributes = 0x8b;
  return state;
}

}  // namespace pagesaw
