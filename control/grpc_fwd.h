// What module interfaces need to know of gRPC.
#ifndef PAGESAW_CONTROL_GRPC_FWD_H_
#define PAGESAW_CONTROL_GRPC_FWD_H_

namespace grpc {
class Server;
class Service;
}  // namespace grpc

#endif  // PAGESAW_CONTROL_GRPC_FWD_H_
