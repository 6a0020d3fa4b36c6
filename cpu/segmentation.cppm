// Descriptors and segment registers: reading descriptors from the GDT and the LDT, and the checks
// that a load of each register makes. Loads come in two steps, so that an instruction can make all
// its checks first: Prepare... gives the register's new value, Set... stores it.
module;
#include <cstdint>
export module pagesaw.cpu.segmentation;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// System-segment and gate types. [intel/vol3] "System Descriptor Types"
enum SystemType : std::uint8_t {
  kTss16 = 1,
  kLdt = 2,
  kTss16Busy = 3,
  kCallGate16 = 4,
  kTaskGate = 5,
  kInterruptGate16 = 6,
  kTrapGate16 = 7,
  kTss32 = 9,
  kTss32Busy = 11,
  kCallGate32 = 12,
  kInterruptGate32 = 14,
  kTrapGate32 = 15,
};

// A descriptor as it stands in memory; `high` is the upper half of those of 16 bytes.
struct Descriptor {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  std::uint64_t address = 0;  // linear

  constexpr unsigned type() const { return (low >> 40) & 15; }
  constexpr bool is_system() const { return (low >> 44 & 1) == 0; }
  constexpr unsigned dpl() const { return (low >> 45) & 3; }
  constexpr bool present() const { return (low >> 47 & 1) != 0; }
  constexpr bool is_code() const { return !is_system() && (type() & 8) != 0; }
  constexpr bool is_data() const { return !is_system() && (type() & 8) == 0; }
  constexpr bool is_conforming() const { return is_code() && (type() & 4) != 0; }
  constexpr bool is_readable() const { return is_data() || (is_code() && (type() & 2) != 0); }
  constexpr bool is_writable() const { return is_data() && (type() & 2) != 0; }
  constexpr bool long_mode() const { return (low >> 53 & 1) != 0; }
  constexpr bool big() const { return (low >> 54 & 1) != 0; }

  // Of gates.
  constexpr std::uint16_t gate_selector() const { return static_cast<std::uint16_t>(low >> 16); }
  constexpr std::uint64_t gate_offset() const {
    return (low & 0xffff) | (low >> 32 & 0xffff'0000) | high << 32;
  }
  constexpr unsigned gate_count() const { return (low >> 32) & 31; }

  // The register that it makes, without the upper half of the base.
  constexpr Segment ToSegment(std::uint16_t selector) const {
    Segment segment;
    segment.selector = selector;
    segment.attributes = (low >> 40) & 0xf0ff;
    segment.limit = static_cast<std::uint32_t>((low & 0xffff) | (low >> 32 & 0xf0000));
    if ((low >> 55 & 1) != 0) segment.limit = segment.limit << 12 | 0xfff;
    segment.base = (low >> 16 & 0xff'ffff) | (low >> 32 & 0xff00'0000);
    return segment;
  }
};

inline constexpr std::uint16_t kTi = 4;  // in a selector: of the LDT
constexpr bool IsNull(std::uint16_t selector) { return (selector & ~3) == 0; }

enum class Lookup : std::uint8_t {
  kFound,
  kOutside,  // beyond the table, or there is no LDT
  kStopped,  // the table cannot be read now: `core.stop` says why
};
// Reads 8 bytes of the descriptor that `selector`, not null, names.
Lookup LookUp(Core& core, std::uint16_t selector, Descriptor& descriptor);
// Reads the other 8 of one that has 16. Its address must come from LookUp.
Lookup LookUpHigh(Core& core, std::uint16_t selector, Descriptor& descriptor);
// LookUp that raises `vector` with the selector for kOutside.
bool Fetch(Core& core, std::uint16_t selector, Vector vector, Descriptor& descriptor);
// The same for system descriptors, which have 16 bytes in long mode.
bool FetchWide(Core& core, std::uint16_t selector, Vector vector, Descriptor& descriptor);

// The error code that names `selector`. [intel/vol3] "Error Code"
constexpr std::uint32_t SelectorError(std::uint16_t selector) { return selector & 0xfffcu; }

// Sets the accessed bit of a code or data descriptor where it stands and in `segment`.
bool MarkAccessed(Core& core, const Descriptor& descriptor, Segment& segment);
// Writes the type of a system descriptor (busy or not) where it stands.
bool WriteType(Core& core, const Descriptor& descriptor, unsigned type);

// What real mode and virtual-8086 mode make of a selector.
Segment RealModeSegment(const Core& core, SegmentName name, std::uint16_t selector);

// The value that loading `selector` gives ES, SS, DS, FS or GS, after all checks of the current
// mode. May set the accessed bit in memory.
bool PrepareSegment(Core& core, SegmentName name, std::uint16_t selector, Segment& segment);
// A stack segment for privilege level `cpl`, not null: faults are `vector` (#TS or #GP), #SS if it
// is not present.
bool PrepareStack(Core& core, std::uint16_t selector, unsigned cpl, Vector vector,
                  Segment& segment);
// The null SS that 64-bit mode has at `cpl`.
Segment NullStack(unsigned cpl);
// The value of a code-segment register whose descriptor has passed all checks of privilege: its
// RPL becomes `cpl`. Raises #NP. May set the accessed bit in memory.
bool PrepareCode(Core& core, std::uint16_t selector, const Descriptor& descriptor, unsigned cpl,
                 Segment& segment);

// The code segment that IRET and far RET return to: all checks of privilege.
bool FetchReturnCode(Core& core, std::uint16_t selector, Descriptor& code);
// SS that they load for privilege level `cpl`; null is allowed on the way `to_64`-bit mode.
bool PrepareReturnStack(Core& core, std::uint16_t selector, unsigned cpl, bool to_64,
                        Segment& segment);

void SetSegment(Core& core, SegmentName name, const Segment& segment);

// On a return to `cpl`: data segments that it may not use become null.
void DropInnerSegments(Core& core, unsigned cpl);

// Whether `linear` is canonical at the current paging mode's width, and at the widest one that the
// processor has, which is what bases are judged by.
inline bool IsCanonicalNow(const Core& core, std::uint64_t linear) {
  return IsCanonical(Gva(linear), (core.cr4 & kCr4La57) != 0 ? 57 : 48);
}
bool IsCanonicalBase(const Core& core, std::uint64_t linear);

// Instructions. Operands: `first` the destination's and `second` the source's register, a number
// for segment registers.
bool MovToSegment(Core& core, const Op& op);
bool MovFromSegment(Core& core, const Op& op);
bool PushSegment(Core& core, const Op& op);
bool PopSegment(Core& core, const Op& op);
bool LoadFarPointer(Core& core, const Op& op);  // LDS LES LFS LGS LSS; `second` the segment
bool Sldt(Core& core, const Op& op);
bool Str(Core& core, const Op& op);
bool Lldt(Core& core, const Op& op);
bool Ltr(Core& core, const Op& op);
bool Verr(Core& core, const Op& op);
bool Verw(Core& core, const Op& op);
bool Lar(Core& core, const Op& op);
bool Lsl(Core& core, const Op& op);
bool Sgdt(Core& core, const Op& op);
bool Sidt(Core& core, const Op& op);
bool Lgdt(Core& core, const Op& op);
bool Lidt(Core& core, const Op& op);
bool Swapgs(Core& core, const Op& op);
bool ReadFsBase(Core& core, const Op& op);
bool ReadGsBase(Core& core, const Op& op);
bool WriteFsBase(Core& core, const Op& op);
bool WriteGsBase(Core& core, const Op& op);

}  // namespace pagesaw::cpu
