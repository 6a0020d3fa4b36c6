module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>
module pagesaw.machine.vm_mmu;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.mmu.attribute_limit;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.tdp_walker;

namespace pagesaw {
namespace {

// SPTEs hold addresses of this process, which are 47 bits wide and more in no format.
constexpr unsigned kHostPhysicalBits = 52;
// 4096 tables of 4 KiB, 16 MiB, map 8 GiB by pages of 4 KiB. A guest that needs more gets its
// oldest tables taken away again.
constexpr std::size_t kShadowPageLimit = 4096;

// Whether A and D are a choice. EPT has a control for them, other formats have none.
// [intel/vol3] "Accessed and Dirty Flags for EPT"; [amd/vol2] "Nested Paging", "Accessed and Dirty
// Bits"
bool CanDoWithoutAccessedDirty(const PageFormat& format) { return format.layout.read != 0; }

SpteCodec TdpCodec(const MmuRequest& request, const TdpFormat& tdp_format) {
  PageFormat format = tdp_format.make(kHostPhysicalBits);
  if (CanDoWithoutAccessedDirty(format)) format.accessed_dirty = request.accessed_dirty;
  return SpteCodec(format);
}

// Of what shadows nested tables.
std::optional<SpteCodec> NestedCodec(const MmuRequest& request) {
  if (request.nested_format == nullptr) return std::nullopt;
  return TdpCodec(request, *request.nested_format);
}

// What both kinds have: shadow pages, and walkers for each vCPU.
class SharedVmMmu : public VmMmu {
 public:
  SharedVmMmu(const MmuRequest& request, const SpteCodec& codec)
      : memory_(*request.memory),
        tables_(memory_, request.features, &attributes_),
        nested_codec_(NestedCodec(request)),
        pages_(codec, *request.flusher, kShadowPageLimit, &tables_, &attributes_,
               nested_codec_ ? &*nested_codec_ : nullptr),
        tdp_walkers_(request.vcpu_count) {
    for (unsigned i = 0; i < request.vcpu_count; ++i) {
      walkers_.push_back(std::make_unique<CpuWalker>(memory_, &pages_.dirty_logs(), &attributes_));
    }
  }

  std::unique_ptr<ShadowMmu> MakeGuestMmu(unsigned vcpu, const LogDirty& log_dirty) override {
    if (!nested_codec_) return nullptr;
    tdp_walkers_[vcpu] =
        std::make_unique<TdpWalker>(memory_, &pages_.dirty_logs(), &attributes_, log_dirty);
    return ShadowingMmu::MakeNested(pages_, memory_, tables_, *tdp_walkers_[vcpu]);
  }

  void SetNestedPaging(unsigned vcpu, const NestedPaging& nested) override {
    tdp_walkers_[vcpu]->Reset(nested);
  }

  void SetPagingState(unsigned vcpu, const PagingState& state) override {
    walkers_[vcpu]->Reset(state);
  }

  void MemoryWritten(Gpa gpa, std::uint64_t bytes) override { pages_.GuestWrote(gpa, bytes); }

  void ZapFrames(Gfn first, std::uint64_t count) override { pages_.SlotsChanged(first, count); }

  bool KeepsDirtyBits() const override {
    const PageFormat& format = pages_.codec().format();
    return format.accessed_dirty && format.layout.dirty != 0;
  }

  bool StartDirtyLog(const MemorySlot& slot, DirtyLogMethod method) override {
    return pages_.StartDirtyLog(slot, method);
  }

  void StopDirtyLog(std::uint32_t slot_id) override { pages_.StopDirtyLog(slot_id); }

  std::optional<std::vector<std::uint64_t>> TakeDirtyLog(std::uint32_t slot_id) override {
    return pages_.TakeDirtyLog(slot_id);
  }

  std::uint64_t TestAndClearYoung(Gfn first, std::uint64_t count) override {
    return pages_.TestAndClearYoung(first, count);
  }

  std::vector<ShadowPageInfo> ShadowPages(std::uint64_t after_id,
                                          unsigned max_count) const override {
    return pages_.List(after_id, max_count);
  }

  MmuStatistics Statistics() const override { return pages_.Statistics(); }

  const MemoryAttributes& attributes() const override { return attributes_; }

  absl::Status SetAttribute(Gfn first, std::uint64_t count,
                            const MemoryAttribute& attribute) override {
    if (const auto why = WhyInexpressible(pages_.codec(), attribute.rights)) {
      return absl::FailedPreconditionError(*why);
    }
    switch (attributes_.Set(first, count, attribute)) {
      case MemoryAttributes::Change::kNone:
      case MemoryAttributes::Change::kWidened:
        break;
      case MemoryAttributes::Change::kRestricted:
        pages_.AttributesChanged(first, count);
        break;
      case MemoryAttributes::Change::kRefused:
        return absl::ResourceExhaustedError(
            absl::StrCat("there may be at most ", MemoryAttributes::kMaxRanges, " ranges"));
    }
    return absl::OkStatus();
  }

 protected:
  const GuestMemory& memory_;
  MemoryAttributes attributes_;
  const GuestTables tables_;
  const std::optional<SpteCodec> nested_codec_;  // nothing: no guest has nested tables
  // By its full name: a member function has the plain one.
  class pagesaw::ShadowPages pages_;
  std::vector<std::unique_ptr<CpuWalker>> walkers_;
  std::vector<std::unique_ptr<TdpWalker>> tdp_walkers_;
};

class DirectVmMmu final : public SharedVmMmu {
 public:
  explicit DirectVmMmu(const MmuRequest& request)
      : SharedVmMmu(request, TdpCodec(request, *request.tdp_format)),
        root_level_(request.tdp_format->root_level) {}

  std::unique_ptr<ShadowMmu> MakeRootMmu(unsigned vcpu) override {
    return DirectMmu::Make(pages_, memory_, *walkers_[vcpu], root_level_);
  }

 private:
  const Level root_level_;
};

class ShadowingVmMmu final : public SharedVmMmu {
 public:
  explicit ShadowingVmMmu(const MmuRequest& request)
      : SharedVmMmu(request, SpteCodec(LinearSpteFormat())) {}

  std::unique_ptr<ShadowMmu> MakeRootMmu(unsigned vcpu) override {
    return ShadowingMmu::Make(pages_, memory_, tables_, *walkers_[vcpu]);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<VmMmu>> MakeVmMmu(const MmuRequest& request) {
  const bool can_do_without =
      request.tdp && CanDoWithoutAccessedDirty(request.tdp_format->make(kHostPhysicalBits));
  if (!request.accessed_dirty && !can_do_without) {
    return absl::FailedPreconditionError(
        absl::StrCat("SPTEs without A and D: ",
                     request.tdp ? "format '" + request.tdp_format->name + "' always keeps them"
                                 : "shadow paging always keeps them"));
  }
  if (!request.tdp) return std::make_unique<ShadowingVmMmu>(request);
  return std::make_unique<DirectVmMmu>(request);
}

}  // namespace pagesaw
