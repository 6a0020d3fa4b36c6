module;
#include <absl/hash/hash.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <string_view>
module pagesaw.control.page_token;

namespace pagesaw {
namespace {

constexpr std::size_t kTagDigits = 16;

std::string Tag(std::uint64_t secret, std::string_view list, std::string_view cursor) {
  const std::size_t hash = absl::HashOf(secret, std::string(list), std::string(cursor));
  return absl::StrCat(absl::Hex(hash, absl::kZeroPad16));
}

}  // namespace

std::string PageTokens::Make(std::string_view list, std::string_view cursor) const {
  return absl::StrCat(Tag(secret_, list, cursor),
                      absl::BytesToHexString(absl::string_view(cursor.data(), cursor.size())));
}

absl::StatusOr<std::string> PageTokens::Open(std::string_view list, std::string_view token) const {
  if (token.empty()) return std::string();
  // A token is compared as a whole with what would be made for its cursor, so nothing about its
  // form needs checking.
  std::string cursor;
  if (token.size() >= kTagDigits && token.size() % 2 == 0 &&
      token.find_first_not_of("0123456789abcdef") == std::string_view::npos) {
    const std::string_view digits = token.substr(kTagDigits);
    cursor = absl::HexStringToBytes(absl::string_view(digits.data(), digits.size()));
    if (Make(list, cursor) == token) return cursor;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("page_token '", absl::CEscape(absl::string_view(token.data(), token.size())),
                   "': must be empty or the next_page_token of an earlier page of this list"));
}

}  // namespace pagesaw
