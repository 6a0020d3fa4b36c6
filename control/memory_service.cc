// MemoryService over VmManager.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "control/grpc_status.h"
#include "pagesaw/control/v1/memory_service.grpc.pb.h"
module pagesaw.control.server;
import pagesaw.control.arguments;
import pagesaw.core.address;
import pagesaw.core.guest_memory;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

struct Slot {
  std::shared_ptr<Vm> vm;
  std::uint32_t id = 0;
};

v1::DirtyLogMethod MethodMessage(DirtyLogMethod method) {
  return method == DirtyLogMethod::kDirtyBits ? v1::DIRTY_BITS : v1::WRITE_PROTECT;
}

absl::StatusOr<std::optional<DirtyLogMethod>> MethodOf(v1::DirtyLogMethod method) {
  switch (method) {
    case v1::DIRTY_LOG_METHOD_UNSPECIFIED:
      return std::nullopt;
    case v1::WRITE_PROTECT:
      return DirtyLogMethod::kWriteProtect;
    case v1::DIRTY_BITS:
      return DirtyLogMethod::kDirtyBits;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("method ", method, ": must be WRITE_PROTECT or DIRTY_BITS"));
  }
}

void Fill(v1::MemorySlot& message, Vm& vm, const MemorySlot& slot) {
  message.set_name(SlotResourceName(vm.name(), slot.id));
  message.set_gpa(GpaOf(slot.first).bits());
  message.set_size_bytes(static_cast<std::int64_t>(slot.page_count * kPageBytes));
  message.set_read_only(slot.read_only);
  message.set_ram(vm.memory().IsRam(slot.id));
  if (const auto method = vm.memory().DirtyLogOf(slot.id)) {
    message.set_dirty_log_method(MethodMessage(*method));
  }
}

void Fill(v1::DirtyLog& message, const DirtyPages& pages) {
  message.set_gpa(GpaOf(pages.slot.first).bits());
  message.set_page_count(static_cast<std::int64_t>(pages.slot.page_count));
  message.set_dirty_page_count(static_cast<std::int64_t>(pages.count));
  message.set_method(MethodMessage(pages.method));
  std::string& bitmap = *message.mutable_bitmap();
  for (const std::uint64_t word : pages.words) {
    for (unsigned shift = 0; shift < 64; shift += 8) bitmap += static_cast<char>(word >> shift);
  }
  bitmap.erase(bitmap.find_last_not_of('\0') + 1);
}

class MemoryServiceAdapter final : public v1::MemoryService::Service {
 public:
  explicit MemoryServiceAdapter(VmManager& vms) : vms_(vms) {}

  grpc::Status ListMemorySlots(grpc::ServerContext*, const v1::ListMemorySlotsRequest* request,
                               v1::ListMemorySlotsResponse* response) override {
    const auto name = ParseVmName(request->parent());
    if (!name.ok()) return ToGrpc(name.status());
    const auto vm = vms_.Get(*name);
    if (!vm.ok()) return ToGrpc(vm.status());
    for (const MemorySlot& slot : (*vm)->MemorySlots()) {
      Fill(*response->add_memory_slots(), **vm, slot);
    }
    return grpc::Status::OK;
  }

  grpc::Status AddMemorySlot(grpc::ServerContext*, const v1::AddMemorySlotRequest* request,
                             v1::MemorySlot* response) override {
    const v1::MemorySlot& wanted = request->memory_slot();
    if (wanted.size_bytes() <= 0) {
      return ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("size_bytes ", wanted.size_bytes(), ": must be positive")));
    }
    return OnSlot(wanted.name(), response, [&](VmMemory& memory, std::uint32_t id) {
      return memory.Add({.id = id,
                         .base = Gpa(wanted.gpa()),
                         .bytes = static_cast<std::uint64_t>(wanted.size_bytes()),
                         .read_only = wanted.read_only()});
    });
  }

  grpc::Status DeleteMemorySlot(grpc::ServerContext*, const v1::DeleteMemorySlotRequest* request,
                                v1::DeleteMemorySlotResponse*) override {
    const auto slot = FindSlot(request->name());
    if (!slot.ok()) return ToGrpc(slot.status());
    return ToGrpc(slot->vm->memory().Delete(slot->id));
  }

  grpc::Status MoveMemorySlot(grpc::ServerContext*, const v1::MoveMemorySlotRequest* request,
                              v1::MemorySlot* response) override {
    return OnSlot(request->name(), response, [&](VmMemory& memory, std::uint32_t id) {
      return memory.Move(id, Gpa(request->gpa()));
    });
  }

  grpc::Status UpdateMemorySlot(grpc::ServerContext*, const v1::UpdateMemorySlotRequest* request,
                                v1::MemorySlot* response) override {
    return OnSlot(request->name(), response, [&](VmMemory& memory, std::uint32_t id) {
      return memory.SetReadOnly(id, request->read_only());
    });
  }

  grpc::Status StartDirtyLog(grpc::ServerContext*, const v1::StartDirtyLogRequest* request,
                             v1::MemorySlot* response) override {
    const auto method = MethodOf(request->method());
    if (!method.ok()) return ToGrpc(method.status());
    return OnSlot(request->name(), response,
                  [&](VmMemory& memory, std::uint32_t id) -> absl::StatusOr<MemorySlot> {
                    const auto chosen = memory.StartDirtyLog(id, *method);
                    if (!chosen.ok()) return chosen.status();
                    return memory.Find(id);
                  });
  }

  grpc::Status TakeDirtyLog(grpc::ServerContext*, const v1::TakeDirtyLogRequest* request,
                            v1::DirtyLog* response) override {
    const auto slot = FindSlot(request->name());
    if (!slot.ok()) return ToGrpc(slot.status());
    const auto pages = slot->vm->memory().TakeDirtyLog(slot->id);
    if (!pages.ok()) return ToGrpc(pages.status());
    Fill(*response, *pages);
    return grpc::Status::OK;
  }

  grpc::Status StopDirtyLog(grpc::ServerContext*, const v1::StopDirtyLogRequest* request,
                            v1::MemorySlot* response) override {
    return OnSlot(request->name(), response,
                  [](VmMemory& memory, std::uint32_t id) -> absl::StatusOr<MemorySlot> {
                    if (auto status = memory.StopDirtyLog(id); !status.ok()) return status;
                    return memory.Find(id);
                  });
  }

  grpc::Status TakeWorkingSet(grpc::ServerContext*, const v1::TakeWorkingSetRequest* request,
                              v1::WorkingSet* response) override {
    const auto slot = FindSlot(request->name());
    if (!slot.ok()) return ToGrpc(slot.status());
    const auto found = slot->vm->memory().Find(slot->id);
    if (!found.ok()) return ToGrpc(found.status());
    const auto used = slot->vm->memory().TakeWorkingSet(slot->id);
    if (!used.ok()) return ToGrpc(used.status());
    response->set_used_page_count(static_cast<std::int64_t>(*used));
    response->set_page_count(static_cast<std::int64_t>(found->page_count));
    return grpc::Status::OK;
  }

 private:
  absl::StatusOr<Slot> FindSlot(const std::string& name) const {
    const auto parsed = ParseSlotName(name);
    if (!parsed.ok()) return parsed.status();
    auto vm = vms_.Get(parsed->vm);
    if (!vm.ok()) return vm.status();
    return Slot{.vm = *std::move(vm), .id = parsed->slot};
  }

  // Does `action` to the slot called `name`, and answers with the slot it gives.
  template <typename Action>
  grpc::Status OnSlot(const std::string& name, v1::MemorySlot* response,
                      const Action& action) const {
    const auto slot = FindSlot(name);
    if (!slot.ok()) return ToGrpc(slot.status());
    const absl::StatusOr<MemorySlot> result = action(slot->vm->memory(), slot->id);
    if (!result.ok()) return ToGrpc(result.status());
    Fill(*response, *slot->vm, *result);
    return grpc::Status::OK;
  }

  VmManager& vms_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeMemoryService(VmManager& vms) {
  return std::make_unique<MemoryServiceAdapter>(vms);
}

}  // namespace pagesaw
