module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
module pagesaw.control.arguments;

import pagesaw.core.address;

namespace pagesaw {
namespace {

constexpr std::string_view kVms = "vms/";
constexpr std::string_view kVcpus = "/vcpus/";
constexpr std::string_view kSlots = "/slots/";
constexpr std::string_view kFormats = "formats/";

// `value` is a client's: unprintable and endless ones are cut down.
absl::Status Refuse(std::string_view what, std::string_view value, std::string_view must) {
  const std::string_view start = value.substr(0, 200);
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(what), " '", absl::CEscape({start.data(), start.size()}),
                   start.size() < value.size() ? "..." : "", "': must ", std::string(must)));
}

bool IsVmId(std::string_view id) {
  return !id.empty() && id.size() <= 63 && id.front() >= 'a' && id.front() <= 'z' &&
         std::all_of(id.begin(), id.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
         });
}

std::optional<unsigned> NumberOf(std::string_view digits) {
  unsigned number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const bool padded = digits.size() > 1 && digits.front() == '0';
  if (error != std::errc() || end != digits.data() + digits.size() || padded) return std::nullopt;
  return number;
}

// The parts of `vms/{vm}` with a numbered resource of the VM behind it.
struct NumberedName {
  std::string vm;
  unsigned number = 0;
};
std::optional<NumberedName> PartsOf(std::string_view name, std::string_view collection) {
  const std::size_t middle = name.find(collection);
  if (!name.starts_with(kVms) || middle == std::string_view::npos || middle <= kVms.size()) {
    return std::nullopt;
  }
  const std::string_view vm = name.substr(kVms.size(), middle - kVms.size());
  const auto number = NumberOf(name.substr(middle + collection.size()));
  if (!IsVmId(vm) || !number) return std::nullopt;
  return NumberedName{std::string(vm), *number};
}

std::string HexText(std::uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

}  // namespace

absl::StatusOr<std::string> ParseVmName(std::string_view name) {
  if (!name.starts_with(kVms) || !IsVmId(name.substr(kVms.size()))) {
    return Refuse("name", name, "be 'vms/{vm}' with a {vm} like [a-z][a-z0-9-]{0,62}");
  }
  return std::string(name.substr(kVms.size()));
}

absl::StatusOr<VcpuName> ParseVcpuName(std::string_view name) {
  if (const auto parts = PartsOf(name, kVcpus)) return VcpuName{parts->vm, parts->number};
  return Refuse("name", name, "be 'vms/{vm}/vcpus/{vcpu}', as in vms/a/vcpus/0");
}

absl::StatusOr<SlotName> ParseSlotName(std::string_view name) {
  if (const auto parts = PartsOf(name, kSlots)) return SlotName{parts->vm, parts->number};
  return Refuse("name", name, "be 'vms/{vm}/slots/{slot}', as in vms/a/slots/1");
}

absl::StatusOr<std::string> ParseFormatName(std::string_view name) {
  if (!name.starts_with(kFormats) || name.size() == kFormats.size()) {
    return Refuse("name", name, "be 'formats/{format}'");
  }
  return std::string(name.substr(kFormats.size()));
}

std::string VmResourceName(std::string_view vm) { return std::string(kVms) + std::string(vm); }

std::string SlotResourceName(std::string_view vm, std::uint32_t slot) {
  return absl::StrCat(VmResourceName(vm), std::string(kSlots), slot);
}

std::string FormatResourceName(std::string_view format) {
  return std::string(kFormats) + std::string(format);
}

absl::Status CheckLinearAddress(const PagingState& state, std::uint64_t address) {
  if (!state.long_mode()) {
    if (address >> 32 == 0) return absl::OkStatus();
    return Refuse("address", HexText(address), "be below 0x100000000 outside long mode");
  }
  const unsigned bits = state.linear_bits();
  if (IsCanonical(Gva(address), bits)) return absl::OkStatus();
  return Refuse("address", HexText(address),
                absl::StrCat("be canonical: bits 63 to ", bits - 1, " all the same"));
}

absl::Status CheckPhysicalAddress(const PagingState& state, std::uint64_t address) {
  const unsigned bits = state.features.physical_bits;
  if (bits >= 64 || address >> bits == 0) return absl::OkStatus();
  return Refuse("address", HexText(address),
                absl::StrCat("be a guest-physical address of ", bits, " bits"));
}

absl::StatusOr<std::size_t> PageSize(std::int32_t page_size) {
  if (page_size < 0) return Refuse("page_size", absl::StrCat(page_size), "not be negative");
  if (page_size == 0) return std::size_t{50};
  return std::min<std::size_t>(static_cast<std::size_t>(page_size), 1000);
}

}  // namespace pagesaw
