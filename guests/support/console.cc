#include "guests/support/console.h"

#include "guests/support/processor.h"

namespace guest {
namespace {

// [ns/16550d] "PC16550D UART with FIFOs": THR, LCR and LSR from the base port.
constexpr uint16_t kBase = 0x3f8;
constexpr uint16_t kLineControl = kBase + 3;
constexpr uint16_t kLineStatus = kBase + 5;
constexpr uint8_t kEightBits = 3;
constexpr uint8_t kTransmitterEmpty = 1u << 5;

void PrintChar(char c) {
  while ((In8(kLineStatus) & kTransmitterEmpty) == 0) {
  }
  Out8(kBase, static_cast<uint8_t>(c));
}

void PrintNumber(uint64_t value, unsigned base, unsigned digits) {
  char text[20];
  unsigned count = 0;
  do {
    text[count++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  for (unsigned i = count; i < digits; ++i) PrintChar('0');
  while (count > 0) PrintChar(text[--count]);
}

}  // namespace

void InitConsole() { Out8(kLineControl, kEightBits); }

void PrintOne(const char* text) {
  for (; *text != 0; ++text) PrintChar(*text);
}

void PrintOne(uint64_t value) { PrintNumber(value, 10, 1); }

void PrintOne(Hex hex) {
  PrintOne("0x");
  PrintNumber(hex.value, 16, hex.digits);
}

void PrintOne(Padded padded) {
  unsigned count = 0;
  for (const char* c = padded.text; *c != 0; ++c, ++count) PrintChar(*c);
  for (; count < padded.width; ++count) PrintChar(' ');
}

}  // namespace guest
