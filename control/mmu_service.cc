// MmuService over VmManager and PluginRegistry.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "control/grpc_status.h"
#include "pagesaw/control/v1/mmu_service.grpc.pb.h"
module pagesaw.control.server;
import :messages;
import pagesaw.control.arguments;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.paging_state;
import pagesaw.mmu.second_stage_rights;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

// Formats are described for this many physical-address bits: those of the host processes' addresses
// that SPTEs hold.
constexpr unsigned kDescribedPhysicalBits = 52;
constexpr std::string_view kCpuWalk = "cpu_walk";
constexpr std::string_view kRootMmu = "root_mmu";
constexpr std::string_view kGuestMmu = "guest_mmu";

// Of a list of all shadow pages, which are no vCPU's. Empty: any.
absl::Status CheckMmuName(std::string_view name) {
  if (name.empty() || name == kRootMmu || name == kGuestMmu) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("shadow_mmu '", std::string(name), "': must be root_mmu or guest_mmu"));
}

struct Vcpu {
  std::shared_ptr<Vm> vm;
  unsigned index = 0;
};

class MmuServiceAdapter final : public v1::MmuService::Service {
 public:
  MmuServiceAdapter(VmManager& vms, const PluginRegistry& registry, const PageTokens& tokens)
      : vms_(vms), registry_(registry), tokens_(tokens) {}

  grpc::Status ListWalkers(grpc::ServerContext*, const v1::ListWalkersRequest* request,
                           v1::ListWalkersResponse* response) override {
    const auto vcpu = FindVcpu(request->parent());
    if (!vcpu.ok()) return ToGrpc(vcpu.status());
    const auto walkers = vcpu->vm->Walkers(vcpu->index);
    if (!walkers.ok()) return ToGrpc(walkers.status());
    for (const WalkerInfo& walker : *walkers) Fill(*response->add_walkers(), walker);
    return grpc::Status::OK;
  }

  grpc::Status ListShadowMmus(grpc::ServerContext*, const v1::ListShadowMmusRequest* request,
                              v1::ListShadowMmusResponse* response) override {
    const auto vcpu = FindVcpu(request->parent());
    if (!vcpu.ok()) return ToGrpc(vcpu.status());
    const auto mmus = vcpu->vm->ShadowMmus(vcpu->index);
    if (!mmus.ok()) return ToGrpc(mmus.status());
    for (const ShadowMmuInfo& mmu : *mmus) Fill(*response->add_shadow_mmus(), mmu);
    return grpc::Status::OK;
  }

  grpc::Status ListFormats(grpc::ServerContext*, const v1::ListFormatsRequest* request,
                           v1::ListFormatsResponse* response) override {
    const auto size = PageSize(request->page_size());
    if (!size.ok()) return ToGrpc(size.status());
    const auto after = tokens_.Open("ListFormats", request->page_token());
    if (!after.ok()) return ToGrpc(after.status());
    std::vector<const TdpFormat*> formats;
    for (const auto& format : registry_.tdp_formats()) {
      if (format->name > *after) formats.push_back(format.get());
    }
    std::sort(formats.begin(), formats.end(),
              [](const TdpFormat* a, const TdpFormat* b) { return a->name < b->name; });
    if (formats.size() > *size) {
      formats.resize(*size);
      response->set_next_page_token(tokens_.Make("ListFormats", formats.back()->name));
    }
    for (const TdpFormat* format : formats) {
      Fill(*response->add_formats(), *format, kDescribedPhysicalBits);
    }
    return grpc::Status::OK;
  }

  grpc::Status GetFormat(grpc::ServerContext*, const v1::GetFormatRequest* request,
                         v1::Format* response) override {
    const auto name = ParseFormatName(request->name());
    if (!name.ok()) return ToGrpc(name.status());
    const TdpFormat* format = registry_.FindTdpFormat(*name);
    if (format == nullptr) {
      return ToGrpc(absl::NotFoundError(
          absl::StrCat("format '", *name, "': no plugin registered a format of that name")));
    }
    Fill(*response, *format, kDescribedPhysicalBits);
    return grpc::Status::OK;
  }

  grpc::Status Walk(grpc::ServerContext*, const v1::WalkRequest* request,
                    v1::WalkResponse* response) override {
    const auto vcpu = FindVcpu(request->vcpu());
    if (!vcpu.ok()) return ToGrpc(vcpu.status());
    const auto access = AccessOf(request->access());
    if (!access.ok()) return ToGrpc(access.status());
    const std::string walker =
        request->walker().empty() ? std::string(kCpuWalk) : request->walker();
    return ToGrpc(WalkGuest(*vcpu, walker, request->address(), *access, *response));
  }

  grpc::Status WalkSptes(grpc::ServerContext*, const v1::WalkSptesRequest* request,
                         v1::WalkSptesResponse* response) override {
    const auto vcpu = FindVcpu(request->vcpu());
    if (!vcpu.ok()) return ToGrpc(vcpu.status());
    const auto access = AccessOf(request->access());
    if (!access.ok()) return ToGrpc(access.status());
    if (!v1::WalkSptesRequest::Space_IsValid(request->space())) {
      return ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("space ", request->space(), ": must be GPA or GVA")));
    }
    return ToGrpc(WalkSptesOf(*vcpu, *request, *access, *response));
  }

  grpc::Status GetNestedState(grpc::ServerContext*, const v1::GetNestedStateRequest* request,
                              v1::NestedState* response) override {
    const auto vcpu = FindVcpu(request->name());
    if (!vcpu.ok()) return ToGrpc(vcpu.status());
    const auto state = vcpu->vm->GetNestedState(vcpu->index);
    if (!state.ok()) return ToGrpc(state.status());
    Fill(*response, *state);
    return grpc::Status::OK;
  }

  grpc::Status ListRoots(grpc::ServerContext*, const v1::ListRootsRequest* request,
                         v1::ListRootsResponse* response) override {
    const auto vcpu = FindVcpu(request->parent());
    if (!vcpu.ok()) return ToGrpc(vcpu.status());
    const auto mmus = vcpu->vm->ShadowMmus(vcpu->index);
    if (!mmus.ok()) return ToGrpc(mmus.status());
    if (!request->shadow_mmu().empty()) {
      const auto wanted = FindMmu(*vcpu, request->shadow_mmu());
      if (!wanted.ok()) return ToGrpc(wanted.status());
    }
    for (const ShadowMmuInfo& mmu : *mmus) {
      if (!request->shadow_mmu().empty() && request->shadow_mmu() != mmu.name) continue;
      const auto roots = vcpu->vm->Roots(vcpu->index, mmu.name);
      if (!roots.ok()) return ToGrpc(roots.status());
      for (const RootInfo& root : *roots) {
        v1::Root& row = *response->add_roots();
        row.set_shadow_mmu(mmu.name);
        Fill(row, root);
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status ListShadowPages(grpc::ServerContext*, const v1::ListShadowPagesRequest* request,
                               v1::ListShadowPagesResponse* response) override {
    const auto vm = FindVm(request->parent());
    if (!vm.ok()) return ToGrpc(vm.status());
    const auto size = PageSize(request->page_size());
    if (!size.ok()) return ToGrpc(size.status());
    if (const auto status = CheckMmuName(request->shadow_mmu()); !status.ok()) {
      return ToGrpc(status);
    }
    const bool of_guest_mmu = request->shadow_mmu() == kGuestMmu;
    const std::string list =
        absl::StrCat("ListShadowPages ", request->parent(), " ", request->shadow_mmu());
    const auto cursor = tokens_.Open(list, request->page_token());
    if (!cursor.ok()) return ToGrpc(cursor.status());
    std::uint64_t after_id = 0;
    if (!cursor->empty() && !absl::SimpleAtoi(*cursor, &after_id)) {
      return ToGrpc(absl::InternalError("a page token of ours has no id in it"));
    }
    // One more than fits tells whether there is a next page.
    auto pages = (*vm)->ShadowPages(after_id, static_cast<unsigned>(*size + 1));
    if (pages.size() > *size) {
      pages.resize(*size);
      response->set_next_page_token(tokens_.Make(list, absl::StrCat(pages.back().id)));
    }
    for (const ShadowPageInfo& page : pages) {
      if (!request->shadow_mmu().empty() && page.role.guest_mode != of_guest_mmu) continue;
      Fill(*response->add_shadow_pages(), page);
    }
    return grpc::Status::OK;
  }

  grpc::Status SetMemoryAttribute(grpc::ServerContext*,
                                  const v1::SetMemoryAttributeRequest* request,
                                  v1::SetMemoryAttributeResponse*) override {
    const auto vm = FindVm(request->name());
    if (!vm.ok()) return ToGrpc(vm.status());
    const v1::MemoryAttribute& wish = request->attribute();
    const auto attribute = AttributeOf(wish);
    if (!attribute.ok()) return ToGrpc(attribute.status());
    if (wish.size_bytes() <= 0) {
      return ToGrpc(absl::InvalidArgumentError(absl::StrCat(
          "attribute.size_bytes ", wish.size_bytes(), ": must be a positive multiple of 4096")));
    }
    return ToGrpc((*vm)->SetMemoryAttribute(
        Gpa(wish.gpa()), static_cast<std::uint64_t>(wish.size_bytes()), *attribute));
  }

  grpc::Status ListMemoryAttributes(grpc::ServerContext*,
                                    const v1::ListMemoryAttributesRequest* request,
                                    v1::ListMemoryAttributesResponse* response) override {
    const auto vm = FindVm(request->parent());
    if (!vm.ok()) return ToGrpc(vm.status());
    const auto size = PageSize(request->page_size());
    if (!size.ok()) return ToGrpc(size.status());
    const std::string list = "ListMemoryAttributes " + request->parent();
    const auto cursor = tokens_.Open(list, request->page_token());
    if (!cursor.ok()) return ToGrpc(cursor.status());
    std::uint64_t from = 0;  // the first frame not listed yet
    if (!cursor->empty() && !absl::SimpleAtoi(*cursor, &from)) {
      return ToGrpc(absl::InternalError("a page token of ours has no frame in it"));
    }
    for (const AttributeRange& range : (*vm)->MemoryAttributes()) {
      if (range.first.number < from) continue;
      if (static_cast<std::size_t>(response->attributes_size()) == *size) {
        response->set_next_page_token(tokens_.Make(list, absl::StrCat(range.first.number)));
        break;
      }
      Fill(*response->add_attributes(), range);
    }
    return grpc::Status::OK;
  }

  grpc::Status ListAttributeViolations(grpc::ServerContext*,
                                       const v1::ListAttributeViolationsRequest* request,
                                       v1::ListAttributeViolationsResponse* response) override {
    const auto vm = FindVm(request->parent());
    if (!vm.ok()) return ToGrpc(vm.status());
    const ViolationLog& log = (*vm)->violations();
    for (const Violation& violation : log.Recent()) Fill(*response->add_violations(), violation);
    const auto count = [&log](ViolationPolicy policy) {
      return static_cast<std::int64_t>(log.count(policy));
    };
    response->set_stop_count(count(ViolationPolicy::kStop));
    response->set_page_fault_count(count(ViolationPolicy::kPageFault));
    response->set_general_protection_count(count(ViolationPolicy::kGeneralProtection));
    response->set_log_count(count(ViolationPolicy::kLog));
    return grpc::Status::OK;
  }

  grpc::Status GetStatistics(grpc::ServerContext*, const v1::GetStatisticsRequest* request,
                             v1::Statistics* response) override {
    const auto vm = FindVm(request->name());
    if (!vm.ok()) return ToGrpc(vm.status());
    Fill(*response, (*vm)->Statistics());
    return grpc::Status::OK;
  }

 private:
  absl::StatusOr<std::shared_ptr<Vm>> FindVm(const std::string& name) const {
    const auto id = ParseVmName(name);
    if (!id.ok()) return id.status();
    return vms_.Get(*id);
  }

  absl::StatusOr<Vcpu> FindVcpu(const std::string& name) const {
    const auto parsed = ParseVcpuName(name);
    if (!parsed.ok()) return parsed.status();
    auto vm = vms_.Get(parsed->vm);
    if (!vm.ok()) return vm.status();
    if (parsed->vcpu >= (*vm)->vcpu_count()) {
      return absl::NotFoundError(
          absl::StrCat(name, ": the VM has ", (*vm)->vcpu_count(), " vCPUs, counted from 0"));
    }
    return Vcpu{*std::move(vm), parsed->vcpu};
  }

  absl::Status WalkGuest(const Vcpu& vcpu, const std::string& walker, std::uint64_t address,
                         Access access, v1::WalkResponse& response) const {
    const auto state = vcpu.vm->GetPagingState(vcpu.index);
    if (!state.ok()) return state.status();
    const auto check = walker == kCpuWalk ? CheckLinearAddress(*state, address)
                                          : CheckPhysicalAddress(*state, address);
    if (!check.ok()) return check;
    const InputAddress input(address);
    const auto report = vcpu.vm->Walk(vcpu.index, walker, input, access);
    if (!report.ok()) return report.status();
    response.set_walker(walker);
    Fill(response, *report, input, access);
    return absl::OkStatus();
  }

  // The shadow MMU called `name`, or the active one if that is empty.
  absl::StatusOr<ShadowMmuInfo> FindMmu(const Vcpu& vcpu, std::string_view name) const {
    auto mmus = vcpu.vm->ShadowMmus(vcpu.index);
    if (!mmus.ok()) return mmus.status();
    std::vector<std::string> names;
    for (ShadowMmuInfo& mmu : *mmus) {
      if (name.empty() ? mmu.active : mmu.name == name) return std::move(mmu);
      names.push_back(mmu.name);
    }
    return absl::NotFoundError(absl::StrCat(
        "shadow MMU '", std::string(name), "': the vCPU has only ", absl::StrJoin(names, " and ")));
  }

  absl::Status WalkSptesOf(const Vcpu& vcpu, const v1::WalkSptesRequest& request, Access access,
                           v1::WalkSptesResponse& response) const {
    const bool linear = request.space() == v1::WalkSptesRequest::GVA;
    std::uint64_t address = request.address();
    const auto mmu = FindMmu(vcpu, request.shadow_mmu());
    if (!mmu.ok()) return mmu.status();
    const bool takes_linear = !mmu->role.direct && !mmu->role.guest_mode;
    if (takes_linear && !linear) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the SPTEs of ", mmu->name,
          " are those of shadow paging: they are found by guest-virtual addresses alone"));
    }
    // Those of a guest whose hypervisor's tables were left behind have nobody to translate them.
    if (linear && !mmu->active && !takes_linear) {
      return absl::FailedPreconditionError(
          absl::StrCat(mmu->name,
                       " is not active: guest-virtual addresses are those of whatever "
                       "runs, on another shadow MMU"));
    }
    response.set_shadow_mmu(mmu->name);
    const auto state = vcpu.vm->GetPagingState(vcpu.index);
    if (!state.ok()) return state.status();
    if (linear && !takes_linear) {
      v1::WalkResponse& guest = *response.mutable_guest_walk();
      const auto walked = WalkGuest(vcpu, std::string(kCpuWalk), address, access, guest);
      if (!walked.ok()) return walked;
      response.set_explanation(guest.explanation());
      if (!guest.has_translation()) return absl::OkStatus();
      address = guest.translation().output();
      // Whose page it is may decide who fetches.
      if (access.is_fetch()) {
        access = SecondStageAccess(mmu->format, RightsOf(guest.translation().rights()),
                                   state->paging(), access);
      }
    } else {
      const auto check =
          linear ? CheckLinearAddress(*state, address) : CheckPhysicalAddress(*state, address);
      if (!check.ok()) return check;
    }
    const InputAddress input(address);
    const auto report = vcpu.vm->WalkSptes(vcpu.index, mmu->name, input, access);
    if (!report.ok()) return report.status();
    response.set_address(address);
    Fill(response, *report, input, access);
    const std::optional<Gpa> gpa = GpaBehind(vcpu, *mmu, input, access);
    if (!gpa) return absl::OkStatus();
    const MemoryAttribute attribute = vcpu.vm->MemoryAttributeOf(*gpa);
    Fill(*response.mutable_attribute(),
         AttributeRange{.first = GfnOf(*gpa), .count = 1, .attribute = attribute});
    if (!attribute.unrestricted()) {
      absl::StrAppend(response.mutable_explanation(), "; the memory attribute of 0x",
                      absl::Hex(gpa->bits()), " is ", RightsText(attribute.rights));
    }
    return absl::OkStatus();
  }

  // The address in guest memory that `address`, an input of the SPTEs of `mmu`, stands for, if the
  // tables that these shadow are in use and allow the access.
  std::optional<Gpa> GpaBehind(const Vcpu& vcpu, const ShadowMmuInfo& mmu, InputAddress address,
                               Access access) const {
    if (mmu.role.direct && !mmu.role.guest_mode) return Gpa(address.bits());
    if (!mmu.active) return std::nullopt;
    const auto report = vcpu.vm->Walk(vcpu.index, mmu.walker, address, access);
    if (!report.ok() || !report->result) return std::nullopt;
    return GpaOf(report->result->output);
  }

  VmManager& vms_;
  const PluginRegistry& registry_;
  const PageTokens& tokens_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeMmuService(VmManager& vms, const PluginRegistry& registry,
                                              const PageTokens& tokens) {
  return std::make_unique<MmuServiceAdapter>(vms, registry, tokens);
}

}  // namespace pagesaw
