module;
#include <array>
#include <cstdint>
#include <optional>
module pagesaw.mmu.spte;

namespace pagesaw {
namespace {

// [intel/vol3] "Protection Keys"
constexpr unsigned kProtectionKeyShift = 59;
static_assert((kSpteSoftwareBits >> kProtectionKeyShift & 15) == 0);

// An MMIO SPTE: bits 50:12 are bits 50:12 of the address, bit 63 is bit 51 of it; bits 3 and 4 say
// whether the guest grants writes and users; bits 9:5 and 62:52 are the generation. Bits 2:0 and 51
// belong to the marker, bit 11 is clear (not live), bit 10 may be an execute right.
constexpr std::uint64_t kMmioAddress = 0x0007'ffff'ffff'f000;
constexpr unsigned kMmioHighBit = 63;
constexpr std::uint64_t kMmioWrite = 1u << 3;
constexpr std::uint64_t kMmioUser = 1u << 4;
constexpr unsigned kGenerationLowShift = 5, kGenerationLowBits = 5, kGenerationHighShift = 52;
constexpr std::uint64_t kGenerationLow = ((1u << kGenerationLowBits) - 1) << kGenerationLowShift;
constexpr std::uint64_t kGenerationHigh = std::uint64_t{0x7ff} << kGenerationHighShift;
constexpr std::uint64_t kMmioPayload = kMmioAddress | std::uint64_t{1} << kMmioHighBit |
                                       kMmioWrite | kMmioUser | kGenerationLow | kGenerationHigh;
static_assert((kMmioPayload & (kSpteMmuPresent | std::uint64_t{1} << 51 | 7)) == 0);
static_assert(kMmioAddress + kMmioWrite + kMmioUser + kGenerationLow + kGenerationHigh +
                  (std::uint64_t{1} << kMmioHighBit) ==
              kMmioPayload);

}  // namespace

SpteCodec::SpteCodec(const PageFormat& format) : format_(format) { ChooseMmioMarker(); }

// Where reading is a right of its own, writing without reading is malformed; else a reserved
// address bit is, where there is one.
void SpteCodec::ChooseMmioMarker() {
  constexpr std::uint64_t kReservedBit = std::uint64_t{1} << 51;
  const EntryLayout& layout = format_.layout;
  const bool explicit_read = layout.read != 0;
  const std::uint64_t mask =
      explicit_read ? layout.read | layout.write : layout.present | kReservedBit;
  const std::uint64_t value = explicit_read ? layout.write : mask;
  // Malformed whatever the payload is: its bits can only add to what is reserved, except bits 5:0.
  for (std::uint64_t low : {std::uint64_t{0}, kMmioWrite, kMmioUser, kMmioWrite | kMmioUser}) {
    for (std::uint64_t bit5 : {0u, 1u << 5}) {
      if (!format_.IsMalformed(value | low | bit5, Level::kPt)) return;
    }
  }
  if ((value & kMmioPayload) != 0 || (value & kSpteSoftwareBits) != 0) return;
  mmio_mask_ = mask;
  mmio_value_ = value;
}

std::uint64_t SpteCodec::Link(Hpa table) const {
  const EntryLayout& layout = format_.layout;
  const std::uint64_t grants = GrantMask(layout) | (layout.read == 0 ? layout.present : 0);
  return table.bits() | grants | layout.accessed | kSpteMmuPresent;
}

std::uint64_t SpteCodec::ExplicitRightsBits(Rights rights) const {
  const EntryLayout& layout = format_.layout;
  std::uint64_t bits = 0;
  if (rights.read()) bits |= layout.read;
  if (rights.read() && rights.write()) bits |= layout.write;
  if (layout.splits_execute()) {
    if (rights.exec_supervisor()) bits |= layout.exec_supervisor;
    if (rights.exec_user()) bits |= layout.exec_user;
  } else if (rights.exec_supervisor() && rights.exec_user()) {
    bits |= layout.exec_supervisor;
  }
  // Execution without reading is malformed where the format does not know it.
  return bits != 0 && format_.IsMalformed(bits | layout.leaf_fixed, Level::kPt) ? 0 : bits;
}

std::uint64_t SpteCodec::LegacyRightsBits(Rights rights) const {
  const EntryLayout& layout = format_.layout;
  if (!rights.read()) return 0;
  bool user = rights.user();
  bool execute = user ? rights.exec_user() : rights.exec_supervisor();
  if (format_.second_stage) {
    const bool split = format_.user_pages_refuse_supervisor_fetch;
    user = !split || !rights.exec_supervisor();
    execute = rights.exec_user() && (split || rights.exec_supervisor());
  }
  return layout.present | (rights.write() ? layout.write : 0) | (user ? layout.user : 0) |
         (execute ? 0 : layout.no_execute);
}

std::uint64_t SpteCodec::RightsBits(Rights rights) const {
  return format_.layout.read != 0 ? ExplicitRightsBits(rights) : LegacyRightsBits(rights);
}

std::uint64_t SpteCodec::Leaf(const LeafSpte& leaf) const {
  const EntryLayout& layout = format_.layout;
  bool writable = leaf.host_writable && leaf.mmu_writable;
  // In a shadow stack what is not logged is dirty.
  const bool shadow_stack = writable && leaf.rights.shadow_stack() && !format_.second_stage &&
                            leaf.dirty && !leaf.rights.write();
  std::uint64_t rights = RightsBits(writable ? leaf.rights : leaf.rights.Without(Rights::kWrite));
  writable = (rights & layout.write) != 0;
  if (leaf.write_logged) rights = WriteLogged(rights);
  if ((rights & layout.present) == 0) return 0;
  std::uint64_t spte =
      leaf.page.bits() | rights | layout.leaf_fixed | layout.accessed | kSpteMmuPresent;
  if (leaf.level != Level::kPt) spte |= layout.large;
  // Dirty without being writable is how a page of a shadow stack looks, and nothing else may.
  if (((rights & layout.write) != 0 && leaf.dirty) || shadow_stack) spte |= layout.dirty;
  spte |= std::uint64_t{leaf.protection_key} << kProtectionKeyShift;
  if (leaf.host_writable) spte |= kSpteHostWritable;
  if (writable) spte |= kSpteMmuWritable;
  return spte;
}

std::uint64_t SpteCodec::Old(std::uint64_t leaf) const {
  const EntryLayout& layout = format_.layout;
  if (format_.accessed_dirty) return leaf & ~layout.accessed;
  if ((leaf & kSpteTracked) != 0) return leaf;
  const std::uint64_t readable = layout.read != 0 ? layout.read : layout.present;
  std::uint64_t kept = 0;
  if ((leaf & readable) != 0) kept |= 1;
  if ((leaf & layout.exec_supervisor) != 0) kept |= 2;
  if ((leaf & layout.exec_user) != 0) kept |= 4;
  return (leaf & ~(layout.present | layout.write)) | kept << kSpteTrackedShift;
}

std::uint64_t SpteCodec::Regranted(std::uint64_t leaf, Access access) const {
  const EntryLayout& layout = format_.layout;
  const std::uint64_t kept = (leaf & kSpteTracked) >> kSpteTrackedShift;
  leaf &= ~kSpteTracked;
  if ((kept & 1) != 0) leaf |= layout.read != 0 ? layout.read : layout.present;
  if ((kept & 2) != 0) leaf |= layout.exec_supervisor;
  if ((kept & 4) != 0) leaf |= layout.exec_user;
  constexpr std::uint64_t kMayWrite = kSpteHostWritable | kSpteMmuWritable;
  if (access.is_write() && (leaf & kMayWrite) == kMayWrite) leaf |= layout.write;
  return leaf;
}

std::uint64_t SpteCodec::Mmio(const MmioSpte& mmio) const {
  if (mmio_mask_ == 0) return 0;
  const std::uint64_t address = GpaOf(mmio.gfn).bits();
  const std::uint64_t generation = mmio.generation;
  constexpr std::uint64_t kLowMask = (1u << kGenerationLowBits) - 1;
  return mmio_value_ | (address & kMmioAddress) | (address >> 51 & 1) << kMmioHighBit |
         (mmio.write ? kMmioWrite : 0) | (mmio.user ? kMmioUser : 0) |
         (generation & kLowMask) << kGenerationLowShift |
         (generation >> kGenerationLowBits) << kGenerationHighShift;
}

std::optional<MmioSpte> SpteCodec::DecodeMmio(std::uint64_t spte) const {
  if (!IsMmio(spte)) return std::nullopt;
  const std::uint64_t address = (spte & kMmioAddress) | (spte >> kMmioHighBit & 1) << 51;
  const std::uint64_t generation = (spte & kGenerationLow) >> kGenerationLowShift |
                                   (spte & kGenerationHigh) >> kGenerationHighShift
                                                                   << kGenerationLowBits;
  return MmioSpte{.gfn = GfnOf(Gpa(address)),
                  .write = (spte & kMmioWrite) != 0,
                  .user = (spte & kMmioUser) != 0,
                  .generation = static_cast<std::uint16_t>(generation)};
}

// Asks the format itself: whether what was encoded allows and refuses what it should. In a first
// stage a user page answers user accesses and a supervisor page supervisor accesses; the other
// mode's are SMEP's and SMAP's business.
bool SpteCodec::CanExpress(Rights rights) const {
  constexpr std::uint8_t kAny =
      Rights::kRead | Rights::kWrite | Rights::kExecSupervisor | Rights::kExecUser;
  if ((rights.bits() & kAny) == 0) return true;  // by not being present
  const std::uint64_t spte = Leaf({.rights = rights});
  if (spte == 0) return false;
  for (Privilege by : {Privilege::kSupervisor, Privilege::kUser}) {
    if (!format_.second_stage && rights.user() != (by == Privilege::kUser)) continue;
    const bool execute = by == Privilege::kUser ? rights.exec_user() : rights.exec_supervisor();
    if (Allows(spte, Access::Read(by)) != rights.read()) return false;
    if (Allows(spte, Access::Write(by)) != rights.write()) return false;
    if (Allows(spte, Access::Fetch(by)) != execute) return false;
  }
  return true;
}

// In a first stage the mode is that of the page: the other mode's rights are SMEP's and SMAP's
// business.
Rights SpteCodec::GrantsOf(std::uint64_t leaf) const {
  const bool user_page = format_.RightsOf(leaf).user();
  const Privilege by =
      format_.second_stage || user_page ? Privilege::kUser : Privilege::kSupervisor;
  const auto fetch = [&](Privilege mode) {
    return Allows(leaf, Access::Fetch(format_.second_stage ? mode : by));
  };
  return Rights((Allows(leaf, Access::Read(by)) ? Rights::kRead : 0u) |
                (Allows(leaf, Access::Write(by)) ? Rights::kWrite : 0u) |
                (fetch(Privilege::kSupervisor) ? Rights::kExecSupervisor : 0u) |
                (fetch(Privilege::kUser) ? Rights::kExecUser : 0u));
}

bool SpteCodec::HasLeavesAt(Level level) const {
  if (level == Level::kPt) return true;
  const std::uint64_t large = format_.layout.large;
  return large != 0 && (format_.reserved[1][Number(level) - 1] & large) == 0;
}

}  // namespace pagesaw
