// Selectors of the guests' GDT (boot.S), for C++ and assembly. The order of the user segments is
// the one that SYSRET wants. [intel/vol2] "SYSRET"
#ifndef GUESTS_SUPPORT_SELECTORS_H_
#define GUESTS_SUPPORT_SELECTORS_H_

#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE32 0x1b
#define USER_DATA 0x23
#define USER_CODE 0x2b
#define TASK_STATE 0x30
#define KERNEL_CODE32 0x40

#endif  // GUESTS_SUPPORT_SELECTORS_H_
