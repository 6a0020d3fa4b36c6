// Page tokens of list methods: opaque to clients, and refused unless this process made them for the
// same list. They tell a mistaken client from a correct one; they are no protection of secrets.
module;
#include <absl/status/statusor.h>

#include <cstdint>
#include <string>
#include <string_view>
export module pagesaw.control.page_token;

export namespace pagesaw {

class PageTokens {
 public:
  // Tokens of one `secret` are refused under any other.
  explicit PageTokens(std::uint64_t secret) : secret_(secret) {}

  // A token for going on behind `cursor` in `list`, e.g. "ListShadowPages vms/a". Never empty.
  std::string Make(std::string_view list, std::string_view cursor) const;
  // The cursor in `token`; empty for the empty token, which is the start of every list.
  // InvalidArgument if it was not made for `list`.
  absl::StatusOr<std::string> Open(std::string_view list, std::string_view token) const;

 private:
  std::uint64_t secret_;
};

}  // namespace pagesaw
