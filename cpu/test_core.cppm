// A bare Core over a little memory, for tests of single instructions: linear addresses are mapped
// one to one, for everybody, by SPTEs of a one-stage tree, unless a test takes pages away. A GDT,
// an IDT and a TSS stand at fixed places.
module;
#include <cstddef>
#include <cstdint>
#include <memory>
export module pagesaw.cpu.test_core;

export import pagesaw.core.page_format;
export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

class TestCore : private CodeWatcher {
 public:
  static constexpr std::uint64_t kMemoryBytes = 1 << 20;
  static constexpr std::uint64_t kGdt = 0x1000;
  static constexpr std::uint64_t kIdt = 0x2000;
  static constexpr std::uint64_t kTss = 0x3000;
  static constexpr std::uint64_t kStackTop = 0x9000;       // what RSP is
  static constexpr std::uint64_t kInnerStackTop = 0xb000;  // RSP0 or ESP0 of the TSS
  static constexpr std::uint64_t kIst1 = 0xd000;
  static constexpr std::uint64_t kRip = 0x4000;
  static constexpr unsigned kLength = 3;  // of the instruction that `op` stands for

  // Selectors of the GDT.
  static constexpr std::uint16_t kCode64 = 0x08, kData = 0x10, kUserCode64 = 0x1b, kUserData = 0x23,
                                 kCode32 = 0x28, kUserCode32 = 0x33, kAbsentData = 0x38,
                                 kTssSelector = 0x40, kConforming = 0x50, kAbsentCode = 0x58,
                                 kReadOnly = 0x60, kFree = 0x80;

  enum class Mode : std::uint8_t { kReal, kProtected, kLong };
  explicit TestCore(Mode mode = Mode::kLong);

  // Makes the program run at `cpl`, in 64-bit or 32-bit segments after the mode.
  void SetCpl(unsigned cpl);

  template <class T>
  T Read(std::uint64_t linear) const {
    T value;
    __builtin_memcpy(&value, memory_.get() + linear, sizeof(T));
    return value;
  }
  template <class T>
  void Write(std::uint64_t linear, T value) {
    __builtin_memcpy(memory_.get() + linear, &value, sizeof(T));
  }
  void SetDescriptor(std::uint16_t selector, std::uint64_t low, std::uint64_t high = 0);
  // A gate of the IDT in the format of the mode: type 0Eh or 0Fh.
  void SetGate(unsigned vector, std::uint16_t selector, std::uint64_t offset, unsigned type,
               unsigned dpl, unsigned ist = 0);

  // The SPTE of the page at `linear`.
  std::uint64_t& Spte(std::uint64_t linear) { return tables_.get()[3 * 512 + (linear >> 12)]; }
  // Takes the page at `linear` away, and gives it back.
  void Unmap(std::uint64_t linear);
  void Map(std::uint64_t linear);

  // Runs `instruction` as a handler does; false leaves RIP on it.
  bool Run(bool (*instruction)(Core&, const Op&), const Op& op);
  Op op() const;
  // An op whose operand is memory at `linear`.
  Op MemoryOp(std::uint64_t linear) const;

  Core& core() { return *core_; }
  CpuModel& model() { return model_; }

 private:
  bool HoldsCode(std::uint64_t) const override { return false; }
  void Changed(std::uint64_t, std::size_t) override {}

  struct Free {
    void operator()(void* memory) const { __builtin_free(memory); }
  };

  Mode mode_;
  std::unique_ptr<std::byte, Free> memory_;
  std::unique_ptr<std::uint64_t, Free> tables_;
  PageFormat format_;
  CpuModel model_;
  std::unique_ptr<Core> core_;
};

}  // namespace pagesaw::cpu
