module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
module pagesaw.control.server;
import pagesaw.control.endpoint;

namespace pagesaw {
namespace {

// Calls that wait (consoles, WaitVm) hold a thread each.
constexpr int kMaxThreads = 512;

std::uint64_t RandomSecret() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

// Makes room for a socket at `path`.
absl::Status ClearPath(const std::string& path) {
  struct stat status = {};
  if (lstat(path.c_str(), &status) != 0) return absl::OkStatus();
  if (!S_ISSOCK(status.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": there is a file that is no socket"));
  }
  if (IsListening(path)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, ": the socket is in use: another daemon listens there"));
  }
  if (unlink(path.c_str()) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": a stale socket cannot be removed: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

// gRPC says only that it cannot listen, and that in a log of many lines: what the kernel says is
// asked here.
absl::Status TryPath(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool bound = socket_fd >= 0 && bind(socket_fd, reinterpret_cast<const sockaddr*>(&address),
                                            sizeof address) == 0;
  const int error = errno;
  if (socket_fd >= 0) close(socket_fd);
  if (bound && unlink(path.c_str()) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": cannot listen there: ", std::strerror(bound ? errno : error)));
}

}  // namespace

Server::Server(std::string path) : path_(std::move(path)), tokens_(RandomSecret()) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Listen(const std::string& address, VmManager& vms,
                                                       const PluginRegistry& registry) {
  auto path = SocketPathOf(address);
  if (!path.ok()) return path.status();
  if (auto status = ClearPath(*path); !status.ok()) return status;
  if (auto status = TryPath(*path); !status.ok()) return status;

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<Server> server(new Server(*path));
  server->vm_service_ = MakeVmService(vms, server->tokens_);
  server->mmu_service_ = MakeMmuService(vms, registry, server->tokens_);
  server->memory_service_ = MakeMemoryService(vms);

  grpc::ResourceQuota quota("pagesaw");
  quota.SetMaxThreads(kMaxThreads);
  grpc::ServerBuilder builder;
  int bound = 0;
  builder.SetResourceQuota(quota);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &bound);
  builder.RegisterService(server->vm_service_.get());
  builder.RegisterService(server->mmu_service_.get());
  builder.RegisterService(server->memory_service_.get());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || bound == 0) {
    return absl::FailedPreconditionError(absl::StrCat(address, ": cannot listen there"));
  }
  return server;
}

Server::~Server() { Stop(std::chrono::milliseconds(0)); }

void Server::Stop(std::chrono::milliseconds grace) {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  server_ = nullptr;
  unlink(path_.c_str());
}

}  // namespace pagesaw
