// A virtual machine: memory, vCPUs and devices, driven by whoever holds it, on any thread. Each
// call that can be refused returns a Status whose message names what was refused.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.vm;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.plugin;
import pagesaw.core.shadow_mmu;
export import pagesaw.machine.console;
export import pagesaw.machine.inspector;
export import pagesaw.machine.lifecycle;
export import pagesaw.machine.load_progress;
export import pagesaw.machine.violation_log;
export import pagesaw.machine.vm_config;
export import pagesaw.machine.vm_exit;
export import pagesaw.machine.vm_memory;
export import pagesaw.machine.vm_parts;
export import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

struct VmStatistics {
  MmuStatistics mmu;
  std::vector<VcpuStatistics> vcpus;
  std::uint64_t memory_resident_bytes = 0;  // guest memory that the host holds in RAM
};

class Vm {
 public:
  // Makes a VM in state kCreated with its image loaded. Nothing is left behind if that fails.
  // `registry` outlives the VM. Errors: those of CheckVmConfig; InvalidArgument (vendor, features,
  // a bad image), NotFound (a file), FailedPrecondition (no format for an execute split).
  // `progress`, if it is not null, is told how far the files have been read.
  static absl::StatusOr<std::unique_ptr<Vm>> Create(
      const VmConfig& config, const PluginRegistry& registry, const VmParts& parts,
      std::uint64_t memory_limit_bytes = HostMemoryLimitBytes(), LoadProgress* progress = nullptr);

  // Stops the guest and waits for its vCPUs.
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  const VmConfig& config() const;
  const std::string& name() const;
  VmState state() const;
  // How the VM ended; reason kNone until it is stopped.
  VmExit exit() const;

  // created -> running. FailedPrecondition in any other state.
  absl::Status Start();
  // running -> paused; returns when no vCPU executes. OK if paused already.
  absl::Status Pause();
  // paused -> running. OK if running already. What an attribute refused is tried again.
  absl::Status Resume();
  // -> stopped, from any state; returns when no vCPU executes. OK if stopped already.
  absl::Status Stop();
  // Waits until the VM is stopped; false if `timeout` passed first.
  bool WaitUntilStopped(std::chrono::milliseconds timeout) const;

  // What the guest prints. Closed when the VM stops; readable for as long as the VM exists.
  const Console& console() const;
  // Types `data` into the virtio console if a driver uses one, else into the serial port.
  // ResourceExhausted, and nothing typed, if there is no room for all.
  absl::Status WriteConsole(std::string_view data);

  // Guest-physical memory, in any state. OutOfRange if a byte lies outside RAM; nothing is copied
  // then. A write is seen by running vCPUs as one by a device would be.
  absl::Status ReadMemory(Gpa gpa, std::span<std::byte> bytes) const;
  absl::Status WriteMemory(Gpa gpa, std::span<const std::byte> bytes);
  std::vector<MemorySlot> MemorySlots() const;
  // Slots, and what was written in them, in any state.
  VmMemory& memory();

  // What the host lets the guest do with its memory, whatever the guest's tables grant; docs/mmu.md
  // has the rules. Gives the pages of [first, first + bytes) `attribute`, in any state; when it
  // returns, no vCPU can do more there. The rights of a frame that was never given any are all.
  // InvalidArgument: a range that is empty, not of whole pages or beyond the guest's physical
  // addresses, writing without reading. FailedPrecondition: rights that this VM's SPTEs cannot tell
  // apart. ResourceExhausted: too many ranges. Nothing has changed then.
  absl::Status SetMemoryAttribute(Gpa first, std::uint64_t bytes, const MemoryAttribute& attribute);
  // Every range with less than all rights, ascending.
  std::vector<AttributeRange> MemoryAttributes() const;
  MemoryAttribute MemoryAttributeOf(Gpa gpa) const;
  // What attributes refused.
  const ViolationLog& violations() const;

  unsigned vcpu_count() const;
  // Registers. FailedPrecondition while running; NotFound for an unknown vCPU. A state that no
  // processor can be in is InvalidArgument. In guest mode they are those of the guest's guest, and
  // to set them is FailedPrecondition.
  absl::StatusOr<CpuState> GetRegisters(unsigned vcpu) const;
  absl::Status SetRegisters(unsigned vcpu, const CpuState& state);

  // Inspection: in any state, without stopping the guest and without changing its memory. NotFound
  // for an unknown vCPU, walker or shadow MMU.
  absl::StatusOr<PagingState> GetPagingState(unsigned vcpu) const;
  absl::StatusOr<std::vector<WalkerInfo>> Walkers(unsigned vcpu) const;
  absl::StatusOr<std::vector<ShadowMmuInfo>> ShadowMmus(unsigned vcpu) const;
  // Walks the guest's tables for `address`: a linear address for `cpu_walk`, a physical address of
  // the guest's guest for `tdp_walk`, which there is while that has nested paging.
  absl::StatusOr<WalkReport> Walk(unsigned vcpu, std::string_view walker, InputAddress address,
                                  Access access) const;
  // Walks the SPTEs for `address`, in the input space of the shadow MMU: for `root_mmu` a
  // guest-physical address, or a linear one if two-stage translation is off; for `guest_mmu` a
  // physical address of the guest's guest, by the tables that it used last.
  absl::StatusOr<WalkReport> WalkSptes(unsigned vcpu, std::string_view mmu, InputAddress address,
                                       Access access) const;
  // Guest mode, and what the hypervisor in the guest says of memory.
  absl::StatusOr<NestedState> GetNestedState(unsigned vcpu) const;
  absl::StatusOr<std::vector<RootInfo>> Roots(unsigned vcpu, std::string_view mmu) const;
  // At most `max_count` shadow pages with ids above `after_id`, ascending.
  std::vector<ShadowPageInfo> ShadowPages(std::uint64_t after_id, unsigned max_count) const;
  VmStatistics Statistics() const;

 private:
  struct Impl;
  explicit Vm(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagesaw
