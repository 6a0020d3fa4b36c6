// What the loader tells: memory size and command line. [multiboot] "Boot information format"
#ifndef GUESTS_SUPPORT_MULTIBOOT_H_
#define GUESTS_SUPPORT_MULTIBOOT_H_

#include <stdint.h>

namespace guest {

struct MultibootInfo {
  uint32_t flags;
  uint32_t mem_lower;  // KiB
  uint32_t mem_upper;  // KiB from 1 MiB on
  uint32_t boot_device;
  uint32_t command_line;
};

// End of the contiguous RAM from 1 MiB, in bytes. 0 if the loader does not say.
uint64_t MemoryEnd(const MultibootInfo& info);

// Whether `word` is on the command line, behind the image's name.
bool HasWord(const MultibootInfo& info, const char* word);

// The decimal number behind `key=`, or `otherwise`.
uint64_t NumberOf(const MultibootInfo& info, const char* key, uint64_t otherwise);

}  // namespace guest

#endif  // GUESTS_SUPPORT_MULTIBOOT_H_
