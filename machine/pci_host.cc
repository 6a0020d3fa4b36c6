module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>
module pagesaw.machine.pci_host;

namespace pagesaw {
namespace {

constexpr std::uint64_t kConfigAddress = 0xcf8, kConfigData = 0xcfc;
constexpr std::uint32_t kConfigEnable = 1u << 31;
constexpr std::uint16_t kCommandPorts = 1, kCommandMemory = 2, kCommandMaster = 4;
constexpr std::array kRanges = {
    BusRange{BusSpace::kPort, kConfigAddress, 8},
    BusRange{BusSpace::kPort, PciHost::kPortWindow, PciHost::kPortWindowPorts},
    BusRange{BusSpace::kMmio, PciHost::kMemoryWindow, PciHost::kMemoryWindowBytes}};

// Configuration registers. [pci] "Configuration Space Header"
constexpr unsigned kIdentity = 0x00, kCommandStatus = 0x04, kClassRevision = 0x08, kHeader = 0x0c,
                   kFirstBase = 0x10, kLastBase = 0x24, kInterrupt = 0x3c;

}  // namespace

// -- configuration space

void PciFunction::SetBaseAddress(unsigned index, const BaseAddress& base) {
  bases_[index] = base;
  command_ |= base.space == BusSpace::kMmio ? kCommandMemory : kCommandPorts;
}

std::uint32_t PciFunction::ReadConfiguration(unsigned offset) const {
  if (offset >= kFirstBase && offset <= kLastBase) {
    const BaseAddress& base = bases_[(offset - kFirstBase) / 4];
    return base.bytes == 0 ? 0 : base.address | (base.space == BusSpace::kPort ? 1 : 0);
  }
  switch (offset) {
    case kIdentity:
      return std::uint32_t{identity_.device} << 16 | identity_.vendor;
    case kCommandStatus:
      return command_;
    case kClassRevision:
      return identity_.class_code << 8 | identity_.revision;
    case kHeader:
      return std::uint32_t{identity_.header_type} << 16;
    case kInterrupt:
      return interrupt_line_;
    default:
      return 0;
  }
}

void PciFunction::WriteConfiguration(unsigned offset, std::uint32_t value, std::uint32_t mask) {
  value = (ReadConfiguration(offset) & ~mask) | (value & mask);
  if (offset >= kFirstBase && offset <= kLastBase) {
    BaseAddress& base = bases_[(offset - kFirstBase) / 4];
    // A write of ones leaves the size to be read.
    if (base.bytes != 0) base.address = value & ~(base.bytes - 1);
  } else if (offset == kCommandStatus) {
    command_ = value & (kCommandPorts | kCommandMemory | kCommandMaster);
  } else if (offset == kInterrupt) {
    interrupt_line_ = static_cast<std::uint8_t>(value);
  }
}

int PciFunction::Claims(BusSpace space, std::uint64_t address, std::uint64_t& offset) const {
  const bool on = (command_ & (space == BusSpace::kMmio ? kCommandMemory : kCommandPorts)) != 0;
  for (std::size_t i = 0; on && i < bases_.size(); ++i) {
    const BaseAddress& base = bases_[i];
    if (base.space != space || address - base.address >= base.bytes) continue;
    offset = address - base.address;
    return static_cast<int>(i);
  }
  return -1;
}

// -- the test function

namespace {

// The header that a base address begins with; the byte at 0 chooses a test.
// test u8, width u8, pad u8[2], offset u32, data u8, pad u8[3], count u32, name
constexpr std::size_t kOffsetOfWidth = 1, kOffsetOfOffset = 4, kOffsetOfData = 8,
                      kOffsetOfCount = 12, kOffsetOfName = 16;
constexpr std::uint32_t kTestOffset = 2048;
constexpr std::uint8_t kTestData = 0xfa;
constexpr std::array<std::string_view, 2> kTestNames = {"mmio-no-eventfd:PCI",
                                                        "portio-no-eventfd:PCI"};
constexpr std::uint32_t kTestMemoryBytes = 4096, kTestPorts = 256;
constexpr std::uint32_t kTestPortOffset = 128;

}  // namespace

PciTestFunction::PciTestFunction(std::uint32_t memory, std::uint32_t ports)
    : PciFunction({.vendor = 0x1b36, .device = 0x0005, .class_code = 0xff0000}) {
  SetBaseAddress(0, {.space = BusSpace::kMmio, .bytes = kTestMemoryBytes, .address = memory});
  SetBaseAddress(1, {.space = BusSpace::kPort, .bytes = kTestPorts, .address = ports});
}

std::vector<std::uint8_t> PciTestFunction::HeaderBytes(unsigned base) const {
  std::vector<std::uint8_t> bytes(kOffsetOfName);
  const auto put = [&bytes](std::size_t at, std::uint32_t value) {
    for (unsigned i = 0; i < 4; ++i) bytes[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
  };
  bytes[0] = test_[base];
  if (test_[base] != 0) return bytes;  // no such test: no name, width 0
  bytes[kOffsetOfWidth] = 1;
  put(kOffsetOfOffset, base == 0 ? kTestOffset : kTestPortOffset);
  bytes[kOffsetOfData] = kTestData;
  put(kOffsetOfCount, count_[base]);
  for (const char c : kTestNames[base]) bytes.push_back(static_cast<std::uint8_t>(c));
  bytes.push_back(0);
  return bytes;
}

std::uint64_t PciTestFunction::Read(unsigned base, std::uint64_t offset, unsigned bytes) {
  const std::vector<std::uint8_t> header = HeaderBytes(base);
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    if (offset + i < header.size()) value |= std::uint64_t{header[offset + i]} << (8 * i);
  }
  return value;
}

void PciTestFunction::Write(unsigned base, std::uint64_t offset, unsigned bytes,
                            std::uint64_t value) {
  if (offset == 0) {
    test_[base] = static_cast<std::uint8_t>(value);
    count_[base] = 0;
  } else if (test_[base] == 0 && bytes == 1 &&
             offset == (base == 0 ? kTestOffset : kTestPortOffset)) {
    ++count_[base];
  }
}

// -- the bus

PciHost::PciHost() {
  // An 82441FX and a PIIX3, by which guests recognise a PC.
  functions_[0] = std::make_unique<PciFunction>(PciFunction::Identity{
      .vendor = 0x8086, .device = 0x1237, .class_code = 0x060000, .revision = 2});
  functions_[1] = std::make_unique<PciFunction>(
      PciFunction::Identity{.vendor = 0x8086, .device = 0x7000, .class_code = 0x060100});
  functions_[2] = std::make_unique<PciTestFunction>(0xfe00'0000, 0xc000);
}

std::span<const BusRange> PciHost::ranges() const { return kRanges; }

PciFunction* PciHost::Addressed() const {
  const bool ours =
      (address_ & kConfigEnable) != 0 && (address_ >> 16 & 0xff) == 0 && (address_ >> 8 & 7) == 0;
  return ours ? functions_[address_ >> 11 & 31].get() : nullptr;
}

PciFunction* PciHost::FindClaim(BusSpace space, std::uint64_t address, unsigned& base,
                                std::uint64_t& offset) const {
  for (const auto& function : functions_) {
    const int claims = function == nullptr ? -1 : function->Claims(space, address, offset);
    if (claims < 0) continue;
    base = static_cast<unsigned>(claims);
    return function.get();
  }
  return nullptr;
}

std::uint64_t PciHost::Read(BusSpace space, std::uint64_t address, unsigned bytes) {
  const std::lock_guard lock(mutex_);
  if (space == BusSpace::kPort && address < kPortWindow) {
    if (address < kConfigData) return address == kConfigAddress && bytes == 4 ? address_ : ~0u;
    const PciFunction* function = Addressed();
    if (function == nullptr) return ~std::uint64_t{0};
    return function->ReadConfiguration(address_ & 0xfc) >> (8 * (address - kConfigData));
  }
  unsigned base = 0;
  std::uint64_t offset = 0;
  PciFunction* function = FindClaim(space, address, base, offset);
  return function == nullptr ? ~std::uint64_t{0} : function->Read(base, offset, bytes);
}

void PciHost::Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  if (space == BusSpace::kPort && address < kPortWindow) {
    if (address < kConfigData) {
      if (address == kConfigAddress && bytes == 4) address_ = static_cast<std::uint32_t>(value);
      return;
    }
    const auto shift = static_cast<unsigned>(8 * (address - kConfigData));
    PciFunction* function = Addressed();
    if (function == nullptr) return;
    function->WriteConfiguration(address_ & 0xfc, static_cast<std::uint32_t>(value << shift),
                                 static_cast<std::uint32_t>(BytesMask(bytes) << shift));
    return;
  }
  unsigned base = 0;
  std::uint64_t offset = 0;
  PciFunction* function = FindClaim(space, address, base, offset);
  if (function != nullptr) function->Write(base, offset, bytes, value);
}

}  // namespace pagesaw
