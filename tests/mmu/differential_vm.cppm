// A VM made of chance whose every access is compared with what the manuals allow.
module;
#include <cstdint>
#include <optional>
#include <string>
export module pagesaw.tests.mmu.differential_vm;

export namespace pagesaw {

class DifferentialVm {
 public:
  virtual ~DifferentialVm() = default;

  // One random step of one vCPU or of the host. A complaint, or nothing.
  virtual std::optional<std::string> Step() = 0;
  // Looks at every SPTE that some vCPU may use now: none may allow what the guest's tables do not.
  virtual std::optional<std::string> CheckAllSptes() const = 0;

  // What the VM is, and the registers of the vCPU that made the last step.
  virtual std::string Describe() const = 0;
  std::uint64_t accesses() const { return accesses_; }
  // Accesses that might have ended in too many ways to list them.
  std::uint64_t unchecked() const { return unchecked_; }

 protected:
  std::uint64_t accesses_ = 0;
  std::uint64_t unchecked_ = 0;
};

}  // namespace pagesaw
