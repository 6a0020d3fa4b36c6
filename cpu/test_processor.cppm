// A software processor over a little memory, for tests: linear addresses 0 to 64 MiB are mapped one
// to one by 4 KiB SPTEs of a one-stage tree, unless a test takes pages away.
module;
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>
export module pagesaw.cpu.test_processor;

export import pagesaw.core.cpu_state;
export import pagesaw.core.page_format;
export import pagesaw.core.processor;
export import pagesaw.cpu.model;
export import pagesaw.cpu.software_processor;

export namespace pagesaw::cpu {

class TestProcessor {
 public:
  static constexpr std::uint64_t kMemoryBytes = 4 << 20;
  static constexpr std::uint64_t kCode = 0x1000;
  static constexpr std::uint64_t kStackTop = 0x8000;

  // In 64-bit mode at CPL 0, about to execute at kCode.
  explicit TestProcessor(const CpuModel& model);

  // The state of a 64-bit kernel at kCode with a flat stack.
  static CpuState LongModeState();

  void Write(std::uint64_t linear, std::span<const std::uint8_t> bytes);
  template <class T>
  T Read(std::uint64_t linear) const {
    T value;
    __builtin_memcpy(&value, memory() + linear, sizeof(T));
    return value;
  }
  std::byte* memory() const { return memory_.get(); }

  // Puts `code` at kCode and runs it from the current state until an exit.
  Exit RunCode(std::span<const std::uint8_t> code);

  // The SPTE of the page at `linear`.
  std::uint64_t& Spte(std::uint64_t linear) { return tables_.get()[3 * 512 + (linear >> 12)]; }

  SoftwareProcessor& processor() { return *processor_; }

 private:
  struct Free {
    void operator()(void* memory) const { __builtin_free(memory); }
  };

  std::unique_ptr<std::byte, Free> memory_;
  std::unique_ptr<std::uint64_t, Free> tables_;
  PageFormat format_;
  std::unique_ptr<SoftwareProcessor> processor_;
};

}  // namespace pagesaw::cpu
