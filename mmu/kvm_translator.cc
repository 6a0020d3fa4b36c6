module;
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <variant>
module pagesaw.mmu.kvm_translator;

namespace pagesaw {
namespace {

std::string Failed(const char* what) { return std::string(what) + ": " + std::strerror(errno); }

// kvm_cpuid2 with room for its leaves. The header's own type has another size in C++ than in C, and
// so have the requests that are made from it.
struct Cpuid {
  std::uint32_t nent = 256;
  std::uint32_t padding = 0;
  kvm_cpuid_entry2 entries[256] = {};
};
static_assert(offsetof(Cpuid, entries) == 8);
constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, std::uint64_t);
constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, std::uint64_t);

const kvm_cpuid_entry2* Leaf(const Cpuid& cpuid, std::uint32_t function) {
  for (std::uint32_t i = 0; i < cpuid.nent; ++i) {
    const kvm_cpuid_entry2& leaf = cpuid.entries[i];
    if (leaf.function == function && leaf.index == 0) return &leaf;
  }
  return nullptr;
}

PagingFeatures FeaturesOf(const Cpuid& cpuid) {
  PagingFeatures features;
  const kvm_cpuid_entry2* vendor = Leaf(cpuid, 0);
  const kvm_cpuid_entry2* structured = Leaf(cpuid, 7);
  const kvm_cpuid_entry2* extended = Leaf(cpuid, 0x8000'0001);
  const kvm_cpuid_entry2* widths = Leaf(cpuid, 0x8000'0008);
  const bool intel = vendor != nullptr && vendor->ebx == 0x756e'6547;  // "Genu"
  features.root_bit8_reserved = !intel;
  features.la57 = structured != nullptr && (structured->ecx >> 16 & 1) != 0;
  features.gib_pages = extended != nullptr && (extended->edx >> 26 & 1) != 0;
  features.no_execute = extended != nullptr && (extended->edx >> 20 & 1) != 0;
  features.physical_bits =
      widths != nullptr ? static_cast<std::uint8_t>(widths->eax & 0xff) : std::uint8_t{36};
  features.pse36_bits = 36;  // bits 21:17 of a 4 MiB page are reserved, whatever its width
  return features;
}

}  // namespace

std::variant<std::unique_ptr<KvmTranslator>, std::string> KvmTranslator::Open(std::byte* memory,
                                                                              std::uint64_t bytes) {
  std::unique_ptr<KvmTranslator> made(new KvmTranslator());
  made->kvm_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (made->kvm_ < 0) return Failed("/dev/kvm");
  if (ioctl(made->kvm_, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
    return Failed("KVM_GET_API_VERSION");
  }
  made->vm_ = ioctl(made->kvm_, KVM_CREATE_VM, 0);
  if (made->vm_ < 0) return Failed("KVM_CREATE_VM");
  const kvm_userspace_memory_region region = {
      .slot = 0,
      .flags = 0,
      .guest_phys_addr = 0,
      .memory_size = bytes,
      .userspace_addr = reinterpret_cast<std::uintptr_t>(memory)};
  if (ioctl(made->vm_, KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return Failed("KVM_SET_USER_MEMORY_REGION");
  }
  made->vcpu_ = ioctl(made->vm_, KVM_CREATE_VCPU, 0);
  if (made->vcpu_ < 0) return Failed("KVM_CREATE_VCPU");
  // What KVM can give a guest, it gets.
  Cpuid cpuid;
  if (ioctl(made->kvm_, kGetSupportedCpuid, &cpuid) != 0) return Failed("KVM_GET_SUPPORTED_CPUID");
  if (ioctl(made->vcpu_, kSetCpuid2, &cpuid) != 0) return Failed("KVM_SET_CPUID2");
  made->features_ = FeaturesOf(cpuid);
  return made;
}

KvmTranslator::~KvmTranslator() {
  for (int file : {vcpu_, vm_, kvm_}) {
    if (file >= 0) close(file);
  }
}

bool KvmTranslator::Load(const PagingState& state) {
  kvm_sregs registers;
  if (ioctl(vcpu_, KVM_GET_SREGS, &registers) != 0) return false;
  registers.cr0 = state.cr0 | 0x10;  // ET is always set
  registers.cr3 = state.cr3;
  registers.cr4 = state.cr4;
  registers.efer = state.efer;
  registers.cs.l = state.long_mode() ? 1 : 0;
  registers.cs.db = state.long_mode() ? 0 : 1;
  return ioctl(vcpu_, KVM_SET_SREGS, &registers) == 0;
}

std::optional<KvmTranslator::Answer> KvmTranslator::Translate(std::uint64_t linear) const {
  kvm_translation translation = {};
  translation.linear_address = linear;
  if (ioctl(vcpu_, KVM_TRANSLATE, &translation) != 0) return std::nullopt;
  return Answer{.valid = translation.valid != 0, .physical = translation.physical_address};
}

}  // namespace pagesaw
