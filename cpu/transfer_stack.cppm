// Stacks as transfers of control use them: values are pushed before the stack is the current one,
// and popped before SP moves, so that a transfer that cannot be finished has changed nothing.
module;
#include <cstdint>
export module pagesaw.cpu.transfer_stack;

export import pagesaw.cpu.memory;

export namespace pagesaw::cpu {

// Pushes to a stack that need not be the current one. What it has written when a push fails lies
// beyond every stack pointer, and is written again by the next attempt.
class StackWriter {
 public:
  // `wide`: a stack of 64-bit mode, without limit. Faults are #SS(`error_code`).
  StackWriter(Core& core, const Segment& ss, std::uint64_t sp, bool wide, By by,
              std::uint32_t error_code)
      : core_(core), ss_(ss), sp_(sp), wide_(wide), by_(by), error_code_(error_code) {}

  // Pushes the low `bytes` (2, 4 or 8) bytes of `value`.
  inline bool Push(std::uint64_t value, unsigned bytes) {
    const std::uint64_t linear = sp_ - sizeof(value);
    const bool wide = wide_ && bytes == sizeof(value);
    TlbBank& bank = by_ == By::kProgram ? *core_.bank : core_.tlb.bank(BankName::kSupervisor);
    if (!wide || !StoreHit(bank, linear, value)) return PushSlow(value, bytes);
    sp_ = linear;
    return true;
  }
  inline std::uint64_t sp() const { return sp_; }

 private:
  bool PushSlow(std::uint64_t value, unsigned bytes);
  bool Address(std::uint64_t offset, unsigned bytes, std::uint64_t& linear) const;
  bool Store(std::uint64_t linear, std::uint64_t value, unsigned bytes);

  Core& core_;
  Segment ss_;
  std::uint64_t sp_;
  bool wide_;
  By by_;
  std::uint32_t error_code_;
};

// Pops from the current stack without moving SP.
class StackReader {
 public:
  StackReader(Core& core, unsigned bytes) : core_(core), bytes_(bytes) {}

  // Reads the next value, zero-extended.
  inline bool Pop(std::uint64_t& value) {
    const std::uint64_t linear = core_.gpr[kRsp] + static_cast<std::uint64_t>(offset_);
    const bool wide = core_.code_64() && bytes_ == sizeof(value);
    if (!wide || !LoadHit(*core_.bank, linear, value)) return PopSlow(value);
    offset_ += sizeof(value);
    return true;
  }
  inline void Skip(std::int64_t bytes) { offset_ += bytes; }
  // How far behind SP the next value is.
  inline std::int64_t offset() const { return offset_; }

 private:
  bool PopSlow(std::uint64_t& value);

  Core& core_;
  unsigned bytes_;
  std::int64_t offset_ = 0;
};

// Stores the stack pointer as wide as the current stack is; UpdateMode comes first.
void SetStackPointer(Core& core, std::uint64_t sp);

// Reads `bytes` bytes at `offset` of the current TSS; #TS with its selector if that is beyond it.
bool LoadTss(Core& core, std::uint32_t offset, unsigned bytes, std::uint64_t& value);
// SS and ESP (or SP) for privilege level `cpl` from a 32-bit or 16-bit TSS.
bool LoadTssStack(Core& core, unsigned cpl, std::uint16_t& ss, std::uint64_t& sp);
// RSP for `cpl`, or, if `ist` is 1 to 7, an interrupt stack, from a 64-bit TSS. #SS(0) if it is not
// canonical.
bool LoadTssStack64(Core& core, unsigned cpl, unsigned ist, std::uint64_t& sp);

}  // namespace pagesaw::cpu
