#include "control/cli/client.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "control/grpc_status.h"
#include "pagesaw/control/v1/memory_service.grpc.pb.h"
#include "pagesaw/control/v1/mmu_service.grpc.pb.h"
#include "pagesaw/control/v1/vm_service.grpc.pb.h"

namespace pagesaw {
namespace v1 = control::v1;

struct Client::Stubs {
  std::unique_ptr<v1::VmService::Stub> vm;
  std::unique_ptr<v1::MmuService::Stub> mmu;
  std::unique_ptr<v1::MemoryService::Stub> memory;
};

namespace {

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Unary(Stub& stub,
                               grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                            Response*),
                               const Request& request) {
  grpc::ClientContext context;
  Response response;
  const absl::Status status = FromGrpc((stub.*method)(&context, request, &response));
  if (!status.ok()) return status;
  return response;
}

}  // namespace

Client::Client(const std::string& endpoint) : stubs_(std::make_unique<Stubs>()) {
  const auto channel = grpc::CreateChannel(endpoint, grpc::InsecureChannelCredentials());
  stubs_->vm = v1::VmService::NewStub(channel);
  stubs_->mmu = v1::MmuService::NewStub(channel);
  stubs_->memory = v1::MemoryService::NewStub(channel);
}

Client::~Client() = default;

absl::StatusOr<v1::Vm> Client::Call(const v1::CreateVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::CreateVm, request);
}
absl::StatusOr<v1::LoadProgress> Client::Call(const v1::GetLoadProgressRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::GetLoadProgress, request);
}
absl::StatusOr<v1::ListVmsResponse> Client::Call(const v1::ListVmsRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::ListVms, request);
}
absl::StatusOr<v1::Vm> Client::Call(const v1::GetVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::GetVm, request);
}
absl::StatusOr<v1::Vm> Client::Call(const v1::StartVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::StartVm, request);
}
absl::StatusOr<v1::Vm> Client::Call(const v1::PauseVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::PauseVm, request);
}
absl::StatusOr<v1::Vm> Client::Call(const v1::ResumeVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::ResumeVm, request);
}
absl::StatusOr<v1::Vm> Client::Call(const v1::StopVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::StopVm, request);
}
absl::StatusOr<v1::DeleteVmResponse> Client::Call(const v1::DeleteVmRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::DeleteVm, request);
}
absl::StatusOr<v1::WriteConsoleResponse> Client::Call(const v1::WriteConsoleRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::WriteConsole, request);
}
absl::StatusOr<v1::ReadMemoryResponse> Client::Call(const v1::ReadMemoryRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::ReadMemory, request);
}
absl::StatusOr<v1::WriteMemoryResponse> Client::Call(const v1::WriteMemoryRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::WriteMemory, request);
}
absl::StatusOr<v1::Registers> Client::Call(const v1::GetRegistersRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::GetRegisters, request);
}
absl::StatusOr<v1::Registers> Client::Call(const v1::SetRegistersRequest& request) {
  return Unary(*stubs_->vm, &v1::VmService::Stub::SetRegisters, request);
}
absl::StatusOr<v1::ListWalkersResponse> Client::Call(const v1::ListWalkersRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListWalkers, request);
}
absl::StatusOr<v1::ListShadowMmusResponse> Client::Call(const v1::ListShadowMmusRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListShadowMmus, request);
}
absl::StatusOr<v1::ListFormatsResponse> Client::Call(const v1::ListFormatsRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListFormats, request);
}
absl::StatusOr<v1::Format> Client::Call(const v1::GetFormatRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::GetFormat, request);
}
absl::StatusOr<v1::WalkResponse> Client::Call(const v1::WalkRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::Walk, request);
}
absl::StatusOr<v1::WalkSptesResponse> Client::Call(const v1::WalkSptesRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::WalkSptes, request);
}
absl::StatusOr<v1::NestedState> Client::Call(const v1::GetNestedStateRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::GetNestedState, request);
}
absl::StatusOr<v1::ListRootsResponse> Client::Call(const v1::ListRootsRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListRoots, request);
}
absl::StatusOr<v1::ListShadowPagesResponse> Client::Call(
    const v1::ListShadowPagesRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListShadowPages, request);
}
absl::StatusOr<v1::SetMemoryAttributeResponse> Client::Call(
    const v1::SetMemoryAttributeRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::SetMemoryAttribute, request);
}
absl::StatusOr<v1::ListMemoryAttributesResponse> Client::Call(
    const v1::ListMemoryAttributesRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListMemoryAttributes, request);
}
absl::StatusOr<v1::ListAttributeViolationsResponse> Client::Call(
    const v1::ListAttributeViolationsRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::ListAttributeViolations, request);
}
absl::StatusOr<v1::Statistics> Client::Call(const v1::GetStatisticsRequest& request) {
  return Unary(*stubs_->mmu, &v1::MmuService::Stub::GetStatistics, request);
}

absl::StatusOr<v1::ListMemorySlotsResponse> Client::Call(
    const v1::ListMemorySlotsRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::ListMemorySlots, request);
}
absl::StatusOr<v1::MemorySlot> Client::Call(const v1::AddMemorySlotRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::AddMemorySlot, request);
}
absl::StatusOr<v1::DeleteMemorySlotResponse> Client::Call(
    const v1::DeleteMemorySlotRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::DeleteMemorySlot, request);
}
absl::StatusOr<v1::MemorySlot> Client::Call(const v1::MoveMemorySlotRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::MoveMemorySlot, request);
}
absl::StatusOr<v1::MemorySlot> Client::Call(const v1::UpdateMemorySlotRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::UpdateMemorySlot, request);
}
absl::StatusOr<v1::MemorySlot> Client::Call(const v1::StartDirtyLogRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::StartDirtyLog, request);
}
absl::StatusOr<v1::DirtyLog> Client::Call(const v1::TakeDirtyLogRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::TakeDirtyLog, request);
}
absl::StatusOr<v1::MemorySlot> Client::Call(const v1::StopDirtyLogRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::StopDirtyLog, request);
}
absl::StatusOr<v1::WorkingSet> Client::Call(const v1::TakeWorkingSetRequest& request) {
  return Unary(*stubs_->memory, &v1::MemoryService::Stub::TakeWorkingSet, request);
}

absl::Status Client::StreamConsole(
    const std::string& name,
    const std::function<bool(const v1::StreamConsoleResponse&)>& on_message) {
  grpc::ClientContext context;
  v1::StreamConsoleRequest request;
  request.set_name(name);
  const auto reader = stubs_->vm->StreamConsole(&context, request);
  v1::StreamConsoleResponse message;
  while (reader->Read(&message)) {
    if (on_message(message)) continue;
    context.TryCancel();
    while (reader->Read(&message)) {
    }
    reader->Finish();
    return absl::OkStatus();
  }
  return FromGrpc(reader->Finish());
}

}  // namespace pagesaw
