// The ACPI tables that firmware would leave: who the processors are, where interrupts and timers
// are, and how the machine is switched off. [acpi] "ACPI Software Programming Model"
module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>
export module pagesaw.machine.acpi_tables;

import pagesaw.core.address;

export namespace pagesaw {

// Where the RSDP lies: in the area that operating systems search, in memory that boot loaders call
// reserved. The other tables follow it.
inline constexpr Gpa kAcpiTables(0xe'0000);

// Where a guest says, as 32 bits, where it wants to wake up: the FACS's firmware waking vector.
inline constexpr Gpa kWakingVector(kAcpiTables.bits() + 0x40 + 12);

// A device that no bus enumerates: an identification, registers in memory and an interrupt, level
// triggered and active high.
struct AcpiDevice {
  std::string_view id;  // as "LNRO0005"
  std::uint32_t base = 0, bytes = 0;
  unsigned irq = 0;
};

// All tables, the RSDP first, as they are to lie at kAcpiTables. At most 16 devices.
std::vector<std::byte> MakeAcpiTables(unsigned cpu_count, std::span<const AcpiDevice> devices = {});

}  // namespace pagesaw
