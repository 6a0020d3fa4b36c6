// Linux's KVM as a second opinion on walks of linear addresses, where this machine has it: for
// tests and benchmarks. KVM need not be able to run anything for that.
module;
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
export module pagesaw.mmu.kvm_translator;

import pagesaw.core.paging_state;

export namespace pagesaw {

class KvmTranslator {
 public:
  // A VM with one processor over `bytes` bytes at `memory`, which stand at guest-physical address 0
  // and must outlive it; or, as words, why there is none.
  static std::variant<std::unique_ptr<KvmTranslator>, std::string> Open(std::byte* memory,
                                                                        std::uint64_t bytes);
  ~KvmTranslator();
  KvmTranslator(const KvmTranslator&) = delete;
  KvmTranslator& operator=(const KvmTranslator&) = delete;

  // What KVM's processor is: widths and what is reserved in tables.
  const PagingFeatures& features() const { return features_; }

  // Loads control registers; the PDPTEs of PAE paging come from memory. False if KVM refuses them.
  bool Load(const PagingState& state);
  // Where a supervisor's read of `linear` goes, or 0 in `valid` if it faults. Nothing if KVM fails.
  struct Answer {
    bool valid = false;
    std::uint64_t physical = 0;
  };
  std::optional<Answer> Translate(std::uint64_t linear) const;

 private:
  KvmTranslator() = default;

  // Of the open files; each is -1 until it is open.
  int kvm_ = -1, vm_ = -1, vcpu_ = -1;
  PagingFeatures features_;
};

}  // namespace pagesaw
