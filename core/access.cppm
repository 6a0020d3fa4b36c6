// What an access asks for, what a translation grants, and how a refusal is reported.
// Execute is two rights from the start: one for supervisor-mode fetches (XS), one for user-mode
// (XU).
module;
#include <cstdint>
export module pagesaw.core.access;

export namespace pagesaw {

enum class Privilege : std::uint8_t { kSupervisor, kUser };

// What a second-stage access is for: the guest's final address, or an entry of a guest table.
enum class Stage : std::uint8_t { kFinal, kTable };

// The error code of a page fault, in the architecture's own bits. Bits above 31 are not delivered.
// [intel/vol3] "Page-Fault Exceptions"; [amd/vol2] "Page-Fault Error Code"
class PageFaultCode {
 public:
  static constexpr std::uint32_t kPresent = 1u << 0;
  static constexpr std::uint32_t kWrite = 1u << 1;
  static constexpr std::uint32_t kUser = 1u << 2;
  static constexpr std::uint32_t kReserved = 1u << 3;
  static constexpr std::uint32_t kFetch = 1u << 4;
  static constexpr std::uint32_t kProtectionKey = 1u << 5;
  static constexpr std::uint32_t kShadowStack = 1u << 6;

  constexpr PageFaultCode() = default;
  constexpr explicit PageFaultCode(std::uint32_t bits) : bits_(bits) {}
  constexpr std::uint32_t bits() const { return bits_; }
  constexpr bool Has(std::uint32_t bit) const { return (bits_ & bit) != 0; }
  constexpr bool operator==(const PageFaultCode&) const = default;

 private:
  std::uint32_t bits_ = 0;
};

// One access by a processor: read, write or fetch, by whom, whether SMAP is waived for it, and
// whether it is to a shadow stack. The write, user, fetch and shadow-stack bits stand where the
// page-fault error code has them, so that a permission lookup needs no translation.
class Access {
 public:
  static constexpr Access Read(Privilege by) { return Access(UserBit(by)); }
  static constexpr Access Write(Privilege by) {
    return Access(PageFaultCode::kWrite | UserBit(by));
  }
  static constexpr Access Fetch(Privilege by) {
    return Access(PageFaultCode::kFetch | UserBit(by));
  }

  // Reads and writes of a shadow stack, which are to pages of their own kind.
  // [intel/vol1] "Shadow Stacks"
  static constexpr Access ShadowStackRead(Privilege by) {
    return Access(PageFaultCode::kShadowStack | UserBit(by));
  }
  static constexpr Access ShadowStackWrite(Privilege by) {
    return Access(PageFaultCode::kShadowStack | PageFaultCode::kWrite | UserBit(by));
  }

  // The same access made explicitly with EFLAGS.AC set: SMAP does not apply.
  // [intel/vol3] "Determination of Access Rights"
  constexpr Access WithSmapWaived() const { return Access(bits_ | kSmapWaived); }

  constexpr bool is_write() const { return (bits_ & PageFaultCode::kWrite) != 0; }
  constexpr bool is_fetch() const { return (bits_ & PageFaultCode::kFetch) != 0; }
  constexpr bool is_read() const { return !is_write() && !is_fetch(); }
  constexpr bool is_user() const { return (bits_ & PageFaultCode::kUser) != 0; }
  constexpr bool is_shadow_stack() const { return (bits_ & PageFaultCode::kShadowStack) != 0; }
  constexpr bool smap_waived() const { return (bits_ & kSmapWaived) != 0; }
  constexpr Privilege privilege() const {
    return is_user() ? Privilege::kUser : Privilege::kSupervisor;
  }

  // The write, user, fetch and shadow-stack bits as a page-fault error code has them.
  constexpr std::uint32_t code_bits() const { return bits_ & ~kSmapWaived; }

  // The row of a permission table: {fetch, SMAP waived, user, write}, 0 to 15. Accesses to shadow
  // stacks have none.
  constexpr unsigned permission_row() const { return bits_ >> 1 & 15; }

  constexpr bool operator==(const Access&) const = default;

 private:
  // Where the error code has RSVD: an access whose rights are judged met no reserved bit.
  static constexpr std::uint32_t kSmapWaived = PageFaultCode::kReserved;

  constexpr explicit Access(std::uint32_t bits) : bits_(bits) {}
  static constexpr std::uint32_t UserBit(Privilege by) {
    return by == Privilege::kUser ? PageFaultCode::kUser : 0;
  }

  std::uint32_t bits_;
};

static_assert(Access::Fetch(Privilege::kUser).permission_row() == 0b1010);
static_assert(Access::Write(Privilege::kSupervisor).WithSmapWaived().permission_row() == 0b0101);

// Rights of a translation, neutral of any format.
class Rights {
 public:
  static constexpr std::uint8_t kRead = 1u << 0;
  static constexpr std::uint8_t kWrite = 1u << 1;
  static constexpr std::uint8_t kExecSupervisor = 1u << 2;  // XS
  static constexpr std::uint8_t kExecUser = 1u << 3;        // XU
  static constexpr std::uint8_t kUser = 1u << 4;            // a user page: U/S set at every level
  // A page of a shadow stack: not writable otherwise.
  static constexpr std::uint8_t kShadowStack = 1u << 5;

  constexpr Rights() = default;
  constexpr explicit Rights(unsigned bits) : bits_(static_cast<std::uint8_t>(bits)) {}
  // Every right of ordinary pages.
  static constexpr Rights All() {
    return Rights(kRead | kWrite | kExecSupervisor | kExecUser | kUser);
  }

  constexpr std::uint8_t bits() const { return bits_; }
  constexpr bool read() const { return (bits_ & kRead) != 0; }
  constexpr bool write() const { return (bits_ & kWrite) != 0; }
  constexpr bool exec_supervisor() const { return (bits_ & kExecSupervisor) != 0; }
  constexpr bool exec_user() const { return (bits_ & kExecUser) != 0; }
  constexpr bool user() const { return (bits_ & kUser) != 0; }
  constexpr bool shadow_stack() const { return (bits_ & kShadowStack) != 0; }

  constexpr Rights operator&(Rights other) const { return Rights(bits_ & other.bits_); }
  constexpr Rights operator|(Rights other) const { return Rights(bits_ | other.bits_); }
  constexpr Rights Without(unsigned bits) const { return Rights(bits_ & ~bits); }
  // Whether every right of `other` is among these.
  constexpr bool Covers(Rights other) const { return (other.bits_ & ~bits_) == 0; }
  constexpr bool operator==(const Rights&) const = default;

 private:
  std::uint8_t bits_ = 0;
};

}  // namespace pagesaw
