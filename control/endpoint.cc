module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
module pagesaw.control.endpoint;

namespace pagesaw {
namespace {

constexpr std::string_view kScheme = "unix:";

}  // namespace

std::string DefaultEndpoint() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime != '\0') {
    return absl::StrCat("unix:", runtime, "/pagesaw.sock");
  }
  return absl::StrCat("unix:/tmp/pagesaw-", getuid(), ".sock");
}

absl::StatusOr<std::string> SocketPathOf(std::string_view endpoint) {
  if (!endpoint.starts_with(kScheme) || endpoint.size() == kScheme.size()) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(endpoint), ": must be unix:PATH"));
  }
  std::string path(endpoint.substr(kScheme.size()));
  constexpr std::size_t kMaxBytes = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(endpoint), ": the path must have at most ", kMaxBytes, " bytes"));
  }
  return path;
}

bool IsListening(const std::string& path) {
  sockaddr_un address = {};
  if (path.size() >= sizeof address.sun_path) return false;
  const int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return false;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const bool connected =
      connect(socket_fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  close(socket_fd);
  return connected;
}

}  // namespace pagesaw
