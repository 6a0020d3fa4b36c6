module;
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>
module pagesaw.control.describe;

namespace pagesaw {
namespace {

std::string HexText(std::uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

std::string Words(std::string_view text) { return std::string(text); }

std::string EntryText(std::span<const WalkStep> steps, Level level, Tables tables) {
  const std::string what =
      absl::StrCat("the ", Words(EntryName(level)), tables == Tables::kShadow ? " (SPTE)" : "");
  for (const WalkStep& step : steps) {
    if (step.level != level) continue;
    return absl::StrCat(what, " ", HexText(step.entry), " at ", HexText(step.entry_address.bits()));
  }
  return what;
}

std::string NotPresentText(std::string entry, Tables tables) {
  const char* why = tables == Tables::kShadow ? "; an access makes the shadow MMU install it" : "";
  return absl::StrCat(std::move(entry), " is not present", why);
}

std::string MalformedText(const WalkFault& fault, const PageFormat& format,
                          std::span<const WalkStep> steps, Tables tables) {
  std::uint64_t reserved = 0;
  for (const WalkStep& step : steps) {
    if (step.level == fault.level) reserved = ReservedBitsSet(format, step.entry, step.level);
  }
  const std::string entry = EntryText(steps, fault.level, tables);
  const char* why = tables == Tables::kShadow ? "; that marks device memory" : "";
  if (reserved == 0) return absl::StrCat(entry, " is a combination that is not allowed", why);
  return absl::StrCat(entry, " has reserved bits set: ", HexText(reserved), why);
}

// A supervisor access that the page being a user page refuses, not the lack of a right.
bool UserPageRefuses(const WalkFault& fault, Access access, const PageFormat& format) {
  return !access.is_user() && fault.rights.user() &&
         !format.PermissionFault(fault.rights.Without(Rights::kUser), access);
}

std::string RightsFaultText(const WalkFault& fault, Access access, const PageFormat& format,
                            std::span<const WalkStep> steps) {
  if (UserPageRefuses(fault, access, format)) {
    const char* why = !access.is_fetch()    ? "SMAP refuses it data accesses"
                      : format.second_stage ? "GMET refuses it fetches"
                                            : "SMEP refuses it fetches";
    return absl::StrCat("the page is a user page, and ", why, " in supervisor mode");
  }
  std::vector<std::string> culprits;
  for (const WalkStep& step : steps) {
    if (format.PermissionFault(step.rights, access)) culprits.emplace_back(EntryName(step.level));
  }
  const std::string granted = RightsText(fault.rights);
  if (culprits.empty()) return absl::StrCat("all levels together grant only ", granted);
  return absl::StrCat("it is refused by the ", absl::StrJoin(culprits, " and the "),
                      "; all levels together grant ", granted);
}

std::string WhyRefused(const WalkFault& fault, InputAddress address, Access access,
                       const PageFormat& format, std::span<const WalkStep> steps, Tables tables) {
  switch (fault.kind) {
    case WalkFault::Kind::kNonCanonical:
      return absl::StrCat(HexText(address.bits()), " is not an address of this space");
    case WalkFault::Kind::kNotPresent:
      return NotPresentText(EntryText(steps, fault.level, tables), tables);
    case WalkFault::Kind::kMalformed:
      return MalformedText(fault, format, steps, tables);
    case WalkFault::Kind::kRights:
      return RightsFaultText(fault, access, format, steps);
    case WalkFault::Kind::kProtectionKey:
      return "the protection key of the page refuses it";
    case WalkFault::Kind::kNoMemory:
      return absl::StrCat("the table that holds the ", Words(EntryName(fault.level)),
                          " lies outside guest memory");
    case WalkFault::Kind::kSecondStage:
      return absl::StrCat(
          "the second stage refuses ",
          fault.stage == Stage::kTable ? "the table entry at " : "the final address ",
          HexText(fault.stage_address.bits()));
  }
  return "unknown fault";
}

}  // namespace

std::vector<NamedBit> NamedBits(const PageFormat& format) {
  const EntryLayout& layout = format.layout;
  std::vector<NamedBit> bits;
  const auto add = [&bits](std::string_view name, std::uint64_t mask, std::string_view what) {
    if (mask != 0) bits.push_back({name, mask, what});
  };
  if (layout.read == 0) add("P", layout.present, "present");
  add("R", layout.read, "reads allowed");
  add("W", layout.write, "writes allowed");
  add("U", layout.user, "user page");
  if (layout.splits_execute()) {
    add("XS", layout.exec_supervisor, "supervisor-mode fetches allowed");
    add("XU", layout.exec_user, "user-mode fetches allowed");
  } else {
    add("X", layout.exec_supervisor, "fetches allowed");
  }
  add("A", layout.accessed, "accessed");
  add("D", layout.dirty, "dirty");
  add("PS", layout.large, "maps a page above level 1");
  add("G", layout.global, "global");
  add("NX", layout.no_execute, "fetches refused");
  return bits;
}

std::vector<std::string> BitsOfEntry(const PageFormat& format, std::uint64_t entry, Level level) {
  std::vector<std::string> names;
  for (const NamedBit& bit : NamedBits(format)) {
    if ((entry & bit.mask) == 0) continue;
    if (bit.name == "PS" && level == Level::kPt) continue;
    if ((bit.name == "G" || bit.name == "D") && !format.IsLeaf(entry, level)) continue;
    names.emplace_back(bit.name);
  }
  return names;
}

std::uint64_t ReservedBitsSet(const PageFormat& format, std::uint64_t entry, Level level) {
  return entry & format.reserved[(entry >> 7) & 1][Number(level) - 1];
}

std::string RightsText(Rights rights) {
  std::vector<std::string> names;
  if (rights.read()) names.emplace_back("R");
  if (rights.write()) names.emplace_back("W");
  if (rights.exec_supervisor()) names.emplace_back("XS");
  if (rights.exec_user()) names.emplace_back("XU");
  if (rights.user()) names.emplace_back("U");
  if (rights.shadow_stack()) names.emplace_back("SS");
  return names.empty() ? "-" : absl::StrJoin(names, " ");
}

std::vector<std::string> BitsOfCode(PageFaultCode code) {
  static constexpr std::string_view kNames[] = {"P", "W", "U", "RSVD", "I", "PK", "SS"};
  std::vector<std::string> names;
  for (unsigned bit = 0; bit < std::size(kNames); ++bit) {
    if (code.Has(1u << bit)) names.emplace_back(kNames[bit]);
  }
  return names;
}

std::string AccessText(Access access) {
  const char* kind = access.is_fetch() ? "fetch" : access.is_write() ? "write" : "read";
  return absl::StrCat(access.is_user() ? "user " : "supervisor ",
                      access.is_shadow_stack() ? "shadow-stack " : "", kind);
}

std::string_view EntryName(Level level) {
  static constexpr std::string_view kNames[] = {"PTE", "PDE", "PDPTE", "PML4E", "PML5E"};
  const unsigned index = Number(level) - 1;
  return index < std::size(kNames) ? kNames[index] : "entry";
}

std::string BytesText(std::uint64_t bytes) {
  static constexpr std::string_view kUnits[] = {" B", " KiB", " MiB", " GiB", " TiB"};
  unsigned unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrCat(bytes, Words(kUnits[unit]));
}

std::string Explain(const WalkResult& result, InputAddress address, Access access,
                    const PageFormat& format, std::span<const WalkStep> steps, Tables tables) {
  const std::string what = absl::StrCat(AccessText(access), " of ", HexText(address.bits()));
  if (!result) {
    return absl::StrCat(
        what, " faults: ", WhyRefused(result.fault(), address, access, format, steps, tables));
  }
  const std::string output = HexText(result->output.bits());
  if (steps.empty()) return absl::StrCat(what, " is allowed: without tables it is ", output);
  const std::uint64_t bytes = LevelBytes(result->level, format.layout.index_bits);
  return absl::StrCat(what, " is allowed: it is ", output, " in a page of ", BytesText(bytes));
}

}  // namespace pagesaw
