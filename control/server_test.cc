// The services over a real VmManager, called as a client calls them.
#include <absl/status/statusor.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/sync_stream.h>
#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "pagesaw/control/v1/mmu_service.grpc.pb.h"
#include "pagesaw/control/v1/vm_service.grpc.pb.h"

import pagesaw.control.plugin_set;
import pagesaw.control.server;
import pagesaw.machine.vm_mmu;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.machine.vm_manager;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

namespace v1 = control::v1;

// Halts for ever. What is tested here is what can be seen and set from outside.
class HaltingProcessor final : public Processor {
 public:
  Exit Run(std::uint64_t) override {
    Exit exit;
    exit.reason = ExitReason::kHalt;
    return exit;
  }
  void CompleteBus(const BusAccess&) override {}
  void Inject(const Event&) override {}
  bool HasQueuedEvent() const override { return false; }
  bool CanTakeInterrupt() const override { return false; }
  bool CanTakeNmi() const override { return false; }
  void SetInterruptWindow(bool) override {}
  CpuState GetState() const override { return state_; }
  void SetState(const CpuState& state) override { state_ = state; }
  void SetTables(const TranslationTables&) override {}
  void LendPage(Gva, Hpa) override {}
  void FlushTlb() override {}
  void FlushContents() override {}
  bool ContentsChanged(Hpa, std::uint64_t) override { return false; }
  void SetTscOffset(std::uint64_t) override {}
  void RequestExit() override {}
  PagingState paging_snapshot() const override {
    PagingState paging;
    paging.cr0 = state_.cr0;
    paging.cr3 = state_.cr3;
    paging.cr4 = state_.cr4;
    paging.efer = state_.efer;
    return paging;
  }
  std::uint64_t instructions_retired() const override { return 0; }

 private:
  CpuState state_ = ResetState();
};

VmParts Parts() {
  return {
      .make_processor = [](const ProcessorRequest&) -> absl::StatusOr<std::unique_ptr<Processor>> {
        return std::make_unique<HaltingProcessor>();
      },
      .make_mmu = MakeVmMmu};
}

class ServerTest : public testing::Test {
 protected:
  ServerTest() : directory_("/tmp/pagesaw-server-test-XXXXXX") {
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    EXPECT_TRUE(plugins_.Add(vmx::MakeVmxPlugin()).ok());
    EXPECT_TRUE(plugins_.Add(svm::MakeSvmPlugin()).ok());
    EXPECT_TRUE(plugins_.Add(mbec::MakeMbecPlugin()).ok());
    vms_ = std::make_unique<VmManager>(plugins_.registry(), Parts());
    auto server = Server::Listen(endpoint(), *vms_, plugins_.registry());
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(endpoint(), grpc::InsecureChannelCredentials());
    vm_stub_ = v1::VmService::NewStub(channel_);
    mmu_stub_ = v1::MmuService::NewStub(channel_);
  }
  ~ServerTest() override {
    server_ = nullptr;
    rmdir(directory_.c_str());
  }

  std::string path() const { return directory_ + "/s"; }
  std::string endpoint() const { return "unix:" + path(); }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::VmService::Stub::*method)(grpc::ClientContext*,
                                                                const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    return (vm_stub_.get()->*method)(&context, request, response);
  }
  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::MmuService::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    return (mmu_stub_.get()->*method)(&context, request, response);
  }

  grpc::Status Create(const std::string& id, std::int64_t memory_bytes = 16 << 20) {
    v1::CreateVmRequest request;
    request.set_vm_id(id);
    request.mutable_config()->set_memory_bytes(memory_bytes);
    v1::Vm vm;
    return Call(&v1::VmService::Stub::CreateVm, request, &vm);
  }
  grpc::Status Start(const std::string& id) {
    v1::StartVmRequest request;
    request.set_name("vms/" + id);
    v1::Vm vm;
    return Call(&v1::VmService::Stub::StartVm, request, &vm);
  }
  grpc::Status Write(const std::string& id, std::uint64_t gpa, std::uint64_t value) {
    v1::WriteMemoryRequest request;
    request.set_name("vms/" + id);
    request.set_gpa(gpa);
    request.set_data(&value, sizeof value);
    v1::WriteMemoryResponse response;
    return Call(&v1::VmService::Stub::WriteMemory, request, &response);
  }
  grpc::Status Read(const std::string& id, std::uint64_t gpa, std::int64_t bytes,
                    std::string* data = nullptr) {
    v1::ReadMemoryRequest request;
    request.set_name("vms/" + id);
    request.set_gpa(gpa);
    request.set_size_bytes(bytes);
    v1::ReadMemoryResponse response;
    const grpc::Status status = Call(&v1::VmService::Stub::ReadMemory, request, &response);
    if (data != nullptr) *data = response.data();
    return status;
  }
  // A VM whose tables at 0x1000 map 0 to 2 MiB as 2 MiB page, and 0x400000 as read-only 4 KiB page.
  void CreatePaging(const std::string& id) {
    ASSERT_TRUE(Create(id).ok());
    ASSERT_TRUE(Write(id, 0x1000, 0x2007).ok());
    ASSERT_TRUE(Write(id, 0x2000, 0x3007).ok());
    ASSERT_TRUE(Write(id, 0x3000, 0x87).ok());
    ASSERT_TRUE(Write(id, 0x3010, 0x4007).ok());
    ASSERT_TRUE(Write(id, 0x4000, 0x5005).ok());
    v1::SetRegistersRequest request;
    request.set_name("vms/" + id + "/vcpus/0");
    v1::Registers& registers = *request.mutable_registers();
    registers.set_cr0(0x8001'0011);
    registers.set_cr3(0x1000);
    registers.set_cr4(0x20);
    registers.set_efer(0xd00);
    v1::Registers after;
    const grpc::Status status = Call(&v1::VmService::Stub::SetRegisters, request, &after);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(after.cr3(), 0x1000u);
  }
  grpc::Status Walk(const std::string& id, std::uint64_t address, v1::Access::Kind kind, bool user,
                    v1::WalkResponse* response) {
    v1::WalkRequest request;
    request.set_vcpu("vms/" + id + "/vcpus/0");
    request.set_address(address);
    request.mutable_access()->set_kind(kind);
    request.mutable_access()->set_user(user);
    return Call(&v1::MmuService::Stub::Walk, request, response);
  }

  std::string directory_;
  PluginSet plugins_;
  std::unique_ptr<VmManager> vms_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::VmService::Stub> vm_stub_;
  std::unique_ptr<v1::MmuService::Stub> mmu_stub_;
};

using ServerSocket = ServerTest;

TEST_F(ServerSocket, InUseIsRefusedAndStillServes) {
  const auto second = Server::Listen(endpoint(), *vms_, plugins_.registry());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(second.status().message(),
            path() + ": the socket is in use: another daemon listens there");
  EXPECT_TRUE(Create("a").ok());
}

TEST_F(ServerSocket, StaleOneIsReplaced) {
  const std::string stale = directory_ + "/stale";
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, stale.c_str());
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  close(fd);
  const auto server = Server::Listen("unix:" + stale, *vms_, plugins_.registry());
  EXPECT_TRUE(server.ok()) << server.status();
}

TEST_F(ServerSocket, AFileIsLeftAlone) {
  const std::string file = directory_ + "/file";
  std::ofstream(file) << "x";
  const auto server = Server::Listen("unix:" + file, *vms_, plugins_.registry());
  EXPECT_EQ(server.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(unlink(file.c_str()), 0);
}

TEST_F(ServerSocket, IsGoneAfterStop) {
  server_->Stop(std::chrono::milliseconds(0));
  struct stat status = {};
  EXPECT_NE(stat(path().c_str(), &status), 0);
}

// The reflection service has no public client; what goes over the wire is short enough to write.
std::string ListServicesByReflection(grpc::ChannelInterface* channel) {
  grpc::ClientContext context;
  const grpc::internal::RpcMethod method(
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      grpc::internal::RpcMethod::BIDI_STREAMING);
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          channel, method, &context));
  const grpc::Slice list_services(std::string("\x3a\x00", 2));  // field 7, empty string
  stream->Write(grpc::ByteBuffer(&list_services, 1));
  stream->WritesDone();
  grpc::ByteBuffer answer;
  std::string text;
  while (stream->Read(&answer)) {
    std::vector<grpc::Slice> slices;
    answer.Dump(&slices);
    for (const grpc::Slice& slice : slices) text.append(slice.begin(), slice.end());
  }
  stream->Finish();
  return text;
}

TEST_F(ServerTest, ReflectionListsTheServices) {
  const std::string answer = ListServicesByReflection(channel_.get());
  EXPECT_NE(answer.find("pagesaw.control.v1.VmService"), std::string::npos);
  EXPECT_NE(answer.find("pagesaw.control.v1.MmuService"), std::string::npos);
  EXPECT_NE(answer.find("grpc.health.v1.Health"), std::string::npos);
}

using VmServiceTest = ServerTest;

TEST_F(VmServiceTest, CreatesOnceAndDeletes) {
  EXPECT_TRUE(Create("a").ok());
  EXPECT_EQ(Create("a").error_code(), grpc::ALREADY_EXISTS);
  v1::DeleteVmRequest request;
  request.set_name("vms/a");
  v1::DeleteVmResponse response;
  EXPECT_TRUE(Call(&v1::VmService::Stub::DeleteVm, request, &response).ok());
  EXPECT_EQ(Call(&v1::VmService::Stub::DeleteVm, request, &response).error_code(), grpc::NOT_FOUND);
  EXPECT_TRUE(Create("a").ok());
}

TEST_F(VmServiceTest, TellsOfFilesWhileAVmIsBeingMadeAlone) {
  v1::GetLoadProgressRequest request;
  v1::LoadProgress progress;
  request.set_name("vms/none");
  EXPECT_EQ(Call(&v1::VmService::Stub::GetLoadProgress, request, &progress).error_code(),
            grpc::StatusCode::NOT_FOUND);
  request.set_name("none");
  EXPECT_EQ(Call(&v1::VmService::Stub::GetLoadProgress, request, &progress).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(VmServiceTest, RefusesBadSettingsAndMakesNothing) {
  EXPECT_EQ(Create("A").error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(Create("a", 0).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(Create("a", -4096).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(Create("a", 4097).error_code(), grpc::INVALID_ARGUMENT);
  v1::CreateVmRequest request;
  request.set_vm_id("a");
  v1::Vm vm;
  request.mutable_config()->set_vendor("zilog");
  EXPECT_EQ(Call(&v1::VmService::Stub::CreateVm, request, &vm).error_code(),
            grpc::INVALID_ARGUMENT);
  request.mutable_config()->clear_vendor();
  request.mutable_config()->set_image_path("relative.elf");
  const grpc::Status status = Call(&v1::VmService::Stub::CreateVm, request, &vm);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "image_path 'relative.elf': must be an absolute path");
  EXPECT_TRUE(vms_->List().empty());
}

TEST_F(VmServiceTest, ListsInPages) {
  for (const char* id : {"c", "a", "b"}) ASSERT_TRUE(Create(id).ok());
  v1::ListVmsRequest request;
  request.set_page_size(2);
  v1::ListVmsResponse first;
  ASSERT_TRUE(Call(&v1::VmService::Stub::ListVms, request, &first).ok());
  ASSERT_EQ(first.vms_size(), 2);
  EXPECT_EQ(first.vms(0).name(), "vms/a");
  request.set_page_token(first.next_page_token());
  v1::ListVmsResponse second;
  ASSERT_TRUE(Call(&v1::VmService::Stub::ListVms, request, &second).ok());
  ASSERT_EQ(second.vms_size(), 1);
  EXPECT_EQ(second.vms(0).name(), "vms/c");
  EXPECT_EQ(second.next_page_token(), "");
}

TEST_F(VmServiceTest, RefusesForeignPageTokens) {
  v1::ListVmsRequest request;
  request.set_page_token("123");
  v1::ListVmsResponse response;
  EXPECT_EQ(Call(&v1::VmService::Stub::ListVms, request, &response).error_code(),
            grpc::INVALID_ARGUMENT);
}

TEST_F(VmServiceTest, MemoryIsReadBackAndChecked) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Write("a", 0x1ff8, 0x1122'3344'5566'7788).ok());
  std::string data;
  ASSERT_TRUE(Read("a", 0x1ff8, 8, &data).ok());
  EXPECT_EQ(data, "\x88\x77\x66\x55\x44\x33\x22\x11");
  EXPECT_EQ(Read("b", 0, 8).error_code(), grpc::NOT_FOUND);
  EXPECT_EQ(Read("a", 0, 0).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(Read("a", 0, (1 << 20) + 1).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(Read("a", (16 << 20) - 4, 8).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(Read("a", UINT64_MAX - 3, 8).error_code(), grpc::INVALID_ARGUMENT);
}

TEST_F(VmServiceTest, RegistersNeedAVmThatDoesNotRun) {
  ASSERT_TRUE(Create("a").ok());
  v1::GetRegistersRequest request;
  request.set_name("vms/a/vcpus/0");
  v1::Registers registers;
  EXPECT_TRUE(Call(&v1::VmService::Stub::GetRegisters, request, &registers).ok());
  EXPECT_EQ(registers.rip(), 0xfff0u);
  ASSERT_TRUE(Start("a").ok());
  EXPECT_EQ(Call(&v1::VmService::Stub::GetRegisters, request, &registers).error_code(),
            grpc::FAILED_PRECONDITION);
  request.set_name("vms/a/vcpus/1");
  EXPECT_EQ(Call(&v1::VmService::Stub::GetRegisters, request, &registers).error_code(),
            grpc::NOT_FOUND);
  request.set_name("vms/a");
  EXPECT_EQ(Call(&v1::VmService::Stub::GetRegisters, request, &registers).error_code(),
            grpc::INVALID_ARGUMENT);
}

TEST_F(VmServiceTest, StartsOnce) {
  ASSERT_TRUE(Create("a").ok());
  EXPECT_TRUE(Start("a").ok());
  EXPECT_EQ(Start("a").error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_EQ(Start("b").error_code(), grpc::NOT_FOUND);
}

TEST_F(VmServiceTest, ConsoleStreamEndsWithTheExit) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Start("a").ok());
  std::thread stopper([this] {
    v1::StopVmRequest request;
    request.set_name("vms/a");
    v1::Vm vm;
    EXPECT_TRUE(Call(&v1::VmService::Stub::StopVm, request, &vm).ok());
    EXPECT_EQ(vm.state(), v1::Vm::STOPPED);
  });
  grpc::ClientContext context;
  v1::StreamConsoleRequest request;
  request.set_name("vms/a");
  const auto reader = vm_stub_->StreamConsole(&context, request);
  v1::StreamConsoleResponse message, last;
  while (reader->Read(&message)) last = message;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(last.exit().reason(), v1::VmExit::REQUESTED);
  stopper.join();
}

TEST_F(VmServiceTest, StoppingTheServerEndsStreams) {
  ASSERT_TRUE(Create("a").ok());
  grpc::ClientContext context;
  v1::StreamConsoleRequest request;
  request.set_name("vms/a");
  const auto reader = vm_stub_->StreamConsole(&context, request);
  std::thread stopper([this] { server_->Stop(std::chrono::milliseconds(100)); });
  v1::StreamConsoleResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
  stopper.join();
}

TEST_F(VmServiceTest, WaitGivesUpAfterTheTime) {
  ASSERT_TRUE(Create("a").ok());
  v1::WaitVmRequest request;
  request.set_name("vms/a");
  request.set_timeout_ms(10);
  v1::Vm vm;
  ASSERT_TRUE(Call(&v1::VmService::Stub::WaitVm, request, &vm).ok());
  EXPECT_EQ(vm.state(), v1::Vm::CREATED);
  request.set_timeout_ms(-1);
  EXPECT_EQ(Call(&v1::VmService::Stub::WaitVm, request, &vm).error_code(), grpc::INVALID_ARGUMENT);
}

using MmuServiceTest = ServerTest;

TEST_F(MmuServiceTest, WalksTablesThatWereWrittenFromOutside) {
  CreatePaging("a");
  v1::WalkResponse response;
  ASSERT_TRUE(Walk("a", 0x40'0123, v1::Access::READ, true, &response).ok());
  ASSERT_EQ(response.steps_size(), 4);
  EXPECT_EQ(response.steps(0).entry_address(), 0x1000u);
  EXPECT_EQ(response.steps(2).entry_address(), 0x3010u);
  EXPECT_EQ(response.steps(3).entry(), 0x5005u);
  EXPECT_EQ(response.translation().output(), 0x5123u);
  EXPECT_EQ(response.translation().page_bytes(), 4096);
  EXPECT_FALSE(response.translation().rights().write());
  std::string entry;
  ASSERT_TRUE(Read("a", 0x4000, 8, &entry).ok());
  EXPECT_EQ(entry, std::string("\x05\x50\0\0\0\0\0\0", 8)) << "looking sets no accessed bit";
}

TEST_F(MmuServiceTest, SaysWhyAWalkFaults) {
  CreatePaging("a");
  v1::WalkResponse response;
  ASSERT_TRUE(Walk("a", 0x40'0000, v1::Access::WRITE, true, &response).ok());
  EXPECT_EQ(response.fault().kind(), v1::WalkFault::RIGHTS);
  EXPECT_EQ(response.fault().error_code(), 7u);
  EXPECT_NE(response.explanation().find("refused by the PTE"), std::string::npos)
      << response.explanation();
  v1::WalkResponse absent;
  ASSERT_TRUE(Walk("a", 0x8000'0000, v1::Access::READ, false, &absent).ok());
  EXPECT_EQ(absent.fault().kind(), v1::WalkFault::NOT_PRESENT);
  EXPECT_EQ(absent.fault().level(), 3);
}

TEST_F(MmuServiceTest, RefusesAddressesThatCannotBe) {
  CreatePaging("a");
  v1::WalkResponse response;
  const grpc::Status status = Walk("a", 0x8000'0000'0000, v1::Access::READ, false, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_NE(status.error_message().find("0x800000000000"), std::string::npos);
  v1::WalkSptesRequest request;
  request.set_vcpu("vms/a/vcpus/0");
  request.set_address(UINT64_MAX);
  v1::WalkSptesResponse sptes;
  EXPECT_EQ(Call(&v1::MmuService::Stub::WalkSptes, request, &sptes).error_code(),
            grpc::INVALID_ARGUMENT);
}

TEST_F(MmuServiceTest, NamesWhatIsNotThere) {
  CreatePaging("a");
  v1::WalkRequest request;
  v1::WalkResponse response;
  request.set_vcpu("vms/b/vcpus/0");
  EXPECT_EQ(Call(&v1::MmuService::Stub::Walk, request, &response).error_code(), grpc::NOT_FOUND);
  request.set_vcpu("vms/a/vcpus/9");
  EXPECT_EQ(Call(&v1::MmuService::Stub::Walk, request, &response).error_code(), grpc::NOT_FOUND);
  request.set_vcpu("vms/a/vcpus/0");
  request.set_walker("moon_walk");
  EXPECT_EQ(Call(&v1::MmuService::Stub::Walk, request, &response).error_code(), grpc::NOT_FOUND);
  request.clear_walker();
  request.mutable_access()->set_kind(static_cast<v1::Access::Kind>(77));
  EXPECT_EQ(Call(&v1::MmuService::Stub::Walk, request, &response).error_code(),
            grpc::INVALID_ARGUMENT);
}

TEST_F(MmuServiceTest, WalksSptesForGuestVirtualAddresses) {
  CreatePaging("a");
  v1::WalkSptesRequest request;
  request.set_vcpu("vms/a/vcpus/0");
  request.set_address(0x40'0123);
  request.set_space(v1::WalkSptesRequest::GVA);
  v1::WalkSptesResponse response;
  const grpc::Status status = Call(&v1::MmuService::Stub::WalkSptes, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.shadow_mmu(), "root_mmu");
  EXPECT_EQ(response.guest_walk().translation().output(), 0x5123u);
  EXPECT_EQ(response.address(), 0x5123u);
  EXPECT_EQ(response.fault().kind(), v1::WalkFault::NOT_PRESENT) << "nobody touched it yet";
}

TEST_F(MmuServiceTest, ListsWalkersShadowMmusAndRoots) {
  CreatePaging("a");
  v1::ListWalkersRequest walkers_request;
  walkers_request.set_parent("vms/a/vcpus/0");
  v1::ListWalkersResponse walkers;
  ASSERT_TRUE(Call(&v1::MmuService::Stub::ListWalkers, walkers_request, &walkers).ok());
  ASSERT_EQ(walkers.walkers_size(), 1);
  EXPECT_EQ(walkers.walkers(0).name(), "cpu_walk");
  EXPECT_EQ(walkers.walkers(0).paging_mode(), "4-level");
  EXPECT_EQ(walkers.walkers(0).root_register(), 0x1000u);
  v1::ListShadowMmusRequest mmus_request;
  mmus_request.set_parent("vms/a/vcpus/0");
  v1::ListShadowMmusResponse mmus;
  ASSERT_TRUE(Call(&v1::MmuService::Stub::ListShadowMmus, mmus_request, &mmus).ok());
  ASSERT_GE(mmus.shadow_mmus_size(), 1);
  EXPECT_TRUE(mmus.shadow_mmus(0).root_role().direct());
  EXPECT_EQ(mmus.shadow_mmus(0).format().name(), "formats/ept-mbec");
}

TEST_F(MmuServiceTest, RefusesPageTokensOfAnotherList) {
  ASSERT_TRUE(Create("a").ok());
  v1::ListFormatsRequest formats_request;
  formats_request.set_page_size(1);
  v1::ListFormatsResponse formats;
  ASSERT_TRUE(Call(&v1::MmuService::Stub::ListFormats, formats_request, &formats).ok());
  ASSERT_NE(formats.next_page_token(), "");
  v1::ListShadowPagesRequest request;
  request.set_parent("vms/a");
  request.set_page_token(formats.next_page_token());
  v1::ListShadowPagesResponse response;
  EXPECT_EQ(Call(&v1::MmuService::Stub::ListShadowPages, request, &response).error_code(),
            grpc::INVALID_ARGUMENT);
}

TEST_F(MmuServiceTest, DescribesEveryFormatOnce) {
  v1::ListFormatsRequest request;
  request.set_page_size(1);
  std::multiset<std::string> names;
  v1::ListFormatsResponse response;
  do {
    response.Clear();
    ASSERT_TRUE(Call(&v1::MmuService::Stub::ListFormats, request, &response).ok());
    for (const v1::Format& format : response.formats()) names.insert(format.name());
    request.set_page_token(response.next_page_token());
  } while (!response.next_page_token().empty());
  EXPECT_EQ(names, (std::multiset<std::string>{"formats/ept", "formats/ept-mbec", "formats/npt",
                                               "formats/npt-gmet"}));
  v1::GetFormatRequest get;
  get.set_name("formats/ept-mbec");
  v1::Format format;
  ASSERT_TRUE(Call(&v1::MmuService::Stub::GetFormat, get, &format).ok());
  EXPECT_TRUE(format.splits_execute());
  EXPECT_EQ(format.permissions_size(), 8);
  get.set_name("formats/none");
  EXPECT_EQ(Call(&v1::MmuService::Stub::GetFormat, get, &format).error_code(), grpc::NOT_FOUND);
}

TEST_F(MmuServiceTest, CountsForAVm) {
  ASSERT_TRUE(Create("a").ok());
  v1::GetStatisticsRequest request;
  request.set_name("vms/a");
  v1::Statistics statistics;
  ASSERT_TRUE(Call(&v1::MmuService::Stub::GetStatistics, request, &statistics).ok());
  EXPECT_EQ(statistics.vcpus_size(), 1);
  request.set_name("vms/b");
  EXPECT_EQ(Call(&v1::MmuService::Stub::GetStatistics, request, &statistics).error_code(),
            grpc::NOT_FOUND);
}

}  // namespace
}  // namespace pagesaw
