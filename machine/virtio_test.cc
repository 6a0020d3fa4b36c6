#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

import pagesaw.core.address;
import pagesaw.machine.acpi_tables;
import pagesaw.machine.clock;
import pagesaw.machine.console;
import pagesaw.machine.device;
import pagesaw.machine.device_memory;
import pagesaw.machine.disk;
import pagesaw.machine.test_support;
import pagesaw.machine.virtio_devices;
import pagesaw.machine.virtio_mmio;

namespace pagesaw {
namespace {

constexpr std::uint64_t kDescriptors = 0x1000, kAvailable = 0x2000, kUsed = 0x3000,
                        kHeader = 0x4000, kData = 0x5000, kStatus = 0x8'0000;
constexpr std::uint16_t kNext = 1, kWrite = 2, kIndirect = 4;
constexpr std::uint32_t kSize = 8;

// 1 MiB of RAM at 0.
class FakeMemory final : public DeviceMemory {
 public:
  bool Read(Gpa gpa, std::span<std::byte> bytes) const override {
    if (!Has(gpa, bytes.size())) return false;
    std::memcpy(bytes.data(), ram.data() + gpa.bits(), bytes.size());
    return true;
  }
  bool Write(Gpa gpa, std::span<const std::byte> bytes) override {
    if (!Has(gpa, bytes.size())) return false;
    first_write_to.try_emplace(gpa.bits(), writes++);
    std::memcpy(ram.data() + gpa.bits(), bytes.data(), bytes.size());
    return true;
  }

  template <class T>
  void Put(std::uint64_t at, T value) {
    std::memcpy(ram.data() + at, &value, sizeof value);
  }
  template <class T>
  T Get(std::uint64_t at) const {
    T value;
    std::memcpy(&value, ram.data() + at, sizeof value);
    return value;
  }

  std::vector<std::byte> ram = std::vector<std::byte>(1 << 20);
  unsigned writes = 0;
  std::map<std::uint64_t, unsigned> first_write_to;  // which of the writes began there first

 private:
  bool Has(Gpa gpa, std::uint64_t count) const {
    return gpa.bits() <= ram.size() && count <= ram.size() - gpa.bits();
  }
};

// A driver by hand for one device: what is not what a test is about is as it should be.
class VirtioTest : public testing::Test {
 protected:
  void Make(VirtioOptions options) {
    devices_.emplace(std::move(options), interrupts_, memory_, console_, [this] { ++wakes_; });
    device_ = devices_->devices().front().get();
  }
  void MakeEntropy() {
    VirtioOptions options;
    options.entropy = true;
    options.seed = 1;
    Make(std::move(options));
  }
  void MakeConsole() {
    VirtioOptions options;
    options.console = true;
    Make(std::move(options));
  }
  // A disk of 64 KiB whose sectors are full of their numbers.
  void MakeDisk(bool read_only = false, std::uint64_t written_max = Disk::kWrittenMaxBytes) {
    path_ = testing::TempDir() + "/pagesaw_virtio_disk_" + std::to_string(getpid());
    std::ofstream file(path_, std::ios::binary | std::ios::trunc);
    for (int sector = 0; sector < 128; ++sector) {
      file << std::string(512, static_cast<char>(sector));
    }
    file.close();
    auto disk = Disk::Open(path_, read_only, written_max);
    ASSERT_TRUE(disk.ok()) << disk.status();
    VirtioOptions options;
    options.disk = *std::move(disk);
    Make(std::move(options));
  }
  ~VirtioTest() override {
    if (!path_.empty()) unlink(path_.c_str());
  }

  std::uint32_t In(std::uint64_t offset) {
    return static_cast<std::uint32_t>(
        device_->Read(BusSpace::kMmio, VirtioDevices::kBase + offset, 4));
  }
  void Out(std::uint64_t offset, std::uint32_t value) {
    device_->Write(BusSpace::kMmio, VirtioDevices::kBase + offset, 4, value);
  }
  void SetUpQueue(unsigned queue) {
    Out(0x030, queue);
    Out(0x038, kSize);
    Out(0x080, kDescriptors + queue * 0x100);
    Out(0x090, kAvailable + queue * 0x100);
    Out(0x0a0, kUsed + queue * 0x100);
    Out(0x044, 1);
  }
  void Start(unsigned queues = 1) {
    Out(0x070, 3);
    Out(0x024, 1);
    Out(0x020, 1);  // version 1
    Out(0x070, 11);
    ASSERT_EQ(In(0x070), 11u);
    for (unsigned queue = 0; queue < queues; ++queue) SetUpQueue(queue);
    Out(0x070, 15);
  }
  void Describe(unsigned index, std::uint64_t base, std::uint32_t bytes, std::uint16_t flags,
                std::uint16_t next = 0) {
    const std::uint64_t at = kDescriptors + index * 16;
    memory_.Put<std::uint64_t>(at, base);
    memory_.Put<std::uint32_t>(at + 8, bytes);
    memory_.Put<std::uint16_t>(at + 12, flags);
    memory_.Put<std::uint16_t>(at + 14, next);
  }
  // Makes chain `head` available in queue 0, and tells the device.
  void Offer(std::uint16_t head) {
    memory_.Put<std::uint16_t>(kAvailable + 4 + available_ % kSize * 2, head);
    memory_.Put<std::uint16_t>(kAvailable + 2, ++available_);
    Out(0x050, 0);
  }
  std::uint16_t used() const { return memory_.Get<std::uint16_t>(kUsed + 2); }
  std::uint32_t used_bytes(unsigned index) const {
    return memory_.Get<std::uint32_t>(kUsed + 4 + index * 8 + 4);
  }
  bool needs_reset() { return (In(0x070) & 64) != 0; }

  // A block request of `bytes`, and its status.
  std::uint8_t Request(std::uint32_t type, std::uint64_t sector, std::uint32_t bytes) {
    memory_.Put<std::uint32_t>(kHeader, type);
    memory_.Put<std::uint64_t>(kHeader + 8, sector);
    memory_.Put<std::uint8_t>(kStatus, 0xee);
    Describe(0, kHeader, 16, kNext, 1);
    Describe(1, kData, bytes, static_cast<std::uint16_t>(kNext | (type == 1 ? 0 : kWrite)), 2);
    Describe(2, kStatus, 1, kWrite);
    Offer(0);
    return memory_.Get<std::uint8_t>(kStatus);
  }

  FakeMemory memory_;
  FakeInterruptSink interrupts_;
  Console console_;
  std::optional<VirtioDevices> devices_;
  VirtioMmio* device_ = nullptr;
  std::uint16_t available_ = 0;
  unsigned wakes_ = 0;
  std::string path_;
};

// -- the transport

TEST_F(VirtioTest, TellsWhatItIs) {
  MakeEntropy();
  EXPECT_EQ(In(0x000), 0x7472'6976u);
  EXPECT_EQ(In(0x004), 2u);
  EXPECT_EQ(In(0x008), 4u);
  Out(0x014, 1);
  EXPECT_EQ(In(0x010), 1u);  // version 1
  Out(0x014, 2);
  EXPECT_EQ(In(0x010), 0u);
  Out(0x030, 0);
  EXPECT_EQ(In(0x034), 256u);
  Out(0x030, 1);
  EXPECT_EQ(In(0x034), 0u);
}

TEST_F(VirtioTest, RefusesFeaturesThatItDidNotOffer) {
  MakeEntropy();
  Out(0x070, 3);
  Out(0x070, 11);
  EXPECT_EQ(In(0x070), 3u);  // not even version 1
  Out(0x024, 1);
  Out(0x020, 1);
  Out(0x024, 0);
  Out(0x020, 1u << 28);  // indirect descriptors
  Out(0x070, 11);
  EXPECT_EQ(In(0x070), 3u);
  Out(0x020, 0);
  Out(0x070, 11);
  EXPECT_EQ(In(0x070), 11u);
}

TEST_F(VirtioTest, FillsAChainAndInterrupts) {
  MakeEntropy();
  Start();
  Describe(0, kData, 8, kWrite | kNext, 1);
  Describe(1, kData + 0x100, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 1u);
  EXPECT_EQ(used_bytes(0), 16u);
  EXPECT_NE(memory_.Get<std::uint64_t>(kData), 0u);
  EXPECT_NE(memory_.Get<std::uint64_t>(kData + 0x100), 0u);
  EXPECT_EQ(memory_.Get<std::uint64_t>(kData + 8), 0u);
  EXPECT_TRUE(interrupts_.levels[VirtioDevices::kFirstIrq]);
  EXPECT_EQ(In(0x060), 1u);
  Out(0x064, 1);
  EXPECT_FALSE(interrupts_.levels[VirtioDevices::kFirstIrq]);
}

// A driver that polls may use what it was given as soon as the index says so.
TEST_F(VirtioTest, WritesDataBeforeTheIndex) {
  MakeEntropy();
  Start();
  Describe(0, kData, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 1u);
  EXPECT_LT(memory_.first_write_to[kData], memory_.first_write_to[kUsed + 2]);
}

TEST_F(VirtioTest, GivesBackAChainThatItCannotFill) {
  MakeEntropy();
  Start();
  Describe(0, kData, 8, kWrite | kNext, 1);
  Describe(1, std::uint64_t{1} << 40, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 1u);
  EXPECT_EQ(used_bytes(0), 0u);
}

// What was completed before the queue made no sense is given back.
TEST_F(VirtioTest, GivesBackWhatItDidBeforeItNeedsAReset) {
  MakeEntropy();
  Start();
  Describe(0, kData, 8, kWrite);
  memory_.Put<std::uint16_t>(kAvailable + 4, 0);
  memory_.Put<std::uint16_t>(kAvailable + 6, 8);
  memory_.Put<std::uint16_t>(kAvailable + 2, 2);
  Out(0x050, 0);
  EXPECT_TRUE(needs_reset());
  EXPECT_EQ(used(), 1u);
}

TEST_F(VirtioTest, DoesNotInterruptADriverThatPolls) {
  MakeEntropy();
  Start();
  memory_.Put<std::uint16_t>(kAvailable, 1);
  Describe(0, kData, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 1u);
  EXPECT_FALSE(interrupts_.levels[VirtioDevices::kFirstIrq]);
}

TEST_F(VirtioTest, DoesNothingBeforeTheDriverIsReady) {
  MakeEntropy();
  SetUpQueue(0);
  Describe(0, kData, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 0u);
}

TEST_F(VirtioTest, ForgetsItsQueuesWhenReset) {
  MakeEntropy();
  Start();
  Out(0x070, 0);
  Out(0x030, 0);
  EXPECT_EQ(In(0x044), 0u);
  EXPECT_EQ(In(0x070), 0u);
  Start();
  Describe(0, kData, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 1u);
}

struct BadQueue {
  const char* name;
  void (*spoil)(FakeMemory& memory);
};
class VirtioBadQueue : public VirtioTest, public testing::WithParamInterface<BadQueue> {
 public:
  static void PutDescriptor(FakeMemory& memory, std::uint64_t base, std::uint32_t bytes,
                            std::uint16_t flags, std::uint16_t next) {
    memory.Put<std::uint64_t>(kDescriptors, base);
    memory.Put<std::uint32_t>(kDescriptors + 8, bytes);
    memory.Put<std::uint16_t>(kDescriptors + 12, flags);
    memory.Put<std::uint16_t>(kDescriptors + 14, next);
  }
};

TEST_P(VirtioBadQueue, NeedsAResetAndTakesNothing) {
  MakeEntropy();
  Start();
  Describe(0, kData, 8, kWrite);
  memory_.Put<std::uint16_t>(kAvailable + 2, 1);
  GetParam().spoil(memory_);
  Out(0x050, 0);
  EXPECT_TRUE(needs_reset());
  EXPECT_EQ(used(), 0u);
  EXPECT_EQ(In(0x060), 2u);
  Out(0x050, 0);  // and stays so
  EXPECT_EQ(used(), 0u);
  Out(0x070, 0);
  EXPECT_FALSE(needs_reset());
}

INSTANTIATE_TEST_SUITE_P(
    Queues, VirtioBadQueue,
    testing::Values(
        BadQueue{
            "LoopOfOne",
            [](FakeMemory& m) { VirtioBadQueue::PutDescriptor(m, kData, 8, kWrite | kNext, 0); }},
        BadQueue{"HeadOutside", [](FakeMemory& m) { m.Put<std::uint16_t>(kAvailable + 4, 8); }},
        BadQueue{"NextOutside",
                 [](FakeMemory& m) {
                   VirtioBadQueue::PutDescriptor(m, kData, 8, kWrite | kNext, 0xffff);
                 }},
        BadQueue{"IndexTooFar", [](FakeMemory& m) { m.Put<std::uint16_t>(kAvailable + 2, 9); }},
        BadQueue{"Indirect",
                 [](FakeMemory& m) { VirtioBadQueue::PutDescriptor(m, kData, 16, kIndirect, 0); }},
        BadQueue{"AddressWraps",
                 [](FakeMemory& m) {
                   VirtioBadQueue::PutDescriptor(m, ~std::uint64_t{0}, 16, kWrite, 0);
                 }},
        BadQueue{"ReadableBehindWritable",
                 [](FakeMemory& m) {
                   VirtioBadQueue::PutDescriptor(m, kData, 8, kWrite | kNext, 1);
                   m.Put<std::uint64_t>(kDescriptors + 16, kData);
                   m.Put<std::uint32_t>(kDescriptors + 24, 8);
                 }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(VirtioTest, NeedsAResetIfTheQueueIsNoMemory) {
  MakeEntropy();
  Start();
  Out(0x070, 0);
  Out(0x070, 3);
  Out(0x024, 1);
  Out(0x020, 1);
  Out(0x070, 11);
  Out(0x030, 0);
  Out(0x038, kSize);
  for (const std::uint64_t area : {0x080, 0x090, 0x0a0}) Out(area + 4, 0xffff'ffff);
  Out(0x044, 1);
  Out(0x070, 15);
  Out(0x050, 0);
  EXPECT_TRUE(needs_reset());
}

TEST_F(VirtioTest, GivesBackAChainOutsideMemoryEmpty) {
  MakeEntropy();
  Start();
  Describe(0, std::uint64_t{1} << 40, 8, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 1u);
  EXPECT_EQ(used_bytes(0), 0u);
  EXPECT_FALSE(needs_reset());
}

TEST_F(VirtioTest, FillsNoMoreThanItsBound) {
  MakeEntropy();
  Start();
  Describe(0, 0x1'0000, 0xffff'ffff, kWrite);
  Offer(0);
  EXPECT_EQ(used_bytes(0), 64u << 10);
}

// Whatever a driver writes, something defined happens.
TEST_F(VirtioTest, SurvivesRandomRegistersAndQueues) {
  std::mt19937_64 random(20260101);
  for (int round = 0; round < 300; ++round) {
    if (round % 3 == 0) {
      MakeEntropy();
    } else if (round % 3 == 1) {
      MakeConsole();
    } else {
      MakeDisk();
    }
    for (int i = 0; i < 64; ++i) {
      memory_.Put<std::uint64_t>(0x1000 + random() % 0x3000 / 8 * 8, random() >> random() % 64);
    }
    if (random() % 2 == 0) Start(random() % 2 + 1);
    for (int i = 0; i < 50; ++i) {
      const std::uint64_t offset = random() % VirtioMmio::kBytes;
      const unsigned bytes = 1u << random() % 4;
      device_->Write(BusSpace::kMmio, VirtioDevices::kBase + offset, bytes,
                     random() >> random() % 64);
      device_->Read(BusSpace::kMmio, VirtioDevices::kBase + offset, bytes);
      Out(0x050, static_cast<std::uint32_t>(random() % 3));
    }
    devices_->Type("x");
    device_->Poll();
  }
}

// -- block

TEST_F(VirtioTest, ReadsSectors) {
  MakeDisk();
  EXPECT_EQ(In(0x008), 2u);
  EXPECT_EQ(In(0x100), 128u);
  Start();
  EXPECT_EQ(Request(0, 5, 1024), 0u);
  EXPECT_EQ(used_bytes(0), 1025u);
  EXPECT_EQ(memory_.Get<std::uint8_t>(kData), 5u);
  EXPECT_EQ(memory_.Get<std::uint8_t>(kData + 1023), 6u);
}

TEST_F(VirtioTest, KeepsWhatIsWrittenAndLeavesTheFile) {
  MakeDisk();
  Start();
  memory_.Put<std::uint64_t>(kData, 0x1122'3344'5566'7788);
  EXPECT_EQ(Request(1, 7, 512), 0u);
  memory_.Put<std::uint64_t>(kData, 0);
  EXPECT_EQ(Request(0, 6, 1536), 0u);
  EXPECT_EQ(memory_.Get<std::uint8_t>(kData), 6u);
  EXPECT_EQ(memory_.Get<std::uint64_t>(kData + 512), 0x1122'3344'5566'7788u);
  EXPECT_EQ(memory_.Get<std::uint8_t>(kData + 1024), 8u);
  EXPECT_EQ(Request(4, 0, 0), 0u);  // flush
  std::ifstream file(path_, std::ios::binary);
  file.seekg(7 * 512);
  EXPECT_EQ(file.get(), 7);
}

TEST_F(VirtioTest, FailsRequestsThatCannotBeDone) {
  MakeDisk();
  Start();
  EXPECT_EQ(Request(0, 128, 512), 1u);
  EXPECT_EQ(Request(0, 127, 1024), 1u);
  EXPECT_EQ(Request(0, ~std::uint64_t{0}, 512), 1u);
  EXPECT_EQ(Request(1, 127, 1024), 1u);
  EXPECT_EQ(Request(0, 0, (2u << 20) + 512), 1u);
  EXPECT_EQ(Request(99, 0, 512), 2u);
  EXPECT_EQ(Request(0, 0, 512), 0u);
}

TEST_F(VirtioTest, FailsARequestWithoutAHeader) {
  MakeDisk();
  Start();
  Describe(0, kStatus, 1, kWrite);
  Offer(0);
  EXPECT_EQ(memory_.Get<std::uint8_t>(kStatus), 1u);
  EXPECT_EQ(used_bytes(0), 1u);
  Describe(0, kHeader, 16, 0);  // nothing to write to
  Offer(0);
  EXPECT_EQ(used(), 2u);
  EXPECT_EQ(used_bytes(1), 0u);
}

TEST_F(VirtioTest, RefusesWritesToAReadOnlyDisk) {
  MakeDisk(true);
  EXPECT_NE(In(0x010) & 1u << 5, 0u);
  Start();
  EXPECT_EQ(Request(1, 0, 512), 1u);
  EXPECT_EQ(Request(0, 0, 512), 0u);
}

TEST_F(VirtioTest, KeepsNoMoreThanItsBound) {
  MakeDisk(false, 8192);
  Start();
  EXPECT_EQ(Request(1, 0, 4096), 0u);
  EXPECT_EQ(Request(1, 64, 4096), 0u);
  EXPECT_EQ(Request(1, 32, 512), 1u);
  EXPECT_EQ(Request(1, 1, 512), 0u);
}

TEST_F(VirtioTest, FailsReadsOfAFileThatBecameShorter) {
  MakeDisk();
  Start();
  ASSERT_EQ(truncate(path_.c_str(), 1024), 0);
  EXPECT_EQ(Request(0, 1, 512), 0u);
  EXPECT_EQ(Request(0, 2, 512), 1u);
}

TEST_F(VirtioTest, GoesOnWithAFileThatWasRemoved) {
  MakeDisk();
  Start();
  unlink(path_.c_str());
  EXPECT_EQ(Request(0, 2, 512), 0u);
}

TEST(Disk, SaysWhyItCannotBeOpened) {
  const std::string path = testing::TempDir() + "/pagesaw_disk_test";
  std::filesystem::remove(path);
  EXPECT_EQ(Disk::Open(path, false).status().message(),
            "disk '" + path + "': No such file or directory");
  std::ofstream(path) << "x";
  EXPECT_EQ(Disk::Open(path, false).status().message(),
            "disk '" + path + "': 1 bytes: must be a positive multiple of 512");
  EXPECT_EQ(Disk::Open(testing::TempDir(), false).status().message(),
            "disk '" + testing::TempDir() + "': is a directory");
  std::ofstream(path, std::ios::trunc).close();
  EXPECT_EQ(Disk::Open(path, false).status().message(),
            "disk '" + path + "': 0 bytes: must be a positive multiple of 512");
}

// -- console

TEST_F(VirtioTest, PrintsWhatIsTransmitted) {
  MakeConsole();
  Start(2);
  std::memcpy(memory_.ram.data() + kData, "hello", 5);
  const std::uint64_t at = kDescriptors + 0x100;
  memory_.Put<std::uint64_t>(at, kData);
  memory_.Put<std::uint32_t>(at + 8, 5);
  memory_.Put<std::uint16_t>(kAvailable + 0x100 + 2, 1);
  Out(0x050, 1);
  EXPECT_EQ(console_.Read(0, 100, std::chrono::milliseconds(0)).data, "hello");
}

TEST_F(VirtioTest, HandsInputToAWaitingBufferWhenPolled) {
  MakeConsole();
  EXPECT_FALSE(devices_->Type("early").has_value());  // no driver yet
  Start(2);
  Describe(0, kData, 16, kWrite);
  Offer(0);
  EXPECT_EQ(used(), 0u);
  EXPECT_EQ(device_->next_deadline_ns(), kNever);
  EXPECT_EQ(devices_->Type("ls\n"), true);
  EXPECT_EQ(wakes_, 1u);
  EXPECT_EQ(device_->next_deadline_ns(), 0u);
  device_->Poll();
  EXPECT_EQ(used(), 1u);
  EXPECT_EQ(used_bytes(0), 3u);
  EXPECT_EQ(memory_.Get<char>(kData), 'l');
  EXPECT_EQ(device_->next_deadline_ns(), kNever);
}

TEST_F(VirtioTest, KeepsABoundedInputUntilThereIsABuffer) {
  MakeConsole();
  Start(2);
  EXPECT_EQ(devices_->Type(std::string(4096, 'x')), true);
  EXPECT_EQ(devices_->Type("y"), false);
  Describe(0, kData, 4096, kWrite);
  Offer(0);
  EXPECT_EQ(used_bytes(0), 4096u);
  EXPECT_EQ(devices_->Type("y"), true);
}

// -- how a guest finds them

TEST_F(VirtioTest, IsToldOfByAcpi) {
  MakeConsole();
  const std::vector<AcpiDevice> list = devices_->AcpiDevices();
  ASSERT_EQ(list.size(), 1u);
  const std::vector<std::byte> tables = MakeAcpiTables(1, list);
  const std::string text(reinterpret_cast<const char*>(tables.data()), tables.size());
  const std::size_t at = text.find("VIO0");
  ASSERT_NE(at, std::string::npos);
  EXPECT_NE(text.find("_HID\x0dLNRO0005", at), std::string::npos);
  // Memory32Fixed (ReadWrite, 0xD0000000, 0x200), Interrupt (..., Level, ActiveHigh) {16}
  const std::string resources(
      "\x86\x09\x00\x01\x00\x00\x00\xd0\x00\x02\x00\x00"
      "\x89\x06\x00\x01\x01\x10\x00\x00\x00\x79\x00",
      23);
  EXPECT_NE(text.find(resources, at), std::string::npos);
}

}  // namespace
}  // namespace pagesaw
