// Where a daemon listens: `unix:PATH`.
module;
#include <absl/status/statusor.h>

#include <string>
#include <string_view>
export module pagesaw.control.endpoint;

export namespace pagesaw {

// The address of a user's daemon unless somebody says otherwise: in $XDG_RUNTIME_DIR, else in /tmp
// with the user's number in the name.
std::string DefaultEndpoint();

// The path in `unix:PATH`. InvalidArgument if that is not what `endpoint` is, or if the path is too
// long for a socket's address.
absl::StatusOr<std::string> SocketPathOf(std::string_view endpoint);

// Whether somebody accepts connections at the socket `path`.
bool IsListening(const std::string& path);

}  // namespace pagesaw
