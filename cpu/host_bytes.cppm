// Accesses to guest memory as host memory. Other processors of the VM read and write it at the same
// time, as their guest pleases: accesses are single, as wide as asked, and the compiler neither
// repeats nor invents them. What thread checkers must know about such races is said here alone.
module;
#include <cstddef>
#include <cstdint>
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PAGESAW_CHECKED_RACES 1
#endif
#endif
#ifndef PAGESAW_CHECKED_RACES
#define PAGESAW_CHECKED_RACES 0
#endif
export module pagesaw.cpu.host_bytes;

namespace pagesaw::cpu::detail {

// A race of bytes is a guest's own; under a thread checker each byte is an atomic access, which it
// accepts and which is slow.
inline constexpr bool kCheckedRaces = PAGESAW_CHECKED_RACES != 0;

inline void CopyByByte(void* to, const void* from, std::size_t bytes, bool backwards) {
  auto* const target = static_cast<unsigned char*>(to);
  const auto* const source = static_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::size_t at = backwards ? bytes - 1 - i : i;
    __atomic_store_n(target + at, __atomic_load_n(source + at, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
  }
}

}  // namespace pagesaw::cpu::detail

export namespace pagesaw::cpu {

// memmove of which either side may be guest memory.
inline void CopyHost(void* to, const void* from, std::size_t bytes) {
  if constexpr (detail::kCheckedRaces) {
    detail::CopyByByte(to, from, bytes, to > from);
  } else {
    __builtin_memmove(to, from, bytes);
  }
}
// memset of guest memory.
inline void FillHost(void* to, unsigned char value, std::size_t bytes) {
  if constexpr (detail::kCheckedRaces) {
    auto* const target = static_cast<unsigned char*>(to);
    for (std::size_t i = 0; i < bytes; ++i) __atomic_store_n(target + i, value, __ATOMIC_RELAXED);
  } else {
    __builtin_memset(to, value, bytes);
  }
}

template <class T>
inline T LoadHost(const void* host) {
  if (reinterpret_cast<std::uintptr_t>(host) % sizeof(T) == 0) {
    return __atomic_load_n(static_cast<const T*>(host), __ATOMIC_RELAXED);
  }
  T value;
  if constexpr (detail::kCheckedRaces) {
    detail::CopyByByte(&value, host, sizeof(T), false);
  } else {
    __builtin_memcpy(&value, host, sizeof(T));
  }
  return value;
}
template <class T>
inline void StoreHost(void* host, T value) {
  if (reinterpret_cast<std::uintptr_t>(host) % sizeof(T) == 0) {
    __atomic_store_n(static_cast<T*>(host), value, __ATOMIC_RELAXED);
  } else if constexpr (detail::kCheckedRaces) {
    detail::CopyByByte(host, &value, sizeof(T), false);
  } else {
    __builtin_memcpy(host, &value, sizeof(T));
  }
}

}  // namespace pagesaw::cpu
