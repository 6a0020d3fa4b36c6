// How instructions reach memory: segmentation, the software TLB, and the hardware walk behind it.
// Every function returns false if the access cannot be made now; then `core.stop` says why and the
// instruction must end without having changed anything.
module;
#include <cstddef>
#include <cstdint>
export module pagesaw.cpu.memory;

import pagesaw.core.access;
export import pagesaw.cpu.core;
export import pagesaw.cpu.host_bytes;

export namespace pagesaw::cpu {

// Who an access is made by: the program at its CPL, or the processor on its own account (descriptor
// tables, TSS, stacks of inner rings), which is supervisor-mode at any CPL. Accesses to shadow
// stacks are of a mode of their own, whatever the CPL. [intel/vol3] "Access Rights", implicit
// supervisor-mode accesses
enum class By : std::uint8_t {
  kProgram,
  kProcessor,
  kSupervisorShadowStack,
  kUserShadowStack,
};

// Checks `offset` in `segment` for an access of `bytes` bytes and gives the linear address. Raises
// #GP(0) or #SS(0). In 64-bit mode: base of FS and GS, canonical form.
bool Linear(Core& core, SegmentName segment, std::uint64_t offset, unsigned bytes, bool write,
            std::uint64_t& linear);

// The slow paths: `bytes` is 1 to 16 for loads and stores, which may cross pages.
bool LoadSlow(Core& core, std::uint64_t linear, void* to, unsigned bytes, By by);
bool StoreSlow(Core& core, std::uint64_t linear, const void* from, unsigned bytes, By by);

// Whether all of `bytes` bytes (at most a page) could be written now: for instructions with several
// stores, which must be restartable. Announces nothing and writes nothing.
bool ProbeWrite(Core& core, std::uint64_t linear, unsigned bytes, By by);
bool ProbeRead(Core& core, std::uint64_t linear, unsigned bytes, By by);

// Host memory for an atomic read-modify-write of `bytes` bytes at `linear`, aligned to `bytes`;
// null in `host` if it must be done with LoadSlow and StoreSlow (a device, or crossing pages).
bool HostForModify(Core& core, std::uint64_t linear, unsigned bytes, std::byte*& host,
                   By by = By::kProgram);

// Whether all of a T at `linear` lies in the page that `tag` names.
template <class T>
inline bool Hits(std::uint64_t tag, std::uint64_t linear) {
  return ((linear + (sizeof(T) - 1)) & ~std::uint64_t{0xfff}) == tag;
}

// A load or store that the TLB lets through at once. False: nothing was done.
template <class T>
[[gnu::always_inline]] inline bool LoadHit(TlbBank& bank, std::uint64_t linear, T& value) {
  const TlbEntry& entry = bank.At(linear);
  if (!Hits<T>(entry.read_tag, linear)) [[unlikely]]
    return false;
  value = LoadHost<T>(reinterpret_cast<const void*>(linear + entry.addend));
  return true;
}
template <class T>
[[gnu::always_inline]] inline bool StoreHit(TlbBank& bank, std::uint64_t linear, T value) {
  const TlbEntry& entry = bank.At(linear);
  if (!Hits<T>(entry.write_tag, linear)) [[unlikely]]
    return false;
  StoreHost<T>(reinterpret_cast<void*>(linear + entry.addend), value);
  return true;
}

// Loads and stores at a linear address, by the program.
template <class T>
inline bool Load(Core& core, std::uint64_t linear, T& value) {
  return LoadHit(*core.bank, linear, value) ||
         LoadSlow(core, linear, &value, sizeof(T), By::kProgram);
}
template <class T>
inline bool Store(Core& core, std::uint64_t linear, T value) {
  return StoreHit(*core.bank, linear, value) ||
         StoreSlow(core, linear, &value, sizeof(T), By::kProgram);
}

// The same by the processor: descriptor tables, TSS, stacks of inner rings.
template <class T>
inline bool LoadSystem(Core& core, std::uint64_t linear, T& value) {
  return LoadHit(core.tlb.bank(BankName::kSupervisor), linear, value) ||
         LoadSlow(core, linear, &value, sizeof(T), By::kProcessor);
}
template <class T>
inline bool StoreSystem(Core& core, std::uint64_t linear, T value) {
  return StoreHit(core.tlb.bank(BankName::kSupervisor), linear, value) ||
         StoreSlow(core, linear, &value, sizeof(T), By::kProcessor);
}

// base + index * scale + displacement of `op`, not truncated; no segment.
inline std::uint64_t OperandSum(const Core& core, const Op& op) {
  return core.Read<std::uint64_t>(op.base) + (core.Read<std::uint64_t>(op.index) << op.scale) +
         static_cast<std::uint64_t>(std::int64_t{op.displacement});
}

// The same truncated to its address size.
inline std::uint64_t EffectiveAddress(const Core& core, const Op& op) {
  const unsigned unused = 64 - 8u * op.address_bytes;
  return OperandSum(core, op) << unused >> unused;
}

// The linear address of a 64-bit `op` without any check: one that is not canonical, or a pointer
// with a tag that counts, has no entry in the TLB.
inline std::uint64_t UncheckedAddress(const Core& core, const Op& op) {
  const bool based = op.segment == kFs || op.segment == kGs;
  return OperandSum(core, op) + (based ? core.segments[op.segment].base : 0);
}

// Whether [linear, linear + bytes) is canonical with 48 bits, and so with 57.
inline bool IsCanonicalRange48(std::uint64_t linear, unsigned bytes) {
  constexpr std::uint64_t kHalf = std::uint64_t{1} << 47;
  return linear + kHalf <= 2 * kHalf - bytes;
}

// The linear address of the memory operand of `op`, checked for `bytes` bytes.
inline bool OperandAddress(Core& core, const Op& op, unsigned bytes, bool write,
                           std::uint64_t& linear) {
  if (op.address_bytes == 8 && !core.masks_pointers) [[likely]] {
    linear = UncheckedAddress(core, op);
    if (IsCanonicalRange48(linear, bytes)) [[likely]]
      return true;
  }
  return Linear(core, static_cast<SegmentName>(op.segment), EffectiveAddress(core, op), bytes,
                write, linear);
}

// The memory operand of `op`.
template <class T>
inline bool LoadOperand(Core& core, const Op& op, T& value) {
  std::uint64_t linear = 0;
  return OperandAddress(core, op, sizeof(T), false, linear) && Load<T>(core, linear, value);
}
template <class T>
inline bool StoreOperand(Core& core, const Op& op, T value) {
  std::uint64_t linear = 0;
  return OperandAddress(core, op, sizeof(T), true, linear) && Store<T>(core, linear, value);
}

// Pushes and pops at the current stack width; SP moves only on success. `Top` is SS:SP + offset.
template <class T>
bool Push(Core& core, T value);
template <class T>
bool Pop(Core& core, T& value);
// The linear address of the stack at SP + `offset`, wrapped at the stack width and checked.
bool StackAddress(Core& core, std::int64_t offset, unsigned bytes, bool write,
                  std::uint64_t& linear);
// Adds `delta` to SP, ESP or RSP by the stack width.
inline void MoveStack(Core& core, std::int64_t delta) {
  const std::uint64_t sp = core.gpr[kRsp] + static_cast<std::uint64_t>(delta);
  if (core.stack_64) {
    core.gpr[kRsp] = sp;
  } else if (core.stack_32) {
    core.gpr[kRsp] = static_cast<std::uint32_t>(sp);
  } else {
    core.gpr[kRsp] = (core.gpr[kRsp] & ~std::uint64_t{0xffff}) | (sp & 0xffff);
  }
}

template <class T>
inline bool Push(Core& core, T value) {
  std::uint64_t linear = 0;
  if (!StackAddress(core, -static_cast<std::int64_t>(sizeof(T)), sizeof(T), true, linear) ||
      !Store<T>(core, linear, value)) {
    return false;
  }
  MoveStack(core, -static_cast<std::int64_t>(sizeof(T)));
  return true;
}
template <class T>
inline bool Pop(Core& core, T& value) {
  std::uint64_t linear = 0;
  if (!StackAddress(core, 0, sizeof(T), false, linear) || !Load<T>(core, linear, value)) {
    return false;
  }
  MoveStack(core, sizeof(T));
  return true;
}

template <class T>
[[gnu::noinline]] bool PushSlow(Core& core, T value) {
  return Push<T>(core, value);
}

// Push, and a load of the top of the stack; kFlat: in 64-bit mode, where the stack is not
// segmented.
template <class T, bool kFlat>
[[gnu::always_inline]] inline bool PushFast(Core& core, T value) {
  const std::uint64_t linear = core.gpr[kRsp] - sizeof(T);
  if (!kFlat || !StoreHit(*core.bank, linear, value)) return PushSlow<T>(core, value);
  core.gpr[kRsp] = linear;
  return true;
}
template <class T, bool kFlat>
inline bool PeekFast(Core& core, T& value) {
  std::uint64_t linear = core.gpr[kRsp];
  if (kFlat && LoadHit(*core.bank, linear, value)) return true;
  return StackAddress(core, 0, sizeof(T), false, linear) && Load<T>(core, linear, value);
}

}  // namespace pagesaw::cpu
