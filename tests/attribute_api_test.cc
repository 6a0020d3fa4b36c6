// Memory attributes as a client sees them: set, listed, refused with a reason, and the VM that they
// hold.
#include <absl/status/statusor.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
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

class AttributeApi : public testing::Test {
 protected:
  AttributeApi() : directory_("/tmp/pagesaw-attributes-XXXXXX") {
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
  ~AttributeApi() override {
    vms_->DeleteAll();
    server_ = nullptr;
    rmdir(directory_.c_str());
  }

  template <typename Stub, typename Request, typename Response>
  static grpc::Status Call(Stub& stub,
                           grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                        Response*),
                           const Request& request, Response* response) {
    grpc::ClientContext context;
    return (stub.*method)(&context, request, response);
  }
  void Create(const std::string& id, const std::string& image = "",
              const std::string& vendor = "intel", bool split = true) {
    v1::CreateVmRequest request;
    request.set_vm_id(id);
    v1::VmConfig& config = *request.mutable_config();
    config.set_memory_bytes(16 << 20);
    config.set_vendor(vendor);
    if (!split) config.set_execute_split(v1::VmConfig::EXECUTE_SPLIT_OFF);
    if (!image.empty()) config.set_image_path(std::filesystem::absolute(image));
    v1::Vm vm;
    const grpc::Status status = Call(*vm_stub_, &v1::VmService::Stub::CreateVm, request, &vm);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  v1::Vm Get(const std::string& id) {
    v1::GetVmRequest request;
    request.set_name("vms/" + id);
    v1::Vm vm;
    EXPECT_TRUE(Call(*vm_stub_, &v1::VmService::Stub::GetVm, request, &vm).ok());
    return vm;
  }
  grpc::Status Set(const v1::SetMemoryAttributeRequest& request) {
    v1::SetMemoryAttributeResponse response;
    return Call(*mmu_stub_, &v1::MmuService::Stub::SetMemoryAttribute, request, &response);
  }
  v1::ListMemoryAttributesResponse List(const v1::ListMemoryAttributesRequest& request) {
    v1::ListMemoryAttributesResponse response;
    EXPECT_TRUE(
        Call(*mmu_stub_, &v1::MmuService::Stub::ListMemoryAttributes, request, &response).ok());
    return response;
  }

  std::string directory_;
  PluginRegistry registry_;
  std::unique_ptr<VmManager> vms_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::VmService::Stub> vm_stub_;
  std::unique_ptr<v1::MmuService::Stub> mmu_stub_;
};

// R and XS, and what is asked for.
v1::SetMemoryAttributeRequest SetRequest(const std::string& vm, std::uint64_t gpa,
                                         std::int64_t bytes, bool write, bool user) {
  v1::SetMemoryAttributeRequest request;
  request.set_name("vms/" + vm);
  v1::MemoryAttribute& attribute = *request.mutable_attribute();
  attribute.set_gpa(gpa);
  attribute.set_size_bytes(bytes);
  attribute.mutable_rights()->set_read(true);
  attribute.mutable_rights()->set_write(write);
  attribute.mutable_rights()->set_exec_supervisor(true);
  attribute.mutable_rights()->set_exec_user(user);
  return request;
}

TEST_F(AttributeApi, AreSetListedAndTakenAway) {
  Create("a");
  for (std::uint64_t gpa : {0x1000, 0x3000, 0x5000}) {
    const grpc::Status status = Set(SetRequest("a", gpa, 4096, false, false));
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  v1::ListMemoryAttributesRequest list;
  list.set_parent("vms/a");
  list.set_page_size(2);
  const auto first = List(list);
  ASSERT_EQ(first.attributes_size(), 2);
  EXPECT_EQ(first.attributes(1).gpa(), 0x3000u);
  EXPECT_EQ(first.attributes(1).size_bytes(), 4096);
  EXPECT_EQ(first.attributes(1).policy(), v1::MemoryAttribute::STOP);
  EXPECT_TRUE(first.attributes(1).rights().exec_supervisor());
  EXPECT_FALSE(first.attributes(1).rights().exec_user());
  list.set_page_token(first.next_page_token());
  const auto second = List(list);
  ASSERT_EQ(second.attributes_size(), 1);
  EXPECT_EQ(second.attributes(0).gpa(), 0x5000u);
  EXPECT_TRUE(second.next_page_token().empty());

  v1::WalkSptesRequest walk;
  walk.set_vcpu("vms/a/vcpus/0");
  walk.set_address(0x3010);
  v1::WalkSptesResponse sptes;
  ASSERT_TRUE(Call(*mmu_stub_, &v1::MmuService::Stub::WalkSptes, walk, &sptes).ok());
  EXPECT_FALSE(sptes.attribute().rights().write());
  EXPECT_NE(sptes.explanation().find("the memory attribute of 0x3010 is R XS"), std::string::npos)
      << sptes.explanation();

  ASSERT_TRUE(Set(SetRequest("a", 0, 16 << 20, true, true)).ok());
  list.clear_page_token();
  EXPECT_EQ(List(list).attributes_size(), 0);
}

TEST_F(AttributeApi, HeldVmSaysWhyAndRunsOnWhenItMay) {
  Create("held", "guests/attributes.elf");
  // The guest's mailbox: it is ready when it says so, which it may not.
  ASSERT_TRUE(Set(SetRequest("held", 0x50'0000, 4096, false, false)).ok());
  v1::StartVmRequest start;
  start.set_name("vms/held");
  v1::Vm vm;
  ASSERT_TRUE(Call(*vm_stub_, &v1::VmService::Stub::StartVm, start, &vm).ok());
  do {
    std::this_thread::yield();
    vm = Get("held");
  } while (vm.state() == v1::Vm::RUNNING);
  ASSERT_EQ(vm.state(), v1::Vm::PAUSED);
  ASSERT_EQ(vm.violations_size(), 1);
  const v1::AttributeViolation& held = vm.violations(0);
  EXPECT_EQ(held.gpa(), 0x50'0008u);
  EXPECT_EQ(held.gva(), 0x50'0008u);
  EXPECT_EQ(held.access().kind(), v1::Access::WRITE);
  EXPECT_FALSE(held.access().user());
  EXPECT_TRUE(held.missing().write());
  EXPECT_FALSE(held.guest_table());
  EXPECT_NE(held.rip(), 0u);
  EXPECT_NE(held.description().find("supervisor write of 0x500008"), std::string::npos)
      << held.description();

  v1::ListAttributeViolationsRequest request;
  request.set_parent("vms/held");
  v1::ListAttributeViolationsResponse noted;
  ASSERT_TRUE(
      Call(*mmu_stub_, &v1::MmuService::Stub::ListAttributeViolations, request, &noted).ok());
  ASSERT_EQ(noted.violations_size(), 1);
  EXPECT_EQ(noted.violations(0).number(), 1);
  EXPECT_EQ(noted.stop_count(), 1);

  ASSERT_TRUE(Set(SetRequest("held", 0x50'0000, 4096, true, true)).ok());
  v1::ResumeVmRequest resume;
  resume.set_name("vms/held");
  ASSERT_TRUE(Call(*vm_stub_, &v1::VmService::Stub::ResumeVm, resume, &vm).ok());
  EXPECT_EQ(vm.violations_size(), 0);
  EXPECT_EQ(Get("held").state(), v1::Vm::RUNNING);
}

TEST_F(AttributeApi, RefusalsNameWhatWasWrong) {
  Create("a");
  Create("npt", "", "amd", false);
  struct Row {
    const char* vm;
    std::uint64_t gpa;
    std::int64_t bytes;
    bool read, write, supervisor, user, page_user;
    int policy;
    grpc::StatusCode code;
    const char* message;
  };
  const auto kBad = grpc::StatusCode::INVALID_ARGUMENT;
  for (const Row& row : {
           Row{"a", 0x1001, 4096, true, true, true, false, false, 0, kBad,
               "VM 'a': attribute of 0x1001, 4096 bytes: must be one or more whole pages of 4096 "
               "bytes"},
           Row{"a", 0x1000, -1, true, true, true, false, false, 0, kBad,
               "attribute.size_bytes -1: must be a positive multiple of 4096"},
           Row{"a", std::uint64_t{1} << 46, 4096, true, true, true, false, false, 0, kBad,
               "VM 'a': attribute of 0x400000000000, 4096 bytes: reaches beyond the guest's 46 "
               "bits of physical address"},
           Row{"a", 0, 4096, false, true, false, false, false, 0, kBad,
               "VM 'a': attribute of 0x0, 4096 bytes: W without R: no page-table entry can say "
               "that"},
           Row{"a", 0, 4096, true, true, false, false, true, 0, kBad,
               "attribute.rights.user: must be false: whose a page is, the guest's tables say"},
           Row{"a", 0, 4096, true, false, false, false, false, 9, kBad,
               "attribute.policy 9: must be a value of the enum"},
           Row{"npt", 0x1000, 4096, true, true, true, false, false, 0,
               grpc::StatusCode::FAILED_PRECONDITION,
               "VM 'npt': attribute of 0x1000: tables of npt: its entries have one execute right "
               "for supervisor and user mode"},
           Row{"b", 0, 4096, true, true, true, false, false, 0, grpc::StatusCode::NOT_FOUND, ""},
       }) {
    auto request = SetRequest(row.vm, row.gpa, row.bytes, row.write, row.user);
    v1::MemoryAttribute& attribute = *request.mutable_attribute();
    attribute.mutable_rights()->set_read(row.read);
    attribute.mutable_rights()->set_exec_supervisor(row.supervisor);
    attribute.mutable_rights()->set_user(row.page_user);
    attribute.set_policy(static_cast<v1::MemoryAttribute::Policy>(row.policy));
    const grpc::Status status = Set(request);
    EXPECT_EQ(status.error_code(), row.code);
    EXPECT_NE(status.error_message().find(row.message), std::string::npos)
        << status.error_message();
  }
}

}  // namespace
}  // namespace pagesaw
