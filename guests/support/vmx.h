// A hypervisor for Intel processors in miniature: a guest of a few instructions on extended page
// tables, run by VM entries.
//
// Physical memory, in MiB: EPT 4 to 6, the guest's tables 6 to 8, VMX regions at 8. The guest's
// physical addresses are the hypervisor's, by pages of 2 MiB, and of 4 KiB from 6 to 8 MiB.
#ifndef GUESTS_SUPPORT_VMX_H_
#define GUESTS_SUPPORT_VMX_H_

#include <stdint.h>

#include "guests/support/page_tables.h"

// What the guest executes: one access at RDI, then VMCALL.
extern "C" const char guest_read[], guest_write[], guest_fetch[];

namespace guest {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kVmxMemory = 48 * kMiB;
inline constexpr uint64_t kVmxFree = 8 * kMiB + 0x4000;  // behind the regions

// EPT entries.
inline constexpr uint64_t kEptRead = 1, kEptWrite = 2, kEptExecute = 4, kEptUserExecute = 1u << 10;
inline constexpr uint64_t kEptAll = kEptRead | kEptWrite | kEptExecute | kEptUserExecute;
inline constexpr uint64_t kEptAccessed = 1u << 8, kEptDirty = 1u << 9, kWriteBack = 6u << 3;

// Fields of the VMCS.
enum : uint64_t {
  kEptPointer = 0x201a,
  kPrimaryControls = 0x4002,
  kExceptionBitmap = 0x4004,
  kSecondaryControls = 0x401e,
  kEntryControls = 0x4012,
  kExitReason = 0x4402,
  kExitQualification = 0x6400,
  kGuestPhysical = 0x2400,
  kGuestLinear = 0x640a,
  kGuestCr0 = 0x6800,
  kGuestCr3 = 0x6802,
  kGuestCr4 = 0x6804,
};
inline constexpr uint64_t kSecondaryEpt = 1u << 1, kSecondaryUnrestricted = 1u << 7,
                          kSecondaryLog = 1u << 17, kSecondarySplit = 1u << 22;
inline constexpr uint64_t kExitVmcall = 18, kExitViolation = 48, kExitMisconfiguration = 49;

void VmWrite(uint64_t field, uint64_t value);
uint64_t VmRead(uint64_t field);

// Enters VMX operation and describes a guest in 64-bit mode. `own` become its tables, which outlive
// it. With two processors, on the first.
void StartVmx(PageTables& own);
// The same on the second, behind it: the tables are shared.
void StartVmxOnSecond();
// Whether mode-based execute control is there; and turns it on or off.
bool HasSplitExecute();
void SplitExecute(bool on);

// The entry for `gpa` in the EPT table of `level`, whose way is made if need be.
uint64_t& EptEntry(uint64_t gpa, int level);
uint64_t EptRoot();
// The pointer: of 4 levels, or 5.
void SetEptPointer(bool accessed_dirty, int levels = 4);
void ForgetEpt();

// Runs `code` with RDI = `address`, with nothing cached of EPT if it `forgets`. The exit reason.
uint64_t RunVmx(const void* code, uint64_t address, bool forgets = true);

}  // namespace guest

#endif  // GUESTS_SUPPORT_VMX_H_
