// What a control block intercepts, and the exit code of each thing. [amd/vol2] "Intercept
// Operation", "SVM Intercept Exit Codes"
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.svm.intercepts;

import pagesaw.core.address;
import pagesaw.core.guest_mode;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

inline constexpr std::uint64_t kExitInvalid = ~std::uint64_t{0};
inline constexpr std::uint64_t kExitException = 0x40;  // + vector
inline constexpr std::uint64_t kExitNestedFault = 0x400;

// How many bytes the permission maps have. [amd/vol2] "IOIO Intercepts", "MSR Intercepts"
inline constexpr std::uint64_t kIoMapBytes = 3 * kPageBytes;
inline constexpr std::uint64_t kMsrMapBytes = 2 * kPageBytes;

// The intercepts of one VMRUN, as the control block had them then.
class Intercepts {
 public:
  Intercepts() = default;
  explicit Intercepts(const Vmcb& vmcb);

  // VMRUN must be intercepted.
  bool intercepts_vmrun() const { return Has(VirtInstruction::kVmrun); }
  bool intercepts_interrupt() const { return Has(Intercept::kInterrupt); }
  bool intercepts_nmi() const { return Has(Intercept::kNmi); }
  bool uses_io_map() const;
  bool uses_msr_map() const;
  Gpa io_map() const { return io_map_; }
  Gpa msr_map() const { return msr_map_; }

  bool Has(VirtInstruction instruction) const;
  // What the processor is to ask about.
  GuestEntry Entry() const;
  // The exit code of `event`, or nullopt if it is not intercepted. Reads the permission maps, which
  // read as ones where there is no memory.
  std::optional<std::uint64_t> ExitCodeOf(VirtHost& host, const InterceptedEvent& event) const;

 private:
  bool Has(Intercept what) const;
  std::optional<std::uint64_t> ControlWrite(VirtHost& host, const InterceptedEvent& event) const;
  bool PortIntercepted(VirtHost& host, const PortAccess& io) const;
  bool MsrIntercepted(VirtHost& host, std::uint32_t index, bool write) const;

  std::uint32_t control_ = 0, debug_ = 0, exceptions_ = 0;
  std::uint32_t words_[3] = {};  // at 00Ch, 010h and 014h
  Gpa io_map_ = {}, msr_map_ = {};
};

}  // namespace pagesaw::svm
