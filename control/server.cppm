// The gRPC server of the daemon: `pagesaw.control.v1` over a Unix socket, with health and
// reflection. What it serves are adapters, one for each service; what they adapt lies in machine/
// and below.
module;
#include <absl/status/statusor.h>

#include <chrono>
#include <memory>
#include <string>

#include "control/grpc_fwd.h"
export module pagesaw.control.server;

import pagesaw.control.page_token;
import pagesaw.core.plugin;
import pagesaw.machine.vm_manager;

namespace pagesaw {

// The adapters. What they are given outlives them.
std::unique_ptr<grpc::Service> MakeVmService(VmManager& vms, const PageTokens& tokens);
std::unique_ptr<grpc::Service> MakeMmuService(VmManager& vms, const PluginRegistry& registry,
                                              const PageTokens& tokens);
std::unique_ptr<grpc::Service> MakeMemoryService(VmManager& vms);

}  // namespace pagesaw

export namespace pagesaw {

class Server {
 public:
  // Serves `vms` and `registry`, which outlive the server, at `address`, `unix:PATH`. The socket of
  // a server that is gone is replaced. InvalidArgument for an address that cannot be, AlreadyExists
  // if somebody listens there.
  static absl::StatusOr<std::unique_ptr<Server>> Listen(const std::string& address, VmManager& vms,
                                                        const PluginRegistry& registry);
  // As Stop(0).
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Takes no more calls, cancels those that are not done after `grace`, removes the socket.
  void Stop(std::chrono::milliseconds grace);

 private:
  explicit Server(std::string path);

  std::string path_;
  PageTokens tokens_;
  std::unique_ptr<grpc::Service> vm_service_;
  std::unique_ptr<grpc::Service> mmu_service_;
  std::unique_ptr<grpc::Service> memory_service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace pagesaw
