// What SPTEs look like: the entries of the tables that Pagesaw builds, in any format. Beside what
// the format says, they carry bits of our own, and addresses without memory are marked by SPTEs
// that are malformed on purpose.
module;
#include <cstdint>
#include <optional>
export module pagesaw.mmu.spte;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;

export namespace pagesaw {

// Software bits. Every format ignores bit 11 and bits 56:52, whatever its controls say; bits 62:59
// may be a protection key.
//
// The SPTE is live: a leaf or a link that counts. An MMIO SPTE is not, though a processor finds it
// present.
inline constexpr std::uint64_t kSpteMmuPresent = std::uint64_t{1} << 11;
// The memory behind a leaf may be written by the guest at all: its slot is not read-only.
inline constexpr std::uint64_t kSpteHostWritable = std::uint64_t{1} << 52;
// The leaf was made to be written, and the MMU has no reason of its own to refuse that: the page is
// no table that is being watched. A leaf with this bit and without the write right only waits for a
// first write to be seen, and may be given that right without any lock.
inline constexpr std::uint64_t kSpteMmuWritable = std::uint64_t{1} << 53;
// What an access-tracked leaf is present by is kept here meanwhile: the bit that says present or
// readable, execution, execution in user mode. Any access gives it back, without any lock.
inline constexpr unsigned kSpteTrackedShift = 54;
inline constexpr std::uint64_t kSpteTracked = std::uint64_t{7} << kSpteTrackedShift;

inline constexpr std::uint64_t kSpteSoftwareBits =
    kSpteMmuPresent | kSpteHostWritable | kSpteMmuWritable | kSpteTracked;
static_assert((kSpteMmuPresent ^ kSpteHostWritable ^ kSpteMmuWritable ^ kSpteTracked) ==
              kSpteSoftwareBits);

// An SPTE for an address without memory, so that the next access there is known at once for a
// device access.
struct MmioSpte {
  Gfn gfn = {};
  bool write = true;  // what the guest's own tables grant
  bool user = true;
  std::uint16_t generation = 0;  // of the slots: it counts while they are as they were

  bool operator==(const MmioSpte&) const = default;
};

// What a leaf SPTE is made from.
struct LeafSpte {
  Hpa page = {};
  Level level = Level::kPt;
  Rights rights = Rights::All();
  bool host_writable = true;
  bool mmu_writable = true;
  bool write_logged = false;        // the right to write waits for a first write
  bool dirty = true;                // D; false: the processor sets it
  std::uint8_t protection_key = 0;  // where linear addresses are translated
};

// Encodes and decodes the SPTEs of one format. A value that may be shared.
class SpteCodec {
 public:
  explicit SpteCodec(const PageFormat& format);

  const PageFormat& format() const { return format_; }

  // A link to the table at `table`; it grants every right.
  std::uint64_t Link(Hpa table) const;
  // A leaf that grants no more than `leaf.rights`, and those if `CanExpress`. Writing, and accesses
  // to a shadow stack, are granted only if host and MMU have nothing against it. 0 if nothing can
  // be granted.
  std::uint64_t Leaf(const LeafSpte& leaf) const;
  // The marker of an address without memory, or 0 if the format has no room for one.
  std::uint64_t Mmio(const MmioSpte& mmio) const;
  std::optional<MmioSpte> DecodeMmio(std::uint64_t spte) const;

  // Whether leaves of this format can grant exactly `rights`.
  bool CanExpress(Rights rights) const;
  // Whether the format has leaves at `level`.
  bool HasLeavesAt(Level level) const;

  static constexpr bool IsLive(std::uint64_t spte) { return (spte & kSpteMmuPresent) != 0; }
  constexpr bool IsLiveLeaf(std::uint64_t spte, Level level) const {
    return IsLive(spte) && format_.IsLeaf(spte, level);
  }
  constexpr bool IsLink(std::uint64_t spte, Level level) const {
    return IsLive(spte) && !format_.IsLeaf(spte, level);
  }
  constexpr bool IsMmio(std::uint64_t spte) const {
    return !IsLive(spte) && mmio_mask_ != 0 && (spte & mmio_mask_) == mmio_value_;
  }
  // A live leaf as it is once writes must be seen: neither writable nor to be made so, nor a page
  // of a shadow stack.
  constexpr std::uint64_t WriteProtected(std::uint64_t leaf) const {
    const std::uint64_t dirty = format_.second_stage ? 0 : format_.layout.dirty;
    return leaf & ~(format_.layout.write | dirty | kSpteMmuWritable);
  }
  // Whether a live leaf maps a page of a shadow stack, which its own accesses may write. It has no
  // kSpteMmuWritable: nobody may give it the write right.
  constexpr bool IsShadowStack(std::uint64_t leaf) const {
    const EntryLayout& layout = format_.layout;
    return !format_.second_stage && (leaf & (layout.write | layout.dirty)) == layout.dirty;
  }
  constexpr bool IsWritable(std::uint64_t leaf) const { return (leaf & format_.layout.write) != 0; }
  // A live leaf whose next write has to be seen: without the write right, or without D. Whether it
  // may be written stays noted in it.
  constexpr std::uint64_t WriteLogged(std::uint64_t leaf) const {
    return leaf & ~format_.layout.write;
  }
  constexpr std::uint64_t Clean(std::uint64_t leaf) const { return leaf & ~format_.layout.dirty; }
  // Whether a processor may have written what a live leaf maps, as far as D says.
  constexpr bool IsDirty(std::uint64_t leaf) const {
    return (IsWritable(leaf) &&
            (format_.layout.dirty == 0 || (leaf & format_.layout.dirty) != 0)) ||
           IsShadowStack(leaf);
  }

  // A live leaf as it is once the next access has to be seen: without A, or, in a format that keeps
  // none, access-tracked, which is without being present.
  std::uint64_t Old(std::uint64_t leaf) const;
  // Whether it has been accessed since it was made or made old.
  constexpr bool IsYoung(std::uint64_t leaf) const {
    return format_.accessed_dirty ? (leaf & format_.layout.accessed) != 0
                                  : (leaf & kSpteTracked) == 0;
  }
  // The live leaf `leaf` with every right given back that it may be given without the MMU lock and
  // that `access` needs.
  std::uint64_t Regranted(std::uint64_t leaf, Access access) const;

  // What a live leaf lets be done: R, W, XS and XU, as accesses of either mode find it.
  Rights GrantsOf(std::uint64_t leaf) const;
  // Where a link or a leaf points.
  constexpr Hpa Target(std::uint64_t spte) const { return Hpa(spte & format_.layout.address); }
  // Whether a live leaf grants `access`. Links grant everything.
  constexpr bool Allows(std::uint64_t leaf, Access access) const {
    return format_.IsPresent(leaf) && !format_.PermissionFault(format_.RightsOf(leaf), access);
  }

 private:
  std::uint64_t RightsBits(Rights rights) const;
  std::uint64_t ExplicitRightsBits(Rights rights) const;
  std::uint64_t LegacyRightsBits(Rights rights) const;
  void ChooseMmioMarker();

  PageFormat format_;
  std::uint64_t mmio_mask_ = 0;  // 0: no marker
  std::uint64_t mmio_value_ = 0;
};

}  // namespace pagesaw
