module;
#include <array>
#include <cstdint>
module pagesaw.cpu.machine_check;

namespace pagesaw::cpu {
namespace {

constexpr std::uint32_t kCapabilities = 0x179, kStatus = 0x17a, kControl = 0x17b;
constexpr std::uint32_t kFirstBank = 0x400;

// IA32_MCG_CAP: the number of banks, and that IA32_MCG_CTL is there.
constexpr std::uint64_t kCapabilityBits = MachineCheckBanks::kBanks | 1u << 8;
constexpr std::uint64_t kStatusBits = 7;  // RIPV, EIPV, MCIP

enum BankRegister : std::uint8_t { kBankControl, kBankStatus, kBankAddress, kBankMiscellaneous };

bool IsAllOrNothing(std::uint64_t value) { return value == 0 || ~value == 0; }

}  // namespace

bool MachineCheckBanks::Owns(std::uint32_t index) {
  return index - kCapabilities < 3 || index - kFirstBank < 4 * kBanks;
}

std::uint64_t MachineCheckBanks::Read(std::uint32_t index) const {
  switch (index) {
    case kCapabilities:
      return kCapabilityBits;
    case kStatus:
      return status_;
    case kControl:
      return control_;
    default:
      return banks_[index - kFirstBank];
  }
}

bool MachineCheckBanks::Write(std::uint32_t index, std::uint64_t value, bool status_writable) {
  const auto set = [value](std::uint64_t& held, bool legal) {
    if (legal) held = value;
    return legal;
  };
  switch (index) {
    case kCapabilities:
      return false;
    case kStatus:
      return set(status_, (value & ~kStatusBits) == 0);
    case kControl:
      return set(control_, IsAllOrNothing(value));
    default:
      break;
  }
  std::uint64_t& held = banks_[index - kFirstBank];
  switch (static_cast<BankRegister>((index - kFirstBank) & 3)) {
    case kBankControl:
      return set(held, IsAllOrNothing(value));
    case kBankStatus:
      return set(held, value == 0 || status_writable);
    case kBankAddress:
    case kBankMiscellaneous:
      break;
  }
  return set(held, true);
}

}  // namespace pagesaw::cpu
