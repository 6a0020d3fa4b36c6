// Status codes of Abseil and gRPC are the same numbers; this is the one place that relies on it.
#ifndef PAGESAW_CONTROL_GRPC_STATUS_H_
#define PAGESAW_CONTROL_GRPC_STATUS_H_

#include <absl/status/status.h>
#include <grpcpp/support/status.h>

#include <string>

namespace pagesaw {

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

inline absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace pagesaw

#endif  // PAGESAW_CONTROL_GRPC_STATUS_H_
