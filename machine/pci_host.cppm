// The host bridge of PCI bus 0 by configuration mechanism 1, and the device that test suites look
// for there. [pci] "Configuration Space"
module;
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.pci_host;

import pagesaw.machine.device;

export namespace pagesaw {

// A function of a device on the bus: configuration space with up to six base addresses.
class PciFunction {
 public:
  struct Identity {
    std::uint16_t vendor = 0, device = 0;
    std::uint32_t class_code = 0;  // class, subclass and interface: 24 bits
    std::uint8_t revision = 0;
    std::uint8_t header_type = 0;
  };
  struct BaseAddress {
    BusSpace space = BusSpace::kMmio;
    std::uint32_t bytes = 0;    // a power of two; 0: none
    std::uint32_t address = 0;  // as firmware left it
  };

  explicit PciFunction(const Identity& identity) : identity_(identity) {}
  virtual ~PciFunction() = default;

  // `offset` is a multiple of 4.
  std::uint32_t ReadConfiguration(unsigned offset) const;
  void WriteConfiguration(unsigned offset, std::uint32_t value, std::uint32_t mask);
  // The base address that claims `address` now, and the offset behind it; -1 if none does.
  int Claims(BusSpace space, std::uint64_t address, std::uint64_t& offset) const;

  virtual std::uint64_t Read(unsigned, std::uint64_t, unsigned) { return ~std::uint64_t{0}; }
  virtual void Write(unsigned, std::uint64_t, unsigned, std::uint64_t) {}

 protected:
  void SetBaseAddress(unsigned index, const BaseAddress& base);

 private:
  const Identity identity_;
  std::array<BaseAddress, 6> bases_ = {};
  std::uint16_t command_ = 0;
  std::uint8_t interrupt_line_ = 0;
};

// pci-testdev: counts writes that fit what the guest chose to test; one base address in memory and
// one of ports, which hold the same.
class PciTestFunction final : public PciFunction {
 public:
  PciTestFunction(std::uint32_t memory, std::uint32_t ports);

  std::uint64_t Read(unsigned base, std::uint64_t offset, unsigned bytes) override;
  void Write(unsigned base, std::uint64_t offset, unsigned bytes, std::uint64_t value) override;

 private:
  struct Header;
  std::vector<std::uint8_t> HeaderBytes(unsigned base) const;

  std::array<std::uint8_t, 2> test_ = {0xff, 0xff};  // chosen; FFh: none
  std::array<std::uint32_t, 2> count_ = {};
};

// Ports CF8h to CFFh, and the windows in which functions' base addresses may lie.
class PciHost final : public Device {
 public:
  static constexpr std::uint64_t kMemoryWindow = 0xf000'0000, kMemoryWindowBytes = 0x0ec0'0000;
  static constexpr std::uint64_t kPortWindow = 0xc000, kPortWindowPorts = 0x1000;

  PciHost();

  std::string_view name() const override { return "pci-host"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  PciFunction* Addressed() const;
  PciFunction* FindClaim(BusSpace space, std::uint64_t address, unsigned& base,
                         std::uint64_t& offset) const;

  std::mutex mutex_;
  std::uint32_t address_ = 0;
  std::array<std::unique_ptr<PciFunction>, 32> functions_;  // by device number; function 0 only
};

}  // namespace pagesaw
