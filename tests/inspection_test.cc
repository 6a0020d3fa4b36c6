// Looking at a running guest over gRPC: it goes on, no accessed or dirty bit is set by looking, and
// a VM costs little beyond the memory that its guest touched.
//   PAGESAW_INSPECTIONS  how many inspections; otherwise 2000
#include <absl/status/statusor.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "pagesaw/control/v1/mmu_service.grpc.pb.h"
#include "pagesaw/control/v1/vm_service.grpc.pb.h"

import pagesaw.control.parts;
import pagesaw.control.server;
import pagesaw.core.plugin;
import pagesaw.machine.vm_manager;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

namespace v1 = control::v1;
using std::chrono::milliseconds;

// An entry of the tour's tables that it never uses again once its checks are over: a page that is
// mapped without A and D stays so for as long as nobody but the inspection looks.
constexpr std::uint64_t kPml4Slot = 200, kScratch = 0x700'0000;
constexpr std::uint64_t kLinear = kPml4Slot << 39 | 0x5000;

std::int64_t ResidentKib() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

class InspectionTest : public testing::Test {
 protected:
  InspectionTest() : directory_("/tmp/pagesaw-inspection-XXXXXX") {
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    const std::unique_ptr<Plugin> plugins[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                               mbec::MakeMbecPlugin()};
    for (const auto& plugin : plugins) EXPECT_FALSE(plugin->Register(registry_));
    vms_ = std::make_unique<VmManager>(registry_, MakeVmParts());
    const std::string endpoint = "unix:" + directory_ + "/s";
    auto server = Server::Listen(endpoint, *vms_, registry_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto channel = grpc::CreateChannel(endpoint, grpc::InsecureChannelCredentials());
    vm_stub_ = v1::VmService::NewStub(channel);
    mmu_stub_ = v1::MmuService::NewStub(channel);
  }
  ~InspectionTest() override {
    vms_->DeleteAll();
    server_ = nullptr;
    rmdir(directory_.c_str());
  }

  // The tour, running, when it has come to its last part.
  void StartTour(std::int64_t memory_bytes) {
    v1::VmConfig config;
    config.set_memory_bytes(memory_bytes);
    config.set_image_path(std::filesystem::absolute("guests/tour.elf"));
    StartUntil("tour", config, "beat");
  }

  // A VM that runs, when its console has shown `line`.
  void StartUntil(const std::string& id, const v1::VmConfig& config, const std::string& line) {
    v1::CreateVmRequest create;
    create.set_vm_id(id);
    *create.mutable_config() = config;
    grpc::ClientContext creating, starting, watching;
    v1::Vm vm;
    const grpc::Status created = vm_stub_->CreateVm(&creating, create, &vm);
    ASSERT_TRUE(created.ok()) << created.error_message();
    v1::StartVmRequest start;
    start.set_name("vms/" + id);
    ASSERT_TRUE(vm_stub_->StartVm(&starting, start, &vm).ok());
    v1::StreamConsoleRequest watch;
    watch.set_name("vms/" + id);
    const auto console = vm_stub_->StreamConsole(&watching, watch);
    std::string text;
    v1::StreamConsoleResponse message;
    while (text.find(line) == std::string::npos && console->Read(&message)) {
      text += message.data();
    }
    ASSERT_NE(text.find(line), std::string::npos) << text;
    watching.TryCancel();
    while (console->Read(&message)) {
    }
    console->Finish();
  }

  void Write(std::uint64_t gpa, std::uint64_t value) {
    grpc::ClientContext context;
    v1::WriteMemoryRequest request;
    request.set_name("vms/tour");
    request.set_gpa(gpa);
    request.set_data(&value, sizeof value);
    v1::WriteMemoryResponse response;
    ASSERT_TRUE(vm_stub_->WriteMemory(&context, request, &response).ok());
  }
  std::uint64_t Read(std::uint64_t gpa) {
    grpc::ClientContext context;
    v1::ReadMemoryRequest request;
    request.set_name("vms/tour");
    request.set_gpa(gpa);
    request.set_size_bytes(8);
    v1::ReadMemoryResponse response;
    EXPECT_TRUE(vm_stub_->ReadMemory(&context, request, &response).ok());
    std::uint64_t value = 0;
    response.data().copy(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  v1::WalkResponse Walk(std::uint64_t address) {
    grpc::ClientContext context;
    v1::WalkRequest request;
    request.set_vcpu("vms/tour/vcpus/0");
    request.set_address(address);
    request.mutable_access()->set_kind(v1::Access::WRITE);
    v1::WalkResponse response;
    const grpc::Status status = mmu_stub_->Walk(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::WalkSptesResponse WalkSptes(std::uint64_t address) {
    grpc::ClientContext context;
    v1::WalkSptesRequest request;
    request.set_vcpu("vms/tour/vcpus/0");
    request.set_address(address);
    request.set_space(v1::WalkSptesRequest::GVA);
    request.mutable_access()->set_kind(v1::Access::WRITE);
    v1::WalkSptesResponse response;
    const grpc::Status status = mmu_stub_->WalkSptes(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::Statistics Statistics() {
    grpc::ClientContext context;
    v1::GetStatisticsRequest request;
    request.set_name("vms/tour");
    v1::Statistics statistics;
    EXPECT_TRUE(mmu_stub_->GetStatistics(&context, request, &statistics).ok());
    return statistics;
  }

  std::string directory_;
  PluginRegistry registry_;
  std::unique_ptr<VmManager> vms_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::VmService::Stub> vm_stub_;
  std::unique_ptr<v1::MmuService::Stub> mmu_stub_;
};

TEST_F(InspectionTest, ChangesNothingAndStopsNobody) {
  StartTour(128 << 20);
  const std::uint64_t pml4 = Walk(0x10'0000).steps(0).entry_address();
  Write(pml4 + 8 * kPml4Slot, kScratch | 7);
  Write(kScratch, (kScratch + 0x1000) | 7);
  Write(kScratch + 0x1000, (kScratch + 0x2000) | 7);
  Write(kScratch + 0x2028, (kScratch + 0x3000) | 7);
  const std::uint64_t where[] = {pml4 + 8 * kPml4Slot, kScratch, kScratch + 0x1000,
                                 kScratch + 0x2028};
  const char* text = std::getenv("PAGESAW_INSPECTIONS");
  const long count = text == nullptr ? 2000 : std::strtol(text, nullptr, 10);
  const auto begin = std::chrono::steady_clock::now();
  std::int64_t instructions = Statistics().vcpus(0).instruction_count();
  // The guest must go on while it is looked at without a break; on a busy host that may take longer
  // than the inspections asked for.
  constexpr long kGrowthWanted = 5;
  long grown = 0, made = 0;
  for (; made < count || grown < kGrowthWanted; made += 2) {
    if (made % 100 == 0) {
      const std::int64_t now = Statistics().vcpus(0).instruction_count();
      grown += now > instructions ? 1 : 0;
      ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60))
          << "the guest stands still while it is inspected";
      instructions = now;
    }
    const v1::WalkResponse walk = Walk(kLinear);
    const v1::WalkSptesResponse sptes = WalkSptes(kLinear);
    ASSERT_EQ(walk.steps_size(), 4);
    ASSERT_EQ(walk.translation().output(), kScratch + 0x3000);
    ASSERT_EQ(sptes.guest_walk().translation().output(), walk.translation().output());
    for (int step = 0; step < 4; ++step) {
      ASSERT_EQ(walk.steps(step).entry_address(), where[step]);
      ASSERT_EQ(walk.steps(step).entry() & 0x60, 0u) << "accessed or dirty by looking";
    }
  }
  for (const std::uint64_t gpa : where) EXPECT_EQ(Read(gpa) & 0x60, 0u);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::printf("%ld inspections, %.0f a second\n", made,
              static_cast<double>(made) / seconds.count());
}

// A guest's guest: 2005000h of its linear and physical addresses is 2004000h of its hypervisor's.
class NestedInspectionTest : public InspectionTest {
 protected:
  NestedInspectionTest() {
    v1::VmConfig config;
    config.set_vendor("amd");
    config.set_memory_bytes(64 << 20);
    config.set_command_line("stay");
    config.set_image_path(std::filesystem::absolute("guests/npt.elf"));
    StartUntil("nest", config, "the guest stays");
    while (!Nested().guest_mode()) std::this_thread::sleep_for(milliseconds(1));
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::MmuService::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    return (mmu_stub_.get()->*method)(&context, request, response);
  }
  v1::NestedState Nested() {
    v1::GetNestedStateRequest request;
    request.set_name("vms/nest/vcpus/0");
    v1::NestedState state;
    EXPECT_TRUE(Call(&v1::MmuService::Stub::GetNestedState, request, &state).ok());
    return state;
  }
  static v1::WalkSptesRequest SptesOf(std::uint64_t address, v1::WalkSptesRequest::Space space,
                                      const std::string& mmu) {
    v1::WalkSptesRequest request;
    request.set_vcpu("vms/nest/vcpus/0");
    request.set_address(address);
    request.set_space(space);
    request.set_shadow_mmu(mmu);
    return request;
  }

  static constexpr std::uint64_t kOfGuest = 0x200'5000, kOfHypervisor = 0x200'4000;
};

TEST_F(NestedInspectionTest, AWalkHasBothStagesAndAVerdict) {
  v1::WalkRequest request;
  request.set_vcpu("vms/nest/vcpus/0");
  request.set_address(kOfGuest);
  v1::WalkResponse walk;
  ASSERT_TRUE(Call(&v1::MmuService::Stub::Walk, request, &walk).ok());
  EXPECT_TRUE(walk.guest_mode());
  ASSERT_EQ(walk.steps_size(), 3);
  ASSERT_EQ(walk.nested_walks_size(), 4);
  EXPECT_EQ(walk.nested_walks(0).level(), 4);
  EXPECT_EQ(walk.nested_walks(0).address(), walk.steps(0).entry_address());
  EXPECT_EQ(walk.nested_walks(3).level(), 0);
  EXPECT_EQ(walk.nested_walks(3).steps_size(), 4);
  EXPECT_EQ(walk.nested_walks(3).translation().output(), kOfHypervisor);
  EXPECT_EQ(walk.verdict().taker(), v1::Verdict::TAKER_UNSPECIFIED);

  // Nothing is mapped behind the guest's memory, which is as large as its hypervisor's.
  request.set_walker("tdp_walk");
  request.set_address(0x1000'0000);
  ASSERT_TRUE(Call(&v1::MmuService::Stub::Walk, request, &walk).ok());
  EXPECT_TRUE(walk.has_fault());
  EXPECT_EQ(walk.verdict().taker(), v1::Verdict::HYPERVISOR);
  EXPECT_EQ(walk.verdict().code(), 0x1'0000'0004u);
  EXPECT_EQ(
      walk.verdict().description(),
      "the hypervisor (L1) gets an exit: nested page fault, EXITINFO1 0x100000004, for 0x10000000");
}

TEST_F(NestedInspectionTest, SptesAreThoseOfTheShadowMmuAskedFor) {
  using Request = v1::WalkSptesRequest;
  v1::WalkSptesResponse response;
  ASSERT_TRUE(
      Call(&v1::MmuService::Stub::WalkSptes, SptesOf(kOfGuest, Request::GVA, ""), &response).ok());
  EXPECT_EQ(response.shadow_mmu(), "guest_mmu");
  EXPECT_EQ(response.address(), kOfGuest);
  EXPECT_TRUE(response.has_translation());
  EXPECT_EQ(response.attribute().gpa(), kOfHypervisor);
  const std::uint64_t host = response.translation().output();
  ASSERT_TRUE(Call(&v1::MmuService::Stub::WalkSptes,
                   SptesOf(kOfHypervisor, Request::GPA, "root_mmu"), &response)
                  .ok());
  EXPECT_EQ(response.shadow_mmu(), "root_mmu");
  if (response.has_translation()) EXPECT_EQ(response.translation().output(), host);
  EXPECT_EQ(Call(&v1::MmuService::Stub::WalkSptes, SptesOf(0, Request::GVA, "root_mmu"), &response)
                .error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Call(&v1::MmuService::Stub::WalkSptes, SptesOf(0, Request::GPA, "tdp_mmu"), &response)
                .error_message(),
            "shadow MMU 'tdp_mmu': the vCPU has only root_mmu and guest_mmu");
}

TEST_F(NestedInspectionTest, ListsAreOfOneShadowMmuOrOfBoth) {
  const auto roots_of = [this](const std::string& mmu) {
    v1::ListRootsRequest request;
    request.set_parent("vms/nest/vcpus/0");
    request.set_shadow_mmu(mmu);
    v1::ListRootsResponse response;
    EXPECT_TRUE(Call(&v1::MmuService::Stub::ListRoots, request, &response).ok());
    return response;
  };
  EXPECT_EQ(roots_of("root_mmu").roots_size(), 1);
  const int of_guest = roots_of("guest_mmu").roots_size();
  EXPECT_GT(of_guest, 0);
  EXPECT_EQ(roots_of("").roots_size(), of_guest + 1);
  EXPECT_EQ(roots_of("guest_mmu").roots(0).root_register(), Nested().tdp_walk().root_register());

  v1::ListShadowPagesRequest request;
  request.set_parent("vms/nest");
  request.set_page_size(1000);
  v1::ListShadowPagesResponse pages;
  request.set_shadow_mmu("guest_mmu");
  ASSERT_TRUE(Call(&v1::MmuService::Stub::ListShadowPages, request, &pages).ok());
  EXPECT_GT(pages.shadow_pages_size(), 0);
  for (const v1::ShadowPage& page : pages.shadow_pages()) EXPECT_TRUE(page.role().guest_mode());
  request.set_shadow_mmu("root_mmu");
  ASSERT_TRUE(Call(&v1::MmuService::Stub::ListShadowPages, request, &pages).ok());
  EXPECT_GT(pages.shadow_pages_size(), 0);
  for (const v1::ShadowPage& page : pages.shadow_pages()) EXPECT_FALSE(page.role().guest_mode());
  request.set_shadow_mmu("ept");
  EXPECT_EQ(Call(&v1::MmuService::Stub::ListShadowPages, request, &pages).error_message(),
            "shadow_mmu 'ept': must be root_mmu or guest_mmu");
}

TEST_F(NestedInspectionTest, TheControlBlockHasNames) {
  const v1::NestedState state = Nested();
  EXPECT_EQ(state.structure(), "VMCB");
  EXPECT_EQ(state.structure_gpa(), 0x80'0000u);
  EXPECT_EQ(state.tdp_walk().paging_mode(), "4-level");
  EXPECT_EQ(state.tag(), 1);
  bool found = false;
  for (const v1::StructureField& field : state.fields()) {
    found = found || (field.name() == "nested control" && field.meaning() == "NP_ENABLE" &&
                      field.size_bytes() == 8);
  }
  EXPECT_TRUE(found);
}

// The bound leaves room for sanitizers' own memory; without them a VM costs some hundred KiB.
TEST_F(InspectionTest, AVmCostsLittleBeyondTheTouchedMemory) {
  const std::int64_t before_kib = ResidentKib();
  StartTour(std::int64_t{4} << 30);
  const std::int64_t touched_kib = Statistics().memory_resident_bytes() / 1024;
  const std::int64_t cost_kib = ResidentKib() - before_kib - touched_kib;
  std::printf("touched %lld KiB, beyond that %lld KiB\n", static_cast<long long>(touched_kib),
              static_cast<long long>(cost_kib));
  EXPECT_LT(touched_kib, 64 << 10);
  EXPECT_LT(cost_kib, 32 << 10);
}

}  // namespace
}  // namespace pagesaw
