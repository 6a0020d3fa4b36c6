#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.machine.boot_memory;
import pagesaw.machine.elf;
import pagesaw.machine.guest_ram;
import pagesaw.machine.host_file;
import pagesaw.machine.image_loader;
import pagesaw.machine.load_progress;
import pagesaw.machine.memory_slots;

namespace pagesaw {
namespace {

using Bytes = std::vector<std::byte>;

void Put(Bytes& bytes, std::size_t at, std::uint64_t value, unsigned count) {
  if (bytes.size() < at + count) bytes.resize(at + count);
  std::memcpy(bytes.data() + at, &value, count);
}

// A multiboot ELF32 with one segment at 1 MiB: the header, then HLT; 8 KiB of it in memory.
Bytes MultibootElf() {
  Bytes b(0x1000 + 16);
  Put(b, 0, 0x0001'0101'464c'457f, 8);
  Put(b, 16, 2, 2);          // executable
  Put(b, 18, 3, 2);          // 386
  Put(b, 24, 0x10'000c, 4);  // entry
  Put(b, 28, 52, 4);         // program headers
  Put(b, 42, 32, 2);
  Put(b, 44, 1, 2);
  Put(b, 52, 1, 4);          // PT_LOAD
  Put(b, 56, 0x1000, 4);     // offset
  Put(b, 60, 0x10'0000, 4);  // linear
  Put(b, 64, 0x10'0000, 4);  // physical
  Put(b, 68, 16, 4);         // in the file
  Put(b, 72, 0x2000, 4);     // in memory
  Put(b, 0x1000, 0x1bad'b002, 4);
  Put(b, 0x1004, 0, 4);
  Put(b, 0x1008, 0xe452'4ffe, 4);
  Put(b, 0x100c, 0xf4, 4);
  return b;
}

// An ELF64 with one segment at 2 MiB that holds HLT, and room for a note segment.
Bytes Elf64(bool with_pvh_note) {
  Bytes b(0x1000 + 16);
  Put(b, 0, 0x0001'0102'464c'457f, 8);
  Put(b, 16, 2, 2);
  Put(b, 18, 62, 2);
  Put(b, 24, 0x20'0000, 8);
  Put(b, 32, 64, 8);
  Put(b, 54, 56, 2);
  Put(b, 56, with_pvh_note ? 2 : 1, 2);
  Put(b, 64, 1, 4);
  Put(b, 72, 0x1000, 8);
  Put(b, 80, 0x20'0000, 8);
  Put(b, 88, 0x20'0000, 8);
  Put(b, 96, 16, 8);
  Put(b, 104, 0x3000, 8);
  Put(b, 120, 4, 4);  // PT_NOTE
  Put(b, 128, 0x200, 8);
  Put(b, 152, 20, 8);
  Put(b, 160, 20, 8);
  Put(b, 0x200, 4, 4);
  Put(b, 0x204, 4, 4);
  Put(b, 0x208, 18, 4);
  Put(b, 0x20c, 0x006e'6558, 4);  // "Xen"
  Put(b, 0x210, 0x20'0008, 4);
  Put(b, 0x1000, 0xf4, 8);
  return b;
}

// A bzImage of two setup sectors and 64 KiB of HLTs, which wants to lie at 4 MiB and needs 1 MiB.
Bytes BzImage() {
  Bytes b(3 * 512 + 0x1'0000, std::byte{0xf4});
  std::memset(b.data() + 0x1f1, 0, 0x300 - 0x1f1);
  Put(b, 0x1f1, 2, 1);  // setup sectors
  Put(b, 0x1f4, 0x1000, 4);
  Put(b, 0x1fe, 0xaa55, 2);
  Put(b, 0x200, 0x66eb, 2);  // the header ends at 268h
  Put(b, 0x202, 0x5372'6448, 4);
  Put(b, 0x206, 0x020f, 2);
  Put(b, 0x211, 1, 1);
  Put(b, 0x22c, 0x7fff'ffff, 4);
  Put(b, 0x230, 0x20'0000, 4);
  Put(b, 0x234, 1, 1);
  Put(b, 0x236, 1, 2);
  Put(b, 0x238, 100, 4);
  Put(b, 0x258, 0x40'0000, 8);
  Put(b, 0x260, 0x10'0000, 4);
  return b;
}

class ImageLoader : public testing::Test {
 protected:
  static constexpr std::uint64_t kMemory = 16u << 20;
  ImageLoader() {
    ram_ = *GuestRam::Create(kMemory);
    EXPECT_TRUE(
        slots_.Add({.id = 0, .first = Gfn{0}, .page_count = kMemory >> 12, .host = ram_->host()})
            .ok());
  }
  absl::StatusOr<CpuState> Load(const Bytes& image, const Bytes& initrd = {},
                                const std::string& cmdline = "") {
    return LoadImage({.memory = &slots_,
                      .memory_bytes = kMemory,
                      .image_name = "guest.flat",
                      .image = image,
                      .cmdline = cmdline,
                      .initrd = initrd,
                      .initrd_name = "env"});
  }
  std::uint64_t Guest(std::uint64_t gpa, unsigned count) {
    std::uint64_t value = 0;
    EXPECT_TRUE(
        slots_.Read(Gpa(gpa), std::as_writable_bytes(std::span(&value, 1)).first(count)).ok());
    return value;
  }
  std::string GuestText(std::uint64_t gpa) {
    return reinterpret_cast<const char*>(ram_->host() + gpa);
  }

  std::unique_ptr<GuestRam> ram_;
  SlotTable slots_;
};

// The same with a multiboot 2 header of one tag, `tag` with flags.
Bytes Multiboot2Elf(std::uint32_t tag) {
  Bytes b = MultibootElf();
  Put(b, 0x1000, 0, 8);
  constexpr std::uint32_t kMagic = 0xe852'50d6, kLength = 16 + 16 + 8;
  const std::uint64_t at = 0x800;
  Put(b, at, kMagic, 4);
  Put(b, at + 4, 0, 4);
  Put(b, at + 8, kLength, 4);
  Put(b, at + 12, static_cast<std::uint32_t>(0 - kMagic - kLength), 4);
  Put(b, at + 16, tag, 4);
  Put(b, at + 20, 12, 4);
  Put(b, at + 24, 0x10'000c, 4);
  Put(b, at + 32, 0, 4);
  Put(b, at + 36, 8, 4);
  return b;
}

TEST_F(ImageLoader, BootsMultiboot2) {
  const auto state = Load(Multiboot2Elf(3), {}, "a=1 b");  // the entry address
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->rip, 0x10'000cu);
  EXPECT_EQ(state->gpr[kRax], 0x36d7'6289u);
  EXPECT_NE(state->gpr[kRbx], 0u);
}

TEST_F(ImageLoader, RefusesUnknownMultiboot2TagsUnlessOptional) {
  EXPECT_FALSE(Load(Multiboot2Elf(99), {}, "").ok());
  EXPECT_TRUE(Load(Multiboot2Elf(99 | 1u << 16), {}, "").ok());
}

TEST_F(ImageLoader, BootsMultiboot) {
  std::memset(ram_->host() + 0x10'0000, 0xcc, 0x3000);
  const auto state = Load(MultibootElf(), {}, "a=1 b");
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->rip, 0x10'000cu);
  EXPECT_EQ(state->gpr[kRax], 0x2bad'b002u);
  EXPECT_EQ(state->cr0 & (kCr0Pg | kCr0Pe), kCr0Pe);
  EXPECT_EQ(state->extended.fcw, 0x37f);  // as behind FNINIT
  EXPECT_EQ(state->extended.ftw, 0);
  EXPECT_FALSE(state->segments[kCs].long_mode());
  EXPECT_TRUE(state->segments[kCs].big());
  EXPECT_EQ(Guest(0x10'000c, 1), 0xf4u);
  EXPECT_EQ(Guest(0x10'0010, 8), 0u);  // zeroed behind the file's part
  EXPECT_EQ(Guest(0x10'1ff8, 8), 0u);
  EXPECT_EQ(Guest(0x10'2000, 1), 0xccu);

  const std::uint64_t info = state->gpr[kRbx];
  EXPECT_EQ(Guest(info, 4), 0x45u);  // memory, command line, map
  EXPECT_EQ(Guest(info + 4, 4), 640u);
  EXPECT_EQ(Guest(info + 8, 4), 15u * 1024);
  EXPECT_EQ(GuestText(Guest(info + 16, 4)), "guest.flat a=1 b");
  EXPECT_EQ(Guest(info + 20, 4), 0u);
  ASSERT_EQ(Guest(info + 44, 4), 3u * 24);
  const std::uint64_t map = Guest(info + 48, 4);
  EXPECT_EQ(Guest(map, 4), 20u);
  EXPECT_EQ(Guest(map + 12, 8), 0xa'0000u);
  EXPECT_EQ(Guest(map + 20, 4), 1u);
  EXPECT_EQ(Guest(map + 44, 4), 2u);
  EXPECT_EQ(Guest(map + 52, 8), 0x10'0000u);
  EXPECT_EQ(Guest(map + 60, 8), kMemory - 0x10'0000);
}

TEST_F(ImageLoader, GivesTheInitrdAsAModule) {
  const Bytes initrd(5000, std::byte{0x77});
  const auto state = Load(MultibootElf(), initrd);
  ASSERT_TRUE(state.ok()) << state.status();
  const std::uint64_t info = state->gpr[kRbx];
  EXPECT_EQ(Guest(info, 4), 0x4du);
  ASSERT_EQ(Guest(info + 20, 4), 1u);
  const std::uint64_t module = Guest(info + 24, 4);
  const std::uint64_t start = Guest(module, 4);
  EXPECT_EQ(start, 0x10'2000u);
  EXPECT_EQ(Guest(module + 4, 4), start + 5000);
  EXPECT_EQ(GuestText(Guest(module + 8, 4)), "env");
  EXPECT_EQ(Guest(start + 4999, 1), 0x77u);
  EXPECT_EQ(Guest(start + 5000, 1), 0u);
}

TEST_F(ImageLoader, BootsPvh) {
  const auto state = Load(Elf64(true), Bytes(10), "x");
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->rip, 0x20'0008u);
  EXPECT_EQ(state->efer, 0u);
  const std::uint64_t info = state->gpr[kRbx];
  EXPECT_EQ(Guest(info, 4), 0x336e'c578u);
  EXPECT_EQ(Guest(info + 12, 4), 1u);
  EXPECT_EQ(Guest(Guest(info + 16, 8) + 8, 8), 10u);
  EXPECT_EQ(GuestText(Guest(info + 24, 8)), "guest.flat x");
  EXPECT_EQ(Guest(info + 48, 4), 3u);
  EXPECT_EQ(Guest(Guest(info + 40, 8) + 8, 8), 0xa'0000u);
}

TEST_F(ImageLoader, BootsPlainElf64InLongMode) {
  const auto state = Load(Elf64(false));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->rip, 0x20'0000u);
  EXPECT_TRUE(state->segments[kCs].long_mode());
  EXPECT_EQ(state->efer & (kEferLma | kEferLme), kEferLma | kEferLme);
  const std::uint64_t pdpt = Guest(state->cr3, 8) & ~0xfffull;
  const std::uint64_t directory = Guest(pdpt + 24, 8) & ~0xfffull;
  EXPECT_EQ(Guest(directory + 8 * 511, 8), 0xffe0'0083u);
  EXPECT_EQ(Guest(state->gdtr.base + 8, 8), 0x00af'9b00'0000'ffffu);
  EXPECT_EQ(Guest(state->gpr[kRdi], 4), 0x336e'c578u);
}

TEST_F(ImageLoader, BootsLinuxAtThe64BitEntry) {
  const Bytes initrd(5000, std::byte{0x77});
  const auto state = Load(BzImage(), initrd, "console=ttyS0");
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->rip, 0x40'0200u);
  EXPECT_TRUE(state->segments[kCs].long_mode());
  EXPECT_EQ(state->segments[kCs].selector, 0x10u);
  EXPECT_EQ(state->segments[kDs].selector, 0x18u);
  EXPECT_EQ(Guest(state->gdtr.base + 0x10, 8), 0x00af'9b00'0000'ffffu);
  EXPECT_EQ(Guest(state->gdtr.base + 0x18, 8), 0x00cf'9300'0000'ffffu);
  EXPECT_EQ(Guest(0x40'0000, 1), 0xf4u);
  EXPECT_EQ(Guest(0x40'ffff, 1), 0xf4u);
  EXPECT_EQ(Guest(0x41'0000, 1), 0u);

  const std::uint64_t parameters = state->gpr[kRsi];
  EXPECT_EQ(Guest(parameters + 0x070, 8), 0xe'0000u);  // RSDP
  EXPECT_EQ(Guest(parameters + 0x202, 4), 0x5372'6448u);
  EXPECT_EQ(Guest(parameters + 0x210, 1), 0xffu);
  EXPECT_EQ(GuestText(Guest(parameters + 0x228, 4)), "console=ttyS0");
  const std::uint64_t start = Guest(parameters + 0x218, 4);
  EXPECT_EQ(start, 0x50'0000u);  // behind what the kernel needs
  EXPECT_EQ(Guest(parameters + 0x21c, 4), 5000u);
  EXPECT_EQ(Guest(start + 4999, 1), 0x77u);
  ASSERT_EQ(Guest(parameters + 0x1e8, 1), 3u);  // E820 entries
  const std::uint64_t map = parameters + 0x2d0;
  EXPECT_EQ(Guest(map + 8, 8), 0xa'0000u);
  EXPECT_EQ(Guest(map + 16, 4), 1u);
  EXPECT_EQ(Guest(map + 36, 4), 2u);
  EXPECT_EQ(Guest(map + 40, 8), 0x10'0000u);
  EXPECT_EQ(Guest(map + 48, 8), kMemory - 0x10'0000);
}

TEST_F(ImageLoader, PutsARelocatableKernelLowerIfThereIsTooLittleRam) {
  Bytes image = BzImage();
  Put(image, 0x258, 0x100'0000, 8);
  const auto state = Load(image);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->rip, 0x20'0200u);
  Put(image, 0x234, 0, 1);
  EXPECT_EQ(Load(image).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ImageLoader, TakesAKernelWithoutTheBytesThatFillItsLastParagraph) {
  Bytes image = BzImage();
  image.resize(image.size() - 15);
  EXPECT_TRUE(Load(image).ok());
}

TEST_F(ImageLoader, RefusesAnInitrdThatEndsWhereTheKernelDoesNotWantIt) {
  Bytes image = BzImage();
  Put(image, 0x22c, 0x50'0fff, 4);
  EXPECT_TRUE(Load(image, Bytes(4096)).ok());
  const auto state = Load(image, Bytes(4097));
  EXPECT_EQ(state.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(state.status().message()).find("initrd: 4097 bytes"), std::string::npos)
      << state.status();
}

TEST_F(ImageLoader, RefusesACommandLineThatTheKernelWouldCut) {
  EXPECT_TRUE(Load(BzImage(), {}, std::string(100, 'x')).ok());
  const auto state = Load(BzImage(), {}, std::string(101, 'x'));
  EXPECT_EQ(state.status().message(),
            "command line of 101 characters: this kernel takes at most 100");
}

struct BadImage {
  const char* name;
  void (*change)(Bytes&);
  const char* says;
};
class ImageLoaderBad : public ImageLoader, public testing::WithParamInterface<BadImage> {};

TEST_P(ImageLoaderBad, IsRefusedWithASentence) {
  Bytes image = MultibootElf();
  GetParam().change(image);
  const auto state = Load(image);
  EXPECT_EQ(state.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(state.status().message());
  EXPECT_NE(message.find(GetParam().says), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Images, ImageLoaderBad,
    testing::Values(
        BadImage{"Empty", [](Bytes& b) { b.clear(); }, "neither an ELF file"},
        BadImage{"Text", [](Bytes& b) { Put(b, 0, 0x6f6c6c6568, 8); }, "neither an ELF file"},
        BadImage{"MagicOnly", [](Bytes& b) { b.resize(4); }, "the file has 4"},
        BadImage{"Class", [](Bytes& b) { Put(b, 4, 9, 1); }, "class 9"},
        BadImage{"Order", [](Bytes& b) { Put(b, 5, 2, 1); }, "byte order 2"},
        BadImage{"Machine", [](Bytes& b) { Put(b, 18, 40, 2); }, "machine 40"},
        BadImage{"Object", [](Bytes& b) { Put(b, 16, 1, 2); }, "type 1"},
        BadImage{"Short64",
                 [](Bytes& b) {
                   Put(b, 4, 2, 1);
                   b.resize(60);
                 },
                 "needs 64 bytes"},
        BadImage{"HeadersBeyond", [](Bytes& b) { Put(b, 28, 0xffff'fff0, 4); }, "program headers"},
        BadImage{"TinyHeaders", [](Bytes& b) { Put(b, 42, 8, 2); }, "header size 8"},
        BadImage{"NoSegments", [](Bytes& b) { Put(b, 44, 0, 2); }, "no loadable segment"},
        BadImage{"SegmentBeyondFile", [](Bytes& b) { b.resize(0x1000); }, "truncated: segment 0"},
        BadImage{"OffsetBeyondFile", [](Bytes& b) { Put(b, 56, 0xffff'ffff, 4); }, "truncated"},
        BadImage{"FileLargerThanMemory", [](Bytes& b) { Put(b, 72, 1, 4); }, "more than its 1"},
        BadImage{"OutsideRam", [](Bytes& b) { Put(b, 64, 0x0200'0000, 4); }, "0x2000000"},
        BadImage{"BssOutsideRam", [](Bytes& b) { Put(b, 72, 0x0200'0000, 4); }, "33554432 bytes"},
        BadImage{"EntryOutside", [](Bytes& b) { Put(b, 24, 0x123, 4); }, "entry point 0x123"},
        BadImage{"NoMultiboot", [](Bytes& b) { Put(b, 0x1000, 0, 4); }, "multiboot header"},
        BadImage{"Unknown",
                 [](Bytes& b) {
                   Put(b, 0x1004, 8, 4);
                   Put(b, 0x1008, 0xe452'4ff6, 4);
                 },
                 "multiboot flags 0x8"}),
    [](const auto& info) { return std::string(info.param.name); });

class LinuxKernelBad : public ImageLoader, public testing::WithParamInterface<BadImage> {};

TEST_P(LinuxKernelBad, IsRefusedWithASentence) {
  Bytes image = BzImage();
  GetParam().change(image);
  const auto state = Load(image);
  EXPECT_FALSE(state.ok());
  const std::string message(state.status().message());
  EXPECT_NE(message.find(GetParam().says), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Images, LinuxKernelBad,
    testing::Values(
        BadImage{"NoMagic", [](Bytes& b) { Put(b, 0x202, 0, 4); }, "nor a Linux kernel"},
        BadImage{"NoBootFlag", [](Bytes& b) { Put(b, 0x1fe, 0, 2); }, "nor a Linux kernel"},
        BadImage{"BootSectorOnly", [](Bytes& b) { b.resize(0x204); }, "nor a Linux kernel"},
        BadImage{"HeaderCut", [](Bytes& b) { b.resize(0x240); },
                 "truncated Linux kernel: 576 bytes, where its header tells of 67072"},
        BadImage{"SetupCut", [](Bytes& b) { b.resize(0x300); }, "truncated Linux kernel"},
        BadImage{"SetupAlone",
                 [](Bytes& b) {
                   Put(b, 0x1f4, 0, 4);
                   b.resize(b.size() - 0x1'0000 - 1);
                 },
                 "truncated Linux kernel"},
        BadImage{"KernelCut", [](Bytes& b) { b.resize(b.size() - 16); },
                 "67056 bytes, where its header tells of 67072"},
        BadImage{"OldProtocol", [](Bytes& b) { Put(b, 0x206, 0x020b, 2); },
                 "protocol 2.11: must be at least 2.12"},
        BadImage{"LoadedLow", [](Bytes& b) { Put(b, 0x211, 0, 1); }, "64-bit entry"},
        BadImage{"No64BitEntry", [](Bytes& b) { Put(b, 0x236, 0, 2); }, "64-bit entry"},
        BadImage{"Alignment", [](Bytes& b) { Put(b, 0x230, 0x3000, 4); }, "alignment 0x3000"},
        BadImage{"PreferredLow", [](Bytes& b) { Put(b, 0x258, 0x1000, 8); }, "address 0x1000"},
        BadImage{"PreferredHigh", [](Bytes& b) { Put(b, 0x258, ~0ull, 8); },
                 "address 0xffffffffffffffff"},
        BadImage{"NeedsTooMuch", [](Bytes& b) { Put(b, 0x260, 0xffff'ffff, 4); },
                 "no room for 4294967295 bytes"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(ImageLoader, RefusesAnInitrdThatDoesNotFit) {
  const auto state = Load(MultibootElf(), Bytes(kMemory - 0x10'0000));
  EXPECT_EQ(state.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(state.status().message()).find("initrd"), std::string::npos);
}

TEST_F(ImageLoader, RefusesA64BitEntryThatIsNotMapped) {
  Bytes image = Elf64(false);
  Put(image, 80, 0xffff'ffff'8020'0000, 8);
  EXPECT_EQ(Load(image).status().code(), absl::StatusCode::kInvalidArgument);
  Put(image, 24, 0x100, 8);
  EXPECT_EQ(Load(image).status().code(), absl::StatusCode::kInvalidArgument);
}

// Damaged images load or are refused; nothing else happens.
TEST_F(ImageLoader, SurvivesRandomDamage) {
  std::mt19937_64 random(20240607);
  for (int round = 0; round < 4000; ++round) {
    Bytes image = round % 4 == 0   ? MultibootElf()
                  : round % 4 == 1 ? BzImage()
                                   : Elf64(round % 4 == 2);
    for (unsigned i = 0; i < 1 + random() % 8; ++i) {
      const std::size_t at = random() % 4 == 0 ? random() % image.size() : random() % 0x280;
      image[at] = static_cast<std::byte>(random() % 3 == 0 ? 0xff : random());
    }
    if (random() % 4 == 0) image.resize(random() % image.size());
    (void)Load(image);
  }
}

TEST_F(ImageLoader, NamesTheFileThatIsNoImageWithItsFolder) {
  const std::string path = testing::TempDir() + "/pagesaw_bad_image";
  std::ofstream(path) << "no ELF file";
  LoadProgress progress;
  const auto state = LoadImageFiles(slots_, kMemory, path, "", "", progress);
  EXPECT_EQ(state.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::string(state.status().message()).starts_with("image '" + path + "': "))
      << state.status();
}

TEST(ReadHostFile, SaysWhyItCannot) {
  LoadProgress progress;
  const std::string dir = testing::TempDir();
  EXPECT_EQ(ReadHostFile("image", dir + "/none", 10, progress).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadHostFile("image", dir, 10, progress).status().message(),
            "image '" + dir + "': is a directory");
  EXPECT_EQ(ReadHostFile("image", "/dev/null", 10, progress).status().message(),
            "image '/dev/null': not a regular file");
  const std::string path = dir + "/pagesaw_host_file_test";
  std::ofstream(path, std::ios::trunc).close();
  EXPECT_EQ(ReadHostFile("image", path, 10, progress).status().message(),
            "image '" + path + "': the file is empty");
  std::ofstream(path) << "0123456789";
  EXPECT_EQ(ReadHostFile("image", path, 9, progress).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadHostFile("image", path, 10, progress)->size(), 10u);
  EXPECT_EQ(progress.done_bytes(), 10u);
}

TEST_F(ImageLoader, TellsHowMuchOfBothFilesItHasRead) {
  const std::string image = testing::TempDir() + "/pagesaw_progress_image";
  const std::string initrd = testing::TempDir() + "/pagesaw_progress_initrd";
  std::ofstream(image, std::ios::trunc) << std::string(3'000'000, 'x');
  std::ofstream(initrd, std::ios::trunc) << std::string(1'234'567, 'x');
  LoadProgress progress;
  EXPECT_FALSE(LoadImageFiles(slots_, kMemory, image, "", initrd, progress).ok());
  EXPECT_EQ(progress.total_bytes(), 4'234'567u);
  EXPECT_EQ(progress.done_bytes(), 4'234'567u);
}

}  // namespace
}  // namespace pagesaw
