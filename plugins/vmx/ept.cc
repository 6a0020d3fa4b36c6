module;
#include <cstdint>
module pagesaw.plugins.vmx.ept;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.plugins.vmx.ept_format;

namespace pagesaw::vmx {
namespace {

// Bits of an EPT pointer.
constexpr std::uint64_t kWriteBack = 6, kTypeMask = 7;
constexpr std::uint64_t kLevelsMask = 7u << 3;
constexpr std::uint64_t kAccessedDirty = 1u << 6;
constexpr std::uint64_t kReserved = 0xf80;
constexpr std::uint64_t kRoot = 0x000f'ffff'ffff'f000;

constexpr unsigned LevelsOf(std::uint64_t pointer) { return (pointer & kLevelsMask) / 8 + 1; }

// Bits of the exit qualification.
constexpr std::uint64_t kDataRead = 1u << 0;
constexpr std::uint64_t kDataWrite = 1u << 1;
constexpr std::uint64_t kFetch = 1u << 2;
constexpr std::uint64_t kReadable = 1u << 3;
constexpr std::uint64_t kWritable = 1u << 4;
constexpr std::uint64_t kExecutable = 1u << 5;      // XS with mode-based execute control
constexpr std::uint64_t kUserExecutable = 1u << 6;  // with mode-based execute control
constexpr std::uint64_t kLinearValid = 1u << 7;
constexpr std::uint64_t kFinalAddress = 1u << 8;
constexpr std::uint64_t kUserLinear = 1u << 9;
constexpr std::uint64_t kWritableLinear = 1u << 10;
constexpr std::uint64_t kExecuteDisabledLinear = 1u << 11;

// With A and D on, an access to a guest table counts as a read and a write.
std::uint64_t AccessBits(const NestedFault& fault, const PageFormat& format) {
  if (fault.stage == Stage::kTable) {
    const bool writes = format.accessed_dirty || fault.access.is_write();
    return kDataRead | (writes ? kDataWrite : 0);
  }
  if (fault.access.is_fetch()) return kFetch;
  return fault.access.is_write() ? kDataWrite : kDataRead;
}

std::uint64_t EntryBits(const NestedFault& fault, const PageFormat& format) {
  if (!fault.present) return 0;
  std::uint64_t bits = 0;
  if (fault.rights.read()) bits |= kReadable;
  if (fault.rights.write()) bits |= kWritable;
  if (fault.rights.exec_supervisor()) bits |= kExecutable;
  if (format.layout.splits_execute() && fault.rights.exec_user()) bits |= kUserExecutable;
  return bits;
}

std::uint64_t LinearBits(const NestedFault& fault) {
  if (!fault.linear_valid) return 0;
  if (fault.stage != Stage::kFinal) return kLinearValid;
  std::uint64_t bits = kLinearValid | kFinalAddress;
  if (fault.guest_rights.user()) bits |= kUserLinear;
  if (fault.guest_rights.write()) bits |= kWritableLinear;
  if (!fault.guest_rights.exec_supervisor()) bits |= kExecuteDisabledLinear;
  return bits;
}

}  // namespace

bool IsEptPointer(std::uint64_t pointer, const Capabilities& capabilities, unsigned physical_bits) {
  const unsigned levels = LevelsOf(pointer);
  const bool has_levels = levels == 4 || (levels == 5 && capabilities.ept_5_levels());
  return (pointer & kTypeMask) == kWriteBack && has_levels && (pointer & kReserved) == 0 &&
         pointer >> physical_bits == 0;
}

NestedPaging EptOf(std::uint64_t pointer, unsigned physical_bits, SplitFormatMaker split) {
  const bool accessed_dirty = (pointer & kAccessedDirty) != 0;
  PageFormat format =
      split != nullptr ? split(physical_bits) : MakeEptFormat({.physical_bits = physical_bits});
  format.accessed_dirty = accessed_dirty;
  return {.format = format,
          .root = Gpa(pointer & kRoot),
          .level = LevelsOf(pointer) == 5 ? Level::kPml5 : Level::kPml4,
          .tables_are_written = accessed_dirty,
          .root_register = pointer,
          .format_name = split != nullptr ? "ept-mbec" : "ept"};
}

std::uint64_t ViolationQualification(const NestedFault& fault, const PageFormat& format) {
  return AccessBits(fault, format) | EntryBits(fault, format) | LinearBits(fault);
}

}  // namespace pagesaw::vmx
