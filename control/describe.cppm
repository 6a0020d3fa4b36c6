// Page formats, rights and walks in words, for people who look at a VM.
module;
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.control.describe;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;

export namespace pagesaw {

// A bit (or field) of an entry and what it is called.
struct NamedBit {
  std::string_view name;
  std::uint64_t mask = 0;
  std::string_view description;
};

// The bits that entries of `format` have, from the right that matters first: P or R, W, U, X ...
std::vector<NamedBit> NamedBits(const PageFormat& format);

// The names of those that are set in `entry`. PS and G are left out where they mean nothing.
std::vector<std::string> BitsOfEntry(const PageFormat& format, std::uint64_t entry, Level level);

// The reserved bits that are set in the present entry `entry`.
std::uint64_t ReservedBitsSet(const PageFormat& format, std::uint64_t entry, Level level);

// "R W XS XU U"; "-" if there are none.
std::string RightsText(Rights rights);

// The names of the bits of a page-fault error code: P W U RSVD I PK SS.
std::vector<std::string> BitsOfCode(PageFaultCode code);

// "supervisor read", "user fetch".
std::string AccessText(Access access);

// "PTE", "PDE", "PDPTE", "PML4E", "PML5E".
std::string_view EntryName(Level level);

// "4 KiB", "2 MiB" ...
std::string BytesText(std::uint64_t bytes);

// Whose tables were walked.
enum class Tables : std::uint8_t { kGuest, kShadow };

// Why the walk of `address` for `access` over `steps` came out as it did, in a sentence.
std::string Explain(const WalkResult& result, InputAddress address, Access access,
                    const PageFormat& format, std::span<const WalkStep> steps, Tables tables);

}  // namespace pagesaw
