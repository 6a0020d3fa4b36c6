module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.machine.vm_manager;

namespace pagesaw {
namespace {

absl::Status NoSuchVm(std::string_view name) {
  return absl::NotFoundError(
      absl::StrFormat("VM '%s': there is none of that name", name.substr(0, 80)));
}

}  // namespace

VmManager::VmManager(const PluginRegistry& registry, VmParts parts,
                     std::uint64_t memory_limit_bytes)
    : registry_(registry), parts_(std::move(parts)), memory_limit_bytes_(memory_limit_bytes) {}

absl::StatusOr<std::shared_ptr<Vm>> VmManager::Create(const VmConfig& config) {
  if (absl::Status status = CheckVmName(config.name); !status.ok()) return status;
  const auto progress = std::make_shared<LoadProgress>();
  {
    const std::lock_guard lock(mutex_);
    if (vms_.contains(config.name) || !being_made_.emplace(config.name, progress).second) {
      return absl::AlreadyExistsError(absl::StrFormat("VM '%s': the name is taken", config.name));
    }
  }
  // Reading an image may take a while: others go on meanwhile, and the name is reserved.
  absl::StatusOr<std::unique_ptr<Vm>> made =
      Vm::Create(config, registry_, parts_, memory_limit_bytes_, progress.get());
  const std::lock_guard lock(mutex_);
  being_made_.erase(config.name);
  if (!made.ok()) return made.status();
  std::shared_ptr<Vm> vm = *std::move(made);
  vms_.emplace(config.name, vm);
  return vm;
}

absl::StatusOr<std::shared_ptr<const LoadProgress>> VmManager::Loading(
    std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto found = being_made_.find(name);
  if (found == being_made_.end()) {
    return absl::NotFoundError(
        absl::StrFormat("VM '%s': none of that name is being made", name.substr(0, 80)));
  }
  return found->second;
}

absl::StatusOr<std::shared_ptr<Vm>> VmManager::Get(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto found = vms_.find(name);
  if (found == vms_.end()) return NoSuchVm(name);
  return found->second;
}

std::vector<std::shared_ptr<Vm>> VmManager::List() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Vm>> list;
  list.reserve(vms_.size());
  for (const auto& [name, vm] : vms_) list.push_back(vm);
  return list;
}

absl::Status VmManager::Delete(std::string_view name) {
  std::shared_ptr<Vm> vm;
  {
    const std::lock_guard lock(mutex_);
    const auto found = vms_.find(name);
    if (found == vms_.end()) return NoSuchVm(name);
    vm = std::move(found->second);
    vms_.erase(found);
  }
  return vm->Stop();
}

void VmManager::DeleteAll() {
  std::map<std::string, std::shared_ptr<Vm>, std::less<>> all;
  {
    const std::lock_guard lock(mutex_);
    all.swap(vms_);
  }
  for (const auto& [name, vm] : all) (void)vm->Stop();
}

}  // namespace pagesaw
