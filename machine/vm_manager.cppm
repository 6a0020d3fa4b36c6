// The virtual machines of a process, by name. Thread safe.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.vm_manager;

import pagesaw.core.plugin;
import pagesaw.machine.load_progress;
export import pagesaw.machine.vm;

export namespace pagesaw {

class VmManager {
 public:
  // `registry` outlives the manager and every VM that it made.
  VmManager(const PluginRegistry& registry, VmParts parts,
            std::uint64_t memory_limit_bytes = HostMemoryLimitBytes());

  // Makes a VM and keeps it under its name. AlreadyExists if the name is taken (also by a VM that
  // is still being made), else the errors of Vm::Create.
  absl::StatusOr<std::shared_ptr<Vm>> Create(const VmConfig& config);

  // How far the files of a VM that is being made have been read. NotFound if none of that name is.
  absl::StatusOr<std::shared_ptr<const LoadProgress>> Loading(std::string_view name) const;

  // NotFound if there is none of that name.
  absl::StatusOr<std::shared_ptr<Vm>> Get(std::string_view name) const;

  // Every VM, by name.
  std::vector<std::shared_ptr<Vm>> List() const;

  // Stops the VM and forgets it. It goes away with its last holder. NotFound as above.
  absl::Status Delete(std::string_view name);

  // Stops and forgets every VM.
  void DeleteAll();

 private:
  const PluginRegistry& registry_;
  const VmParts parts_;
  const std::uint64_t memory_limit_bytes_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Vm>, std::less<>> vms_;
  std::map<std::string, std::shared_ptr<LoadProgress>, std::less<>> being_made_;
};

}  // namespace pagesaw
