// What a virtual machine is assembled from: processors and the memory virtualization behind them.
// The VM sees both by these interfaces, so that another engine, or a test's, can stand in.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>
export module pagesaw.machine.vm_parts;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.core.virtual_time;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

struct ProcessorRequest {
  unsigned index = 0;                        // of the vCPU; its initial APIC ID
  unsigned count = 1;                        // vCPUs of the VM
  const VirtExtension* extension = nullptr;  // outlives the processor
  const GuestMemory* memory = nullptr;       // outlives the processor
  std::string cpu_model, cpu_features;       // as VmConfig has them
  bool tdp = true;
  std::shared_ptr<VirtualTime> virtual_time;  // that it is to count, or null: time is the host's
  Processor* first = nullptr;  // vCPU 0's, from the same factory; null for vCPU 0 itself
};

// InvalidArgument for a model or features that are not known or not possible.
using ProcessorFactory =
    std::function<absl::StatusOr<std::unique_ptr<Processor>>(const ProcessorRequest&)>;

// The memory virtualization of one VM: shadow pages and statistics that its vCPUs share, and the
// walkers and shadow MMUs that each vCPU has.
class VmMmu {
 public:
  virtual ~VmMmu() = default;

  // The shadow MMU of a vCPU. The VmMmu outlives it.
  virtual std::unique_ptr<ShadowMmu> MakeRootMmu(unsigned vcpu) = 0;
  // The shadow MMU that translates the physical addresses of a guest's guest, for hypervisors in
  // the VM that have tables of their own for them; null if processors offer no nested paging.
  // `log_dirty` is the vCPU's Processor::LogNestedDirty.
  using LogDirty = std::function<bool(Gpa)>;
  virtual std::unique_ptr<ShadowMmu> MakeGuestMmu(unsigned, const LogDirty&) { return nullptr; }
  // Tells the vCPU's `tdp_walk` what tables it walks. Its thread only.
  virtual void SetNestedPaging(unsigned, const NestedPaging&) {}
  // Tells the vCPU's walker that the guest's paging state is now `state`. Its thread only.
  virtual void SetPagingState(unsigned vcpu, const PagingState& state) = 0;

  // The host has written `bytes` bytes of guest memory from `gpa`. Any thread.
  virtual void MemoryWritten(Gpa gpa, std::uint64_t bytes) = 0;
  // Drops what was built for `count` frames from `first`, then flushes every processor.
  virtual void ZapFrames(Gfn first, std::uint64_t count) = 0;

  // Whether SPTEs keep D, so that writes can be logged by it. Any thread, as what follows.
  virtual bool KeepsDirtyBits() const = 0;
  // Logs writes to `slot`, by whatever means they are made. False if it is logged, or the method is
  // not possible.
  [[nodiscard]] virtual bool StartDirtyLog(const MemorySlot& slot, DirtyLogMethod method) = 0;
  virtual void StopDirtyLog(std::uint32_t slot_id) = 0;
  // Bit i % 64 of word i / 64 for each page i of the slot written since the start or the last call.
  // Nothing if the slot is not logged.
  virtual std::optional<std::vector<std::uint64_t>> TakeDirtyLog(std::uint32_t slot_id) = 0;
  // How many of `count` frames from `first` were accessed since they were mapped or the last call.
  virtual std::uint64_t TestAndClearYoung(Gfn first, std::uint64_t count) = 0;

  // At most `max_count` shadow pages whose ids are above `after_id`, by ascending id. Any thread.
  virtual std::vector<ShadowPageInfo> ShadowPages(std::uint64_t after_id,
                                                  unsigned max_count) const = 0;
  virtual MmuStatistics Statistics() const = 0;

  // What the host lets the guest do with its memory.
  virtual const MemoryAttributes& attributes() const = 0;
  // Gives `count` frames from `first` an attribute. When it returns no processor can do more there
  // than it says. FailedPrecondition if SPTEs cannot express it, ResourceExhausted if there are too
  // many ranges; nothing has changed then. Any thread but those of vCPUs.
  virtual absl::Status SetAttribute(Gfn first, std::uint64_t count,
                                    const MemoryAttribute& attribute) = 0;
};

struct MmuRequest {
  const GuestMemory* memory = nullptr;    // outlives the VmMmu
  TlbFlusher* flusher = nullptr;          // outlives the VmMmu
  bool tdp = true;                        // false: the guest's own tables are shadowed
  const TdpFormat* tdp_format = nullptr;  // of the SPTEs if `tdp`
  // Of the SPTEs that nested tables are shadowed by; null if processors offer no nested paging.
  const TdpFormat* nested_format = nullptr;
  bool accessed_dirty = true;    // false: SPTEs keep no A and D; FailedPrecondition if they must
  PagingFeatures features = {};  // of the processors
  unsigned vcpu_count = 1;
};

using MmuFactory = std::function<absl::StatusOr<std::unique_ptr<VmMmu>>(const MmuRequest&)>;

struct VmParts {
  ProcessorFactory make_processor;
  MmuFactory make_mmu;
};

}  // namespace pagesaw
