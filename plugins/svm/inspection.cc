module;
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>
module pagesaw.plugins.svm.inspection;

import pagesaw.plugins.svm.svm_bits;

namespace pagesaw::svm {
namespace {

constexpr StructureBit kNestedControls[] = {{kNestedEnable, "NP_ENABLE"},
                                            {kNestedExecuteTrap, "guest mode execute trap"}};
constexpr StructureBit kControlAccesses[] = {{1u << 0, "CR0 reads"},   {1u << 3, "CR3 reads"},
                                             {1u << 4, "CR4 reads"},   {1u << 16, "CR0 writes"},
                                             {1u << 19, "CR3 writes"}, {1u << 20, "CR4 writes"}};
constexpr StructureBit kExceptions[] = {{1u << 14, "#PF"}};
constexpr StructureBit kIntercepts3[] = {{1u << 25, "INVLPG"}, {1u << 26, "INVLPGA"}};

std::string TlbControlText(std::uint8_t value) {
  switch (static_cast<TlbControl>(value)) {
    case TlbControl::kNothing:
      return "nothing";
    case TlbControl::kEverything:
      return "flush everything";
    case TlbControl::kGuest:
      return "flush this guest's entries";
    case TlbControl::kGuestNonGlobal:
      return "flush this guest's non-global entries";
  }
  return {};
}

// Codes from 60h on, one for each bit of the words at 00Ch, 010h and 014h.
// [amd/vol2] "SVM Intercept Exit Codes"
constexpr std::uint64_t kFirstBitCode = 0x60;
constexpr const char* kBitCodes[] = {
    "VMEXIT_INTR",        "VMEXIT_NMI",        "VMEXIT_SMI",
    "VMEXIT_INIT",        "VMEXIT_VINTR",      "VMEXIT_CR0_SEL_WRITE",
    "VMEXIT_IDTR_READ",   "VMEXIT_GDTR_READ",  "VMEXIT_LDTR_READ",
    "VMEXIT_TR_READ",     "VMEXIT_IDTR_WRITE", "VMEXIT_GDTR_WRITE",
    "VMEXIT_LDTR_WRITE",  "VMEXIT_TR_WRITE",   "VMEXIT_RDTSC",
    "VMEXIT_RDPMC",       "VMEXIT_PUSHF",      "VMEXIT_POPF",
    "VMEXIT_CPUID",       "VMEXIT_RSM",        "VMEXIT_IRET",
    "VMEXIT_SWINT",       "VMEXIT_INVD",       "VMEXIT_PAUSE",
    "VMEXIT_HLT",         "VMEXIT_INVLPG",     "VMEXIT_INVLPGA",
    "VMEXIT_IOIO",        "VMEXIT_MSR",        "VMEXIT_TASK_SWITCH",
    "VMEXIT_FERR_FREEZE", "VMEXIT_SHUTDOWN",   "VMEXIT_VMRUN",
    "VMEXIT_VMMCALL",     "VMEXIT_VMLOAD",     "VMEXIT_VMSAVE",
    "VMEXIT_STGI",        "VMEXIT_CLGI",       "VMEXIT_SKINIT",
    "VMEXIT_RDTSCP",      "VMEXIT_ICEBP",      "VMEXIT_WBINVD",
    "VMEXIT_MONITOR",     "VMEXIT_MWAIT",      "VMEXIT_MWAIT_CONDITIONAL",
    "VMEXIT_XSETBV",      "VMEXIT_RDPRU",      "VMEXIT_EFER_WRITE_TRAP"};

std::string ExitCodeText(std::uint64_t code) {
  constexpr std::uint64_t kInvpcid = 0xa2, kNestedFault = 0x400, kInvalid = ~std::uint64_t{0};
  const auto numbered = [code](const char* name, const char* behind) {
    return name + std::to_string(code & 15) + behind;
  };
  if (code < 0x10) return numbered("VMEXIT_CR", "_READ");
  if (code < 0x20) return numbered("VMEXIT_CR", "_WRITE");
  if (code < 0x30) return numbered("VMEXIT_DR", "_READ");
  if (code < 0x40) return numbered("VMEXIT_DR", "_WRITE");
  if (code < kFirstBitCode) return "VMEXIT_EXCP" + std::to_string(code - 0x40);
  if (code - kFirstBitCode < std::size(kBitCodes)) return kBitCodes[code - kFirstBitCode];
  switch (code) {
    case kInvpcid:
      return "VMEXIT_INVPCID";
    case kNestedFault:
      return "VMEXIT_NPF";
    case kInvalid:
      return "VMEXIT_INVALID";
    default:
      return {};
  }
}

// Bits of EXITINFO1. [amd/vol2] "Nested versus Guest Page Faults, Fault Ordering"
constexpr StructureBit kFaultInfo[] = {{1u << 0, "P"},
                                       {1u << 1, "W"},
                                       {1u << 2, "U"},
                                       {1u << 3, "RSVD"},
                                       {1u << 4, "I/D"},
                                       {std::uint64_t{1} << 32, "final address"},
                                       {std::uint64_t{1} << 33, "guest table"}};

class Collector {
 public:
  explicit Collector(const Vmcb& vmcb) : vmcb_(vmcb) {}

  template <class T>
  void Add(const char* name, Field<T> field, std::string meaning = {}) {
    fields_.push_back({.name = name,
                       .value = vmcb_.Get(field),
                       .bytes = sizeof(T),
                       .meaning = std::move(meaning)});
  }
  template <class T>
  void Add(const char* name, Field<T> field, std::span<const StructureBit> names) {
    Add(name, field, NamesOfBits(vmcb_.Get(field), names));
  }
  std::vector<StructureField> Take() { return std::move(fields_); }

 private:
  const Vmcb& vmcb_;
  std::vector<StructureField> fields_;
};

}  // namespace

std::vector<StructureField> FieldsOf(const Vmcb& vmcb) {
  constexpr std::uint64_t kExitNestedFault = 0x400;
  Collector to(vmcb);
  to.Add("control-register intercepts", field::kInterceptControl, kControlAccesses);
  to.Add("exception intercepts", field::kInterceptExceptions, kExceptions);
  to.Add("intercepts at 00Ch", field::kIntercept3, kIntercepts3);
  to.Add("nested control", field::kNestedControl, kNestedControls);
  to.Add("nCR3", field::kNestedCr3);
  to.Add("ASID", field::kAsid);
  to.Add("TLB_CONTROL", field::kTlbControl, TlbControlText(vmcb.Get(field::kTlbControl)));
  to.Add("G_PAT", field::kGuestPat);
  to.Add("CR0", field::kCr0);
  to.Add("CR2", field::kCr2);
  to.Add("CR3", field::kCr3);
  to.Add("CR4", field::kCr4);
  to.Add("EFER", field::kEfer);
  to.Add("CPL", field::kCpl);
  to.Add("RIP", field::kRip);
  const std::uint64_t code = vmcb.Get(field::kExitCode);
  to.Add("EXITCODE", field::kExitCode, ExitCodeText(code));
  if (code == kExitNestedFault) {
    to.Add("EXITINFO1", field::kExitInfo1, kFaultInfo);
  } else {
    to.Add("EXITINFO1", field::kExitInfo1);
  }
  to.Add("EXITINFO2", field::kExitInfo2);
  to.Add("EXITINTINFO", field::kExitInterrupt);
  return to.Take();
}

bool InterceptsPageFault(const Vmcb& vmcb) {
  constexpr unsigned kPf = 14;
  return (vmcb.Get(field::kInterceptExceptions) >> kPf & 1) != 0;
}

}  // namespace pagesaw::svm
