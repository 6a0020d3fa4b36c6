// A page walker: which output address does an input address have, with which rights, or which
// fault. Walkers know a guest's tables and registers; they know no SPTE, no host root and no TLB.
module;
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>
export module pagesaw.core.page_walker;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;

export namespace pagesaw {

// The output of a tree of tables: a Gpa, an Hpa or a Ngpa, depending on the tree.
using OutputAddress = Address<struct OutputAddressTag>;

constexpr Gpa GpaOf(OutputAddress output) { return Gpa(output.bits()); }
constexpr Hpa HpaOf(OutputAddress output) { return Hpa(output.bits()); }

// A successful walk.
struct Translation {
  OutputAddress output = {};  // of the very byte asked for
  Level level = Level::kPt;   // of the leaf
  Rights rights = {};         // AND over all levels
  std::uint64_t leaf = 0;     // the leaf entry, A and D as the walk left them; 0 without paging
};

struct WalkFault {
  enum class Kind : std::uint8_t {
    kNonCanonical,   // not an address of this space: #GP or #SS, never #PF
    kNotPresent,     // an entry is not present
    kMalformed,      // a present entry has a reserved bit or a forbidden combination
    kRights,         // the rights refuse the access
    kProtectionKey,  // the protection key refuses it (ordinary rights may as well)
    kNoMemory,       // a table lies outside the memory that tables may lie in
    kSecondStage,    // the next stage refused a table or the final address
  };
  Kind kind = Kind::kNotPresent;
  Level level = Level::kPt;   // of the entry at fault
  PageFaultCode code = {};    // as #PF would report it
  InputAddress address = {};  // what was being translated, in this walker's input space
  Rights rights = {};         // AND of the entries used up to and with the one at fault
  // kSecondStage: what the second stage was asked and for what.
  Stage stage = Stage::kFinal;
  OutputAddress stage_address = {};
};

// Either a Translation or a WalkFault. A fault is a result: it is what the guest asked for.
class [[nodiscard]] WalkResult {
 public:
  constexpr WalkResult(const Translation& translation) : value_(translation) {}  // NOLINT: implicit
  constexpr WalkResult(const WalkFault& fault) : value_(fault) {}                // NOLINT: implicit
  constexpr explicit operator bool() const { return value_.index() == 0; }
  constexpr const Translation& operator*() const { return *std::get_if<0>(&value_); }
  constexpr const Translation* operator->() const { return std::get_if<0>(&value_); }
  constexpr const WalkFault& fault() const { return *std::get_if<1>(&value_); }

 private:
  std::variant<Translation, WalkFault> value_;
};

// One entry that a walk read.
struct WalkStep {
  Level level = Level::kPt;
  OutputAddress entry_address = {};  // where the entry lies, in the space that the tables lie in
  std::uint64_t entry = 0;
  Rights rights = {};  // of this entry alone
  bool present = false;
  bool leaf = false;
  bool malformed = false;
};

// The entries of one walk, root first.
class WalkTrace {
 public:
  void Clear() { count_ = 0; }
  void Add(const WalkStep& step) {
    if (count_ < steps_.size()) steps_[count_++] = step;
  }
  std::span<const WalkStep> steps() const { return {steps_.data(), count_}; }

 private:
  std::array<WalkStep, kMaxLevels> steps_;
  std::size_t count_ = 0;
};

class PageWalker {
 public:
  virtual ~PageWalker() = default;

  // `cpu_walk` or `tdp_walk`.
  virtual std::string_view name() const = 0;
  // What the guest's entries look like.
  virtual const PageFormat& format() const = 0;
  // The level of the root table; nothing is walked (output = input) if this is 0.
  virtual unsigned root_level() const = 0;
  // The register that names the root table, low bits and all.
  virtual std::uint64_t root_register() const = 0;

  // Walks as the processor does for `access`: sets A and D, restarting if an entry changes under
  // it.
  virtual WalkResult Walk(InputAddress address, Access access) = 0;

  // The first table access of the last Walk that a memory attribute refused: the walk ended there
  // with kSecondStage, or, if the attribute's policy is to log, went on.
  virtual std::optional<AttributeViolation> attribute_violation() const { return std::nullopt; }

  // Walks without changing anything, and lists the entries read in `trace` if it is not null.
  // Safe against concurrent changes of the tables by the guest.
  virtual WalkResult Inspect(InputAddress address, Access access, WalkTrace* trace) const = 0;
};

}  // namespace pagesaw
