module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.machine.acpi_tables;

import pagesaw.machine.apic_registers;
import pagesaw.machine.hpet;
import pagesaw.machine.io_apic;
import pagesaw.machine.power_management;
import pagesaw.machine.small_devices;

namespace pagesaw {
namespace {

constexpr unsigned kSciIrq = PowerManagement::kSciIrq;

class Bytes {
 public:
  Bytes& U8(std::uint64_t value) { return Append(value, 1); }
  Bytes& U16(std::uint64_t value) { return Append(value, 2); }
  Bytes& U32(std::uint64_t value) { return Append(value, 4); }
  Bytes& U64(std::uint64_t value) { return Append(value, 8); }
  Bytes& Text(std::string_view text) {
    for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  Bytes& Put(const Bytes& others) {
    bytes_.insert(bytes_.end(), others.bytes_.begin(), others.bytes_.end());
    return *this;
  }
  Bytes& Zeroes(std::size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  // A generic address. [acpi] "Generic Address Structure"
  Bytes& Address(std::uint8_t space, std::uint8_t bits, std::uint64_t address) {
    return U8(space).U8(bits).U8(0).U8(0).U64(address);
  }
  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte>& data() { return bytes_; }

 private:
  Bytes& Append(std::uint64_t value, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      bytes_.push_back(static_cast<std::byte>(value >> (8 * i) & 0xff));
    }
    return *this;
  }
  std::vector<std::byte> bytes_;
};

// Makes the bytes from `first` sum to 0 by the one at `at`.
void Balance(std::span<std::byte> bytes, std::size_t at) {
  unsigned sum = 0;
  for (const std::byte byte : bytes) sum += static_cast<unsigned>(byte);
  bytes[at] = static_cast<std::byte>(0x100 - (sum & 0xff) + static_cast<unsigned>(bytes[at]));
}

constexpr std::size_t kHeaderBytes = 36;

// A table of `body` behind a header. [acpi] "System Description Table Header"
std::vector<std::byte> Table(std::string_view signature, std::uint8_t revision, const Bytes& body) {
  Bytes table;
  table.Text(signature).U32(kHeaderBytes + body.size()).U8(revision).U8(0);
  table.Text("PAGSAW").Text("PAGESAW ").U32(1).Text("PGSW").U32(1).Put(body);
  Balance(table.data(), 9);
  return table.data();
}

std::vector<std::byte> MakeMadt(unsigned cpu_count) {
  Bytes body;
  body.U32(apic::kBaseDefault).U32(1);  // there are PICs as well
  for (unsigned i = 0; i < cpu_count; ++i) body.U8(0).U8(8).U8(i).U8(i).U32(1);
  body.U8(1).U8(12).U8(0).U8(0).U32(IoApic::kBase).U32(0);
  body.U8(2).U8(10).U8(0).U8(0).U32(2).U16(0);                // IRQ 0 is pin 2
  body.U8(2).U8(10).U8(0).U8(kSciIrq).U32(kSciIrq).U16(0xd);  // level, active high
  body.U8(4).U8(6).U8(0xff).U16(0).U8(1);                     // NMI at LINT1 of all
  return Table("APIC", 3, body);
}

std::vector<std::byte> MakeHpet() {
  Bytes body;
  body.U32(static_cast<std::uint32_t>(Hpet::kCapabilities)).Address(0, 64, Hpet::kBase);
  body.U8(0).U16(0x80).U8(0);
  return Table("HPET", 1, body);
}

// A package of AML: `opcode`, its length, which counts itself, and `body`. [acpi] "Package Length
// Encoding"
void Package(Bytes& to, std::initializer_list<std::uint8_t> opcode, const Bytes& body) {
  for (const std::uint8_t byte : opcode) to.U8(byte);
  const std::size_t length = body.size() + 2;  // two bytes tell up to 4095
  to.U8(0x40 | (length & 0xf)).U8(length >> 4).Put(body);
}

// Device (Vnnn) {Name (_HID, ...) Name (_UID, ...) Name (_CRS, ResourceTemplate () {...})}
void PutDevice(Bytes& scope, const AcpiDevice& device, unsigned number) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  Bytes resources;
  resources.U8(0x86).U16(9).U8(1).U32(device.base).U32(device.bytes);  // Memory32Fixed, writable
  resources.U8(0x89).U16(6).U8(0x01).U8(1).U32(device.irq);            // Interrupt, level, high
  resources.U8(0x79).U8(0);
  Bytes buffer;
  buffer.U8(0x0a).U8(resources.size()).Put(resources);
  Bytes body;
  body.Text("VIO").Text(kDigits.substr(number, 1));
  body.U8(0x08).Text("_HID").U8(0x0d).Text(device.id).U8(0);
  body.U8(0x08).Text("_UID").U8(0x0a).U8(number);
  body.U8(0x08).Text("_CRS");
  Package(body, {0x11}, buffer);
  Package(scope, {0x5b, 0x82}, body);
}

std::vector<std::byte> MakeDsdt(std::span<const AcpiDevice> devices) {
  Bytes body;
  // Name (\_S3, Package () {1, 1, 0, 0}), and so on
  const auto sleep_state = [&body](std::string_view name, std::uint8_t type) {
    body.U8(0x08).Text(name).U8(0x12).U8(8).U8(4);
    body.U8(0x0a).U8(type).U8(0x0a).U8(type).U8(0).U8(0);
  };
  sleep_state("_S3_", PowerManagement::kSuspendToRam);
  sleep_state("_S5_", PowerManagement::kSoftOff);
  if (!devices.empty()) {
    Bytes scope;
    scope.Text("\\_SB_");
    for (unsigned i = 0; i < devices.size(); ++i) PutDevice(scope, devices[i], i);
    Package(body, {0x10}, scope);
  }
  return Table("DSDT", 2, body);
}

std::vector<std::byte> MakeFacs() {
  Bytes facs;
  facs.Text("FACS").U32(64).Zeroes(56);
  return facs.data();
}

// [acpi] "Fixed ACPI Description Table (FADT)"
std::vector<std::byte> MakeFadt(std::uint64_t facs, std::uint64_t dsdt) {
  using Pm = PowerManagement;
  // WBINVD; no fixed buttons; a reset register.
  constexpr std::uint32_t kFlags = 1u << 0 | 1u << 4 | 1u << 5 | 1u << 10;
  constexpr std::uint16_t kLegacyDevices = 1u << 0;  // but no 8042 that a keyboard could be at
  Bytes body;
  body.U32(facs).U32(dsdt).U8(0).U8(0).U16(kSciIrq);
  body.U32(0).U8(0).U8(0).U8(0).U8(0);  // no SMI: ACPI is on for good
  body.U32(Pm::kEvents).U32(0).U32(Pm::kControl).U32(0).U32(0).U32(Pm::kTimer).U32(0).U32(0);
  body.U8(4).U8(2).U8(0).U8(4).U8(0).U8(0).U8(0).U8(0);
  body.U16(0xffff).U16(0xffff).U16(0).U16(0).U8(0).U8(0).U8(0).U8(0).U8(0x32);
  body.U16(kLegacyDevices).U8(0).U32(kFlags);
  body.Address(1, 8, KeyboardController::kCommandPort).U8(KeyboardController::kReset);
  body.U16(0).U8(0);
  body.U64(facs).U64(dsdt);
  body.Address(1, 32, Pm::kEvents).Address(0, 0, 0).Address(1, 16, Pm::kControl);
  body.Address(0, 0, 0).Address(0, 0, 0).Address(1, 32, Pm::kTimer);
  body.Address(0, 0, 0).Address(0, 0, 0);
  return Table("FACP", 3, body);
}

constexpr std::size_t kRsdpBytes = 36;

std::vector<std::byte> MakeRsdp(std::uint64_t rsdt, std::uint64_t xsdt) {
  Bytes rsdp;
  rsdp.Text("RSD PTR ").U8(0).Text("PAGSAW").U8(2).U32(rsdt);
  rsdp.U32(kRsdpBytes).U64(xsdt).U32(0);
  Balance(std::span(rsdp.data()).first(20), 8);
  Balance(rsdp.data(), 32);
  return rsdp.data();
}

// Tables one behind the other, each on 64 bytes.
class Area {
 public:
  std::uint64_t Place(const std::vector<std::byte>& table) {
    bytes_.resize((bytes_.size() + 63) & ~std::size_t{63});
    const std::uint64_t at = kAcpiTables.bits() + bytes_.size();
    bytes_.insert(bytes_.end(), table.begin(), table.end());
    return at;
  }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_ = std::vector<std::byte>(kRsdpBytes);
};

}  // namespace

std::vector<std::byte> MakeAcpiTables(unsigned cpu_count, std::span<const AcpiDevice> devices) {
  Area area;
  const std::uint64_t facs = area.Place(MakeFacs());
  const std::uint64_t dsdt = area.Place(MakeDsdt(devices));
  const std::array<std::uint64_t, 3> tables = {
      area.Place(MakeFadt(facs, dsdt)), area.Place(MakeMadt(cpu_count)), area.Place(MakeHpet())};
  Bytes narrow, wide;
  for (const std::uint64_t table : tables) {
    narrow.U32(table);
    wide.U64(table);
  }
  const std::uint64_t rsdt = area.Place(Table("RSDT", 1, narrow));
  const std::uint64_t xsdt = area.Place(Table("XSDT", 1, wide));
  const std::vector<std::byte> rsdp = MakeRsdp(rsdt, xsdt);
  std::copy(rsdp.begin(), rsdp.end(), area.bytes().begin());
  return std::move(area.bytes());
}

}  // namespace pagesaw
