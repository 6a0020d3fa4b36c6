#include "guests/support/multiboot.h"

namespace guest {
namespace {

constexpr uint32_t kHasMemory = 1u << 0;
constexpr uint32_t kHasCommandLine = 1u << 2;

const char* CommandLine(const MultibootInfo& info) {
  if ((info.flags & kHasCommandLine) == 0 || info.command_line == 0) return "";
  return reinterpret_cast<const char*>(static_cast<uintptr_t>(info.command_line));
}

const char* NextWord(const char* at) {
  while (*at != 0 && *at != ' ') ++at;
  while (*at == ' ') ++at;
  return at;
}

// What follows `prefix` in the word `at`, or null.
const char* Behind(const char* at, const char* prefix) {
  while (*prefix != 0) {
    if (*at++ != *prefix++) return nullptr;
  }
  return at;
}

}  // namespace

uint64_t MemoryEnd(const MultibootInfo& info) {
  if ((info.flags & kHasMemory) == 0) return 0;
  return (uint64_t{info.mem_upper} + 1024) * 1024;
}

bool HasWord(const MultibootInfo& info, const char* word) {
  for (const char* at = NextWord(CommandLine(info)); *at != 0; at = NextWord(at)) {
    const char* end = Behind(at, word);
    if (end != nullptr && (*end == 0 || *end == ' ')) return true;
  }
  return false;
}

uint64_t NumberOf(const MultibootInfo& info, const char* key, uint64_t otherwise) {
  for (const char* at = NextWord(CommandLine(info)); *at != 0; at = NextWord(at)) {
    const char* digit = Behind(at, key);
    if (digit == nullptr || *digit != '=') continue;
    uint64_t number = 0;
    for (++digit; *digit >= '0' && *digit <= '9'; ++digit) {
      number = number * 10 + static_cast<uint64_t>(*digit - '0');
    }
    return number;
  }
  return otherwise;
}

}  // namespace guest
