module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>
module pagesaw.machine.vm_mmu;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.spte;

namespace pagesaw {
namespace {

// SPTEs hold addresses of this process, which are 47 bits wide and more in no format.
constexpr unsigned kHostPhysicalBits = 52;
// 4096 tables of 4 KiB, 16 MiB, map 8 GiB by pages of 4 KiB. A guest that needs more gets its
// oldest tables taken away again.
constexpr std::size_t kShadowPageLimit = 4096;

class DirectVmMmu final : public VmMmu {
 public:
  explicit DirectVmMmu(const MmuRequest& request)
      : memory_(*request.memory),
        root_level_(request.tdp_format->root_level),
        pages_(SpteCodec(request.tdp_format->make(kHostPhysicalBits)), *request.flusher,
               kShadowPageLimit) {
    for (unsigned i = 0; i < request.vcpu_count; ++i) {
      walkers_.push_back(std::make_unique<CpuWalker>(memory_));
    }
  }

  std::unique_ptr<ShadowMmu> MakeRootMmu(unsigned vcpu) override {
    return DirectMmu::Make(pages_, memory_, *walkers_[vcpu], root_level_);
  }

  void SetPagingState(unsigned vcpu, const PagingState& state) override {
    walkers_[vcpu]->Reset(state);
  }

  std::unique_ptr<PageWalker> MakeCpuWalker(const PagingState& state) const override {
    return std::make_unique<CpuWalker>(memory_, state);
  }

  void ZapFrames(Gfn first, std::uint64_t count) override { pages_.SlotsChanged(first, count); }

  std::vector<ShadowPageInfo> ShadowPages(std::uint64_t after_id,
                                          unsigned max_count) const override {
    return pages_.List(after_id, max_count);
  }

  MmuStatistics Statistics() const override { return pages_.Statistics(); }

 private:
  const GuestMemory& memory_;
  const Level root_level_;
  // By its full name: a member function has the plain one.
  class pagesaw::ShadowPages pages_;
  std::vector<std::unique_ptr<CpuWalker>> walkers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<VmMmu>> MakeVmMmu(const MmuRequest& request) {
  return std::make_unique<DirectVmMmu>(request);
}

}  // namespace pagesaw
