// The serial port at 3F8h, polled, and printing on it.
#ifndef GUESTS_SUPPORT_CONSOLE_H_
#define GUESTS_SUPPORT_CONSOLE_H_

#include <stdint.h>

namespace guest {

struct Hex {
  uint64_t value;
  unsigned digits = 0;  // at least so many
};

// Text padded with blanks to a width.
struct Padded {
  const char* text;
  unsigned width;
};

void InitConsole();
void PrintOne(const char* text);
void PrintOne(uint64_t value);
void PrintOne(Hex hex);
void PrintOne(Padded padded);

template <typename... Args>
void Print(Args... args) {
  (PrintOne(args), ...);
}

}  // namespace guest

#endif  // GUESTS_SUPPORT_CONSOLE_H_
