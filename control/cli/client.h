// Calls of `pagesaw.control.v1`, as the CLI makes them. gRPC stays behind this.
#ifndef PAGESAW_CONTROL_CLI_CLIENT_H_
#define PAGESAW_CONTROL_CLI_CLIENT_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <functional>
#include <memory>
#include <string>

#include "pagesaw/control/v1/memory_service.pb.h"
#include "pagesaw/control/v1/mmu_service.pb.h"
#include "pagesaw/control/v1/vm_service.pb.h"

namespace pagesaw {

// Thread safe. Errors are those of the daemon; Unavailable if it cannot be reached.
class Client {
 public:
  // `endpoint` is `unix:PATH`. Connects with the first call.
  explicit Client(const std::string& endpoint);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  absl::StatusOr<control::v1::Vm> Call(const control::v1::CreateVmRequest& request);
  absl::StatusOr<control::v1::ListVmsResponse> Call(const control::v1::ListVmsRequest& request);
  absl::StatusOr<control::v1::Vm> Call(const control::v1::GetVmRequest& request);
  absl::StatusOr<control::v1::LoadProgress> Call(
      const control::v1::GetLoadProgressRequest& request);
  absl::StatusOr<control::v1::Vm> Call(const control::v1::StartVmRequest& request);
  absl::StatusOr<control::v1::Vm> Call(const control::v1::PauseVmRequest& request);
  absl::StatusOr<control::v1::Vm> Call(const control::v1::ResumeVmRequest& request);
  absl::StatusOr<control::v1::Vm> Call(const control::v1::StopVmRequest& request);
  absl::StatusOr<control::v1::DeleteVmResponse> Call(const control::v1::DeleteVmRequest& request);
  absl::StatusOr<control::v1::WriteConsoleResponse> Call(
      const control::v1::WriteConsoleRequest& request);
  absl::StatusOr<control::v1::ReadMemoryResponse> Call(
      const control::v1::ReadMemoryRequest& request);
  absl::StatusOr<control::v1::WriteMemoryResponse> Call(
      const control::v1::WriteMemoryRequest& request);
  absl::StatusOr<control::v1::Registers> Call(const control::v1::GetRegistersRequest& request);
  absl::StatusOr<control::v1::Registers> Call(const control::v1::SetRegistersRequest& request);

  absl::StatusOr<control::v1::ListWalkersResponse> Call(
      const control::v1::ListWalkersRequest& request);
  absl::StatusOr<control::v1::ListShadowMmusResponse> Call(
      const control::v1::ListShadowMmusRequest& request);
  absl::StatusOr<control::v1::ListFormatsResponse> Call(
      const control::v1::ListFormatsRequest& request);
  absl::StatusOr<control::v1::Format> Call(const control::v1::GetFormatRequest& request);
  absl::StatusOr<control::v1::WalkResponse> Call(const control::v1::WalkRequest& request);
  absl::StatusOr<control::v1::WalkSptesResponse> Call(const control::v1::WalkSptesRequest& request);
  absl::StatusOr<control::v1::NestedState> Call(const control::v1::GetNestedStateRequest& request);
  absl::StatusOr<control::v1::ListRootsResponse> Call(const control::v1::ListRootsRequest& request);
  absl::StatusOr<control::v1::ListShadowPagesResponse> Call(
      const control::v1::ListShadowPagesRequest& request);
  absl::StatusOr<control::v1::SetMemoryAttributeResponse> Call(
      const control::v1::SetMemoryAttributeRequest& request);
  absl::StatusOr<control::v1::ListMemoryAttributesResponse> Call(
      const control::v1::ListMemoryAttributesRequest& request);
  absl::StatusOr<control::v1::ListAttributeViolationsResponse> Call(
      const control::v1::ListAttributeViolationsRequest& request);
  absl::StatusOr<control::v1::Statistics> Call(const control::v1::GetStatisticsRequest& request);

  absl::StatusOr<control::v1::ListMemorySlotsResponse> Call(
      const control::v1::ListMemorySlotsRequest& request);
  absl::StatusOr<control::v1::MemorySlot> Call(const control::v1::AddMemorySlotRequest& request);
  absl::StatusOr<control::v1::DeleteMemorySlotResponse> Call(
      const control::v1::DeleteMemorySlotRequest& request);
  absl::StatusOr<control::v1::MemorySlot> Call(const control::v1::MoveMemorySlotRequest& request);
  absl::StatusOr<control::v1::MemorySlot> Call(const control::v1::UpdateMemorySlotRequest& request);
  absl::StatusOr<control::v1::MemorySlot> Call(const control::v1::StartDirtyLogRequest& request);
  absl::StatusOr<control::v1::DirtyLog> Call(const control::v1::TakeDirtyLogRequest& request);
  absl::StatusOr<control::v1::MemorySlot> Call(const control::v1::StopDirtyLogRequest& request);
  absl::StatusOr<control::v1::WorkingSet> Call(const control::v1::TakeWorkingSetRequest& request);

  // Hands each message to `on_message` until the stream ends or that returns false.
  absl::Status StreamConsole(
      const std::string& name,
      const std::function<bool(const control::v1::StreamConsoleResponse&)>& on_message);

 private:
  struct Stubs;
  std::unique_ptr<Stubs> stubs_;
};

}  // namespace pagesaw

#endif  // PAGESAW_CONTROL_CLI_CLIENT_H_
