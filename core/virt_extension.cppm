// What a virtualization extension (VMX, SVM) adds to a processor and to a virtual machine. The rest
// of Pagesaw knows extensions by this interface alone.
module;
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.core.virt_extension;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_mode;
import pagesaw.core.page_format;
import pagesaw.core.processor;
export import pagesaw.core.structure_fields;

export namespace pagesaw {

// A format for second-stage (TDP) tables.
struct TdpFormat {
  std::string name;             // unique, e.g. what `format list` prints
  std::string vendor;           // whose processors have it
  bool splits_execute = false;  // supervisor and user execution are told apart
  Level root_level = Level::kPml4;
  // The format on a host whose physical addresses have `physical_bits` bits.
  PageFormat (*make)(unsigned physical_bits) = nullptr;
};

// A refusal by second-stage tables in the extension's own words.
struct ExitDescription {
  std::string name;                 // the event's name in the manual
  std::uint64_t qualification = 0;  // exit qualification, EXITINFO1 or like
  std::string qualification_name;   // which of them; empty: the event has none
};

struct CpuidResult {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr bool operator==(const CpuidResult&) const = default;
};

class VirtExtension {
 public:
  virtual ~VirtExtension() = default;

  virtual std::string_view name() const = 0;
  // The word by which people choose it.
  virtual std::string_view vendor() const = 0;
  // The twelve characters of CPUID leaf 0.
  virtual std::string_view cpuid_vendor() const = 0;

  // How the extension's hardware would report `fault`, met in tables of `format`.
  virtual ExitDescription Describe(const TableFault& fault, const PageFormat& format) const = 0;

  // What the control structure is called; empty if there is none.
  virtual std::string_view structure_name() const { return {}; }
  // What a control structure says of memory: how its guest is translated, and how it was left last.
  // Any bytes have an answer.
  virtual std::vector<StructureField> FieldsOf(StructureBytes) const { return {}; }
  // Whether a page fault of the guest with the error code `code` is its hypervisor's.
  virtual bool InterceptsPageFault(StructureBytes, PageFaultCode) const { return false; }

  // Changes what CPUID answers to `leaf`, `subleaf` for what the extension itself enumerates.
  virtual void AdjustCpuid(std::uint32_t leaf, std::uint32_t subleaf,
                           CpuidResult& result) const = 0;

  // The CPUID feature by which the extension is offered to guests; empty if it never is.
  virtual std::string_view feature() const { return {}; }
  // What a processor that offers it has. Null if it never does.
  virtual std::unique_ptr<VirtUnit> MakeUnit() const { return nullptr; }

  // Paging rules of this vendor's processors, applied to features chosen elsewhere.
  virtual void AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                                    unsigned physical_bits) const = 0;
};

}  // namespace pagesaw
