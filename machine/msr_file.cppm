// The model-specific registers that are not the processor's own: the local APIC's, and counters
// that a guest may clear without being told that they exist.
module;
#include <cstdint>
export module pagesaw.machine.msr_file;

import pagesaw.core.processor;
import pagesaw.machine.local_apic;

export namespace pagesaw {

struct MsrOptions {
  bool tsc_deadline = true;          // IA32_TSC_DEADLINE exists
  bool legacy_amd_counters = false;  // C0010000h to C0010007h and C0010200h to C001020Bh exist
};

class MsrFile {
 public:
  MsrFile(LocalApic& apic, const MsrOptions& options) : apic_(apic), options_(options) {}

  // Carries out `access`, of kind kMsrRead or kMsrWrite; refuses (#GP) what does not exist.
  void Dispatch(BusAccess& access);

 private:
  bool Read(std::uint32_t index, std::uint64_t& value);
  bool Write(std::uint32_t index, std::uint64_t value);
  bool IsCounter(std::uint32_t index) const;

  LocalApic& apic_;
  const MsrOptions options_;
};

}  // namespace pagesaw
