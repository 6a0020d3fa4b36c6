// Prints what the processor says of its virtualization extension: whether there is VMX or SVM, and
// then the capability MSRs, or CPUID leaf 8000000Ah. Exits with status 1.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/processor.h"
#include "guests/support/traps.h"

extern "C" void GuestMain(const guest::MultibootInfo*) {
  using namespace guest;
  InitConsole();
  InitTraps();
  const bool vmx = (Cpuid(1).ecx >> 5 & 1) != 0;
  const bool svm = (Cpuid(0x8000'0001).ecx >> 2 & 1) != 0;
  Print("vmx ", uint64_t{vmx}, "\nsvm ", uint64_t{svm}, "\n");
  for (uint32_t msr = 0x480; vmx && msr <= 0x490; ++msr) {
    Print("msr-", Hex{msr}, " ", Hex{ReadMsr(msr)}, "\n");
  }
  const CpuidResult leaf = Cpuid(0x8000'000a);
  Print("revision ", Hex{leaf.eax}, "\nasids ", Hex{leaf.ebx}, "\nfeatures ", Hex{leaf.edx}, "\n");
  Exit(0);
}
