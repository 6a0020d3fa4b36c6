// VmService over VmManager.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "control/grpc_status.h"
#include "pagesaw/control/v1/vm_service.grpc.pb.h"
module pagesaw.control.server;
import :messages;
import pagesaw.control.arguments;
import pagesaw.core.address;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

using std::chrono::milliseconds;

constexpr std::int64_t kMaxMemoryBytes = std::int64_t{1} << 20;
constexpr std::int64_t kMaxWaitMs = 3'600'000;
constexpr std::size_t kConsoleChunkBytes = std::size_t{64} << 10;
// How soon a call that waits notices that its client is gone.
constexpr milliseconds kPatience(100);

absl::Status CheckMemorySize(std::int64_t bytes) {
  if (bytes >= 1 && bytes <= kMaxMemoryBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("size of ", bytes, " bytes: must be from 1 to ", kMaxMemoryBytes));
}

// A range that does not lie in RAM is the client's mistake here, not the end of a list.
grpc::Status MemoryStatus(const absl::Status& status) {
  if (!absl::IsOutOfRange(status)) return ToGrpc(status);
  return ToGrpc(absl::InvalidArgumentError(status.message()));
}

class VmServiceAdapter final : public v1::VmService::Service {
 public:
  VmServiceAdapter(VmManager& vms, const PageTokens& tokens) : vms_(vms), tokens_(tokens) {}

  grpc::Status CreateVm(grpc::ServerContext*, const v1::CreateVmRequest* request,
                        v1::Vm* response) override {
    const auto config = ConfigOf(*request);
    if (!config.ok()) return ToGrpc(config.status());
    const auto vm = vms_.Create(*config);
    if (!vm.ok()) return ToGrpc(vm.status());
    Fill(*response, **vm);
    return grpc::Status::OK;
  }

  grpc::Status GetLoadProgress(grpc::ServerContext*, const v1::GetLoadProgressRequest* request,
                               v1::LoadProgress* response) override {
    const auto name = ParseVmName(request->name());
    if (!name.ok()) return ToGrpc(name.status());
    const auto progress = vms_.Loading(*name);
    if (!progress.ok()) return ToGrpc(progress.status());
    response->set_done_bytes(static_cast<std::int64_t>((*progress)->done_bytes()));
    response->set_total_bytes(static_cast<std::int64_t>((*progress)->total_bytes()));
    return grpc::Status::OK;
  }

  grpc::Status ListVms(grpc::ServerContext*, const v1::ListVmsRequest* request,
                       v1::ListVmsResponse* response) override {
    const auto size = PageSize(request->page_size());
    if (!size.ok()) return ToGrpc(size.status());
    const auto after = tokens_.Open("ListVms", request->page_token());
    if (!after.ok()) return ToGrpc(after.status());
    for (const auto& vm : vms_.List()) {
      if (vm->name() <= *after) continue;
      if (static_cast<std::size_t>(response->vms_size()) == *size) {
        const std::string& last = response->vms(response->vms_size() - 1).name();
        response->set_next_page_token(tokens_.Make("ListVms", *ParseVmName(last)));
        break;
      }
      Fill(*response->add_vms(), *vm);
    }
    return grpc::Status::OK;
  }

  grpc::Status GetVm(grpc::ServerContext*, const v1::GetVmRequest* request,
                     v1::Vm* response) override {
    return OnVm(request->name(), response, [](Vm&) { return absl::OkStatus(); });
  }
  grpc::Status StartVm(grpc::ServerContext*, const v1::StartVmRequest* request,
                       v1::Vm* response) override {
    return OnVm(request->name(), response, [](Vm& vm) { return vm.Start(); });
  }
  grpc::Status PauseVm(grpc::ServerContext*, const v1::PauseVmRequest* request,
                       v1::Vm* response) override {
    return OnVm(request->name(), response, [](Vm& vm) { return vm.Pause(); });
  }
  grpc::Status ResumeVm(grpc::ServerContext*, const v1::ResumeVmRequest* request,
                        v1::Vm* response) override {
    return OnVm(request->name(), response, [](Vm& vm) { return vm.Resume(); });
  }
  grpc::Status StopVm(grpc::ServerContext*, const v1::StopVmRequest* request,
                      v1::Vm* response) override {
    return OnVm(request->name(), response, [](Vm& vm) { return vm.Stop(); });
  }

  grpc::Status DeleteVm(grpc::ServerContext*, const v1::DeleteVmRequest* request,
                        v1::DeleteVmResponse*) override {
    const auto name = ParseVmName(request->name());
    if (!name.ok()) return ToGrpc(name.status());
    return ToGrpc(vms_.Delete(*name));
  }

  grpc::Status WaitVm(grpc::ServerContext* context, const v1::WaitVmRequest* request,
                      v1::Vm* response) override {
    const std::int64_t timeout_ms = request->timeout_ms();
    if (timeout_ms < 0 || timeout_ms > kMaxWaitMs) {
      return ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("timeout_ms ", timeout_ms, ": must be from 0 to ", kMaxWaitMs)));
    }
    const auto until = std::chrono::steady_clock::now() + milliseconds(timeout_ms);
    return OnVm(request->name(), response, [context, until](Vm& vm) {
      while (!context->IsCancelled()) {
        const auto left = std::chrono::ceil<milliseconds>(until - std::chrono::steady_clock::now());
        if (vm.WaitUntilStopped(std::clamp(left, milliseconds(0), kPatience))) break;
        if (left <= milliseconds(0)) break;
      }
      return absl::OkStatus();
    });
  }

  grpc::Status StreamConsole(grpc::ServerContext* context, const v1::StreamConsoleRequest* request,
                             grpc::ServerWriter<v1::StreamConsoleResponse>* writer) override {
    const auto vm = FindVm(request->name());
    if (!vm.ok()) return ToGrpc(vm.status());
    std::uint64_t position = 0;
    while (!context->IsCancelled()) {
      ConsoleChunk chunk = (*vm)->console().Read(position, kConsoleChunkBytes, kPatience);
      if (!chunk.data.empty()) {
        v1::StreamConsoleResponse message;
        // What the console forgot before the first message was never promised.
        message.set_lost_bytes(position == 0 ? 0 : static_cast<std::int64_t>(chunk.lost_bytes));
        message.set_data(std::move(chunk.data));
        if (!writer->Write(message)) return grpc::Status::CANCELLED;
      }
      position = chunk.next;
      if (!chunk.closed) continue;
      (*vm)->WaitUntilStopped(kPatience);
      v1::StreamConsoleResponse message;
      Fill(*message.mutable_exit(), (*vm)->exit());
      writer->Write(message);
      return grpc::Status::OK;
    }
    return grpc::Status::CANCELLED;
  }

  grpc::Status WriteConsole(grpc::ServerContext*, const v1::WriteConsoleRequest* request,
                            v1::WriteConsoleResponse*) override {
    const auto vm = FindVm(request->name());
    if (!vm.ok()) return ToGrpc(vm.status());
    return ToGrpc((*vm)->WriteConsole(request->data()));
  }

  grpc::Status ReadMemory(grpc::ServerContext*, const v1::ReadMemoryRequest* request,
                          v1::ReadMemoryResponse* response) override {
    const auto vm = FindVm(request->name());
    if (!vm.ok()) return ToGrpc(vm.status());
    if (auto status = CheckMemorySize(request->size_bytes()); !status.ok()) return ToGrpc(status);
    std::string data(static_cast<std::size_t>(request->size_bytes()), '\0');
    const auto status =
        (*vm)->ReadMemory(Gpa(request->gpa()), std::as_writable_bytes(std::span(data)));
    if (status.ok()) response->set_data(std::move(data));
    return MemoryStatus(status);
  }

  grpc::Status WriteMemory(grpc::ServerContext*, const v1::WriteMemoryRequest* request,
                           v1::WriteMemoryResponse*) override {
    const auto vm = FindVm(request->name());
    if (!vm.ok()) return ToGrpc(vm.status());
    const auto size = static_cast<std::int64_t>(request->data().size());
    if (auto status = CheckMemorySize(size); !status.ok()) return ToGrpc(status);
    return MemoryStatus(
        (*vm)->WriteMemory(Gpa(request->gpa()), std::as_bytes(std::span(request->data()))));
  }

  grpc::Status GetRegisters(grpc::ServerContext*, const v1::GetRegistersRequest* request,
                            v1::Registers* response) override {
    const auto name = ParseVcpuName(request->name());
    if (!name.ok()) return ToGrpc(name.status());
    const auto vm = vms_.Get(name->vm);
    if (!vm.ok()) return ToGrpc(vm.status());
    const auto state = (*vm)->GetRegisters(name->vcpu);
    if (!state.ok()) return ToGrpc(state.status());
    Fill(*response, *state);
    return grpc::Status::OK;
  }

  grpc::Status SetRegisters(grpc::ServerContext*, const v1::SetRegistersRequest* request,
                            v1::Registers* response) override {
    const auto name = ParseVcpuName(request->name());
    if (!name.ok()) return ToGrpc(name.status());
    const auto vm = vms_.Get(name->vm);
    if (!vm.ok()) return ToGrpc(vm.status());
    auto state = (*vm)->GetRegisters(name->vcpu);
    if (!state.ok()) return ToGrpc(state.status());
    if (auto status = ApplyRegisters(request->registers(), *state); !status.ok()) {
      return ToGrpc(status);
    }
    if (auto status = (*vm)->SetRegisters(name->vcpu, *state); !status.ok()) {
      return ToGrpc(status);
    }
    Fill(*response, *state);
    return grpc::Status::OK;
  }

 private:
  absl::StatusOr<std::shared_ptr<Vm>> FindVm(const std::string& name) const {
    const auto id = ParseVmName(name);
    if (!id.ok()) return id.status();
    return vms_.Get(*id);
  }

  // Does `action` to the VM called `name`, and answers with the VM.
  template <typename Action>
  grpc::Status OnVm(const std::string& name, v1::Vm* response, const Action& action) const {
    const auto vm = FindVm(name);
    if (!vm.ok()) return ToGrpc(vm.status());
    if (auto status = action(**vm); !status.ok()) return ToGrpc(status);
    Fill(*response, **vm);
    return grpc::Status::OK;
  }

  VmManager& vms_;
  const PageTokens& tokens_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeVmService(VmManager& vms, const PageTokens& tokens) {
  return std::make_unique<VmServiceAdapter>(vms, tokens);
}

}  // namespace pagesaw
