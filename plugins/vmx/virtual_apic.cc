module;
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
module pagesaw.plugins.vmx.virtual_apic;

namespace pagesaw::vmx {
namespace {

// Offsets of registers. [intel/vol3] "Virtualized APIC Registers"
constexpr std::uint32_t kTpr = 0x80, kPpr = 0xa0, kEoi = 0xb0, kIsr = 0x100, kIrr = 0x200,
                        kIcrLow = 0x300, kIcrHigh = 0x310, kSelfIpi = 0x3f0;
constexpr std::uint32_t kFirstMsr = 0x800, kMsrs = 0x100;
constexpr unsigned kPriorityShift = 4;

constexpr unsigned PriorityOf(std::uint32_t value) { return value >> kPriorityShift & 15; }

std::uint32_t* WordAt(VirtHost& host, Gpa page, std::uint32_t offset) {
  std::byte* const memory = host.Memory(page, kPageBytes);
  return memory == nullptr ? nullptr : reinterpret_cast<std::uint32_t*>(memory + offset);
}

// The registers that APIC-register virtualization lets be written, and those that it lets be read
// besides. [intel/vol3] "Virtualizing Reads from the APIC-Access Page", "Virtualizing Writes to the
// APIC-Access Page"
bool IsWritable(std::uint32_t offset) {
  switch (offset) {
    case 0x020:  // ID
    case kTpr:
    case kEoi:
    case 0x0d0:  // LDR
    case 0x0e0:  // DFR
    case 0x0f0:  // SVR
    case 0x280:  // ESR
    case kIcrLow:
    case kIcrHigh:
    case 0x380:  // initial count
    case 0x3e0:  // divide configuration
      return true;
    default:
      return offset >= 0x320 && offset <= 0x370;  // LVT
  }
}
bool IsReadable(std::uint32_t offset) {
  return IsWritable(offset) || offset == 0x030 || (offset >= kIsr && offset < 0x280);
}

}  // namespace

VirtualApic::VirtualApic(const Vmcs& vmcs, const Controls& controls) : controls_(controls) {
  if (maps()) access_page_ = vmcs.Page(field::kApicAccess);
  if (!has_page()) return;
  page_ = vmcs.Page(field::kVirtualApic);
  threshold_ = vmcs.Get32(field::kTprThreshold) & 15;
  if (!delivers()) return;
  posted_ = Gpa(vmcs.Get(field::kPostedDescriptor) & ~std::uint64_t{63});
  notification_ = vmcs.Get32(field::kNotificationVector);
  const std::uint64_t status = vmcs.Get(field::kInterruptStatus);
  requested_ = static_cast<std::uint8_t>(status);
  serviced_ = static_cast<std::uint8_t>(status >> 8);
  for (std::size_t i = 0; i < eoi_exits_.size(); ++i) {
    eoi_exits_[i] = vmcs.Get(field::kEoiExits[i]);
  }
}

// -- VM entries and VM exits

void VirtualApic::Enter(VirtHost& host) {
  if (!has_page()) return;
  GuestInterrupts& interrupts = host.interrupts();
  tpr_ = static_cast<std::uint8_t>(PriorityOf(Read(host, kTpr)));
  interrupts.has_virtual_tpr = true;
  interrupts.virtual_tpr = tpr_;
  interrupts.tpr_threshold = static_cast<std::uint8_t>(threshold_);
  interrupts.asks_about_tpr = delivers() || maps() || x2apic();
  interrupts.asks_about_interrupts = controls_.HasPin(pin::kPostedInterrupts);
  if (delivers()) {
    VirtualizePpr(host);
    Evaluate(host);
  } else if (maps() && tpr_ < threshold_) {
    written_ = kTpr;  // [intel/vol3] "VM Exits Induced by the TPR Threshold"
    interrupts.asks_at_boundary = true;
  }
}

void VirtualApic::Save(VirtHost& host, Vmcs& vmcs) {
  if (!has_page()) return;
  if (delivers()) vmcs.Set(field::kInterruptStatus, requested_ | serviced_ << 8);
  const std::uint8_t now = host.interrupts().virtual_tpr;
  if (now != tpr_) Write(host, kTpr, std::uint32_t{now} << kPriorityShift);
}

// -- accesses

std::optional<Gpa> VirtualApic::access_page() const {
  if (!maps()) return std::nullopt;
  return access_page_;
}

bool VirtualApic::VirtualizesRead(std::uint32_t offset) const {
  return has_page() && (registers() ? IsReadable(offset) : offset == kTpr);
}

bool VirtualApic::VirtualizesWrite(std::uint32_t offset) const {
  if (!has_page()) return false;
  if (registers()) return IsWritable(offset);
  return offset == kTpr || (delivers() && (offset == kEoi || offset == kIcrLow));
}

std::byte* VirtualApic::Access(VirtHost& host, const PageAccess& access) {
  constexpr std::uint32_t kRegisterBytes = 16, kWordBytes = 4;
  const std::uint32_t offset = access.offset, first = offset & ~(kRegisterBytes - 1);
  const bool write = access.kind == PageAccess::Kind::kWrite;
  const bool in_word = offset - first + std::max<std::uint32_t>(access.bytes, 1) <= kWordBytes;
  const bool virtualized = access.kind != PageAccess::Kind::kFetch && in_word &&
                           (write ? VirtualizesWrite(first) : VirtualizesRead(first));
  std::byte* const memory = virtualized ? host.Memory(page_, kPageBytes) : nullptr;
  if (memory == nullptr) return nullptr;
  if (write) {
    written_ = first;
    host.interrupts().asks_at_boundary = true;
    host.Wrote(page_);
  }
  return memory + offset;
}

// [intel/vol3] "Virtualizing MSR-Based APIC Accesses"
VirtUnit::MsrAnswer VirtualApic::ReadMsr(VirtHost& host, std::uint32_t index,
                                         std::uint64_t& value) const {
  if (!x2apic() || index - kFirstMsr >= kMsrs) return VirtUnit::MsrAnswer::kUnknown;
  const std::uint32_t offset = (index - kFirstMsr) << 4;
  if (!registers() && offset != kTpr) return VirtUnit::MsrAnswer::kUnknown;
  value = Read(host, offset) | std::uint64_t{Read(host, offset + 4)} << 32;
  return VirtUnit::MsrAnswer::kDone;
}

VirtUnit::MsrAnswer VirtualApic::WriteMsr(VirtHost& host, std::uint32_t index,
                                          std::uint64_t value) {
  if (!x2apic() || index - kFirstMsr >= kMsrs) return VirtUnit::MsrAnswer::kUnknown;
  const std::uint32_t offset = (index - kFirstMsr) << 4;
  const bool ours = offset == kTpr || (delivers() && (offset == kEoi || offset == kSelfIpi));
  if (!ours) return VirtUnit::MsrAnswer::kUnknown;
  if (value >> (offset == kEoi ? 0 : 8) != 0) return VirtUnit::MsrAnswer::kRefused;
  Write(host, offset, static_cast<std::uint32_t>(value));
  Write(host, offset + 4, 0);
  written_ = offset;
  host.interrupts().asks_at_boundary = true;
  return VirtUnit::MsrAnswer::kDone;
}

// -- what writes do. [intel/vol3] "APIC-Write Emulation"

std::optional<VirtualApic::Exit> VirtualApic::Emulate(VirtHost& host) {
  const std::optional<std::uint32_t> written = std::exchange(written_, std::nullopt);
  if (!written) {  // a load of CR8
    Write(host, kTpr, std::uint32_t{host.interrupts().virtual_tpr} << kPriorityShift);
    return VirtualizeTpr(host);
  }
  const std::uint32_t value = Read(host, *written);
  switch (*written) {
    case kTpr:
      Write(host, kTpr, value & 0xff);
      return VirtualizeTpr(host);
    case kEoi:
      if (!delivers()) break;
      Write(host, kEoi, 0);
      return VirtualizeEoi(host);
    case kIcrLow: {
      // Fixed, edge, to itself, with no reserved bit.
      constexpr std::uint32_t kJudged = 0xffff'b700, kSelf = 1u << 18;
      if (!delivers()) break;
      return VirtualizeSelfIpi(host, value & 0xff, (value & kJudged) == kSelf, kIcrLow);
    }
    case kSelfIpi:
      return VirtualizeSelfIpi(host, value & 0xff, true, kSelfIpi);
    case kIcrHigh:
      Write(host, kIcrHigh, value & 0xff00'0000);
      return std::nullopt;
    default:
      break;
  }
  return Exit{.reason = ExitReason::kApicWrite, .qualification = *written};
}

std::optional<VirtualApic::Exit> VirtualApic::VirtualizeTpr(VirtHost& host) {
  tpr_ = static_cast<std::uint8_t>(PriorityOf(Read(host, kTpr)));
  host.interrupts().virtual_tpr = tpr_;
  if (!delivers()) {
    if (tpr_ >= threshold_) return std::nullopt;
    return Exit{.reason = ExitReason::kTprBelowThreshold};
  }
  VirtualizePpr(host);
  Evaluate(host);
  return std::nullopt;
}

std::optional<VirtualApic::Exit> VirtualApic::VirtualizeEoi(VirtHost& host) {
  const std::uint8_t vector = serviced_;
  SetBit(host, kIsr, vector, false);
  serviced_ = Highest(host, kIsr);
  VirtualizePpr(host);
  Evaluate(host);
  if ((eoi_exits_[vector / 64] >> vector % 64 & 1) == 0) return std::nullopt;
  return Exit{.reason = ExitReason::kVirtualizedEoi, .qualification = vector};
}

std::optional<VirtualApic::Exit> VirtualApic::VirtualizeSelfIpi(VirtHost& host,
                                                                std::uint32_t vector, bool fits,
                                                                std::uint32_t offset) {
  if (!fits || PriorityOf(vector) == 0) {
    return Exit{.reason = ExitReason::kApicWrite, .qualification = offset};
  }
  Request(host, static_cast<std::uint8_t>(vector));
  Evaluate(host);
  return std::nullopt;
}

void VirtualApic::VirtualizePpr(VirtHost& host) {
  const std::uint32_t tpr = Read(host, kTpr) & 0xff;
  const bool by_task = PriorityOf(tpr) >= PriorityOf(serviced_);
  Write(host, kPpr, by_task ? tpr : serviced_ & 0xf0u);
}

// -- interrupts. [intel/vol3] "Evaluation and Delivery of Virtual Interrupts"

void VirtualApic::Evaluate(VirtHost& host) {
  constexpr std::uint8_t kAboveAll = 0xff;
  GuestInterrupts& interrupts = host.interrupts();
  interrupts.virtual_priority = kAboveAll;
  interrupts.virtual_pending = !controls_.HasPrimary(primary::kInterruptWindow) &&
                               PriorityOf(requested_) > PriorityOf(Read(host, kPpr));
}

std::uint8_t VirtualApic::TakeInterrupt(VirtHost& host) {
  const std::uint8_t vector = requested_;
  SetBit(host, kIsr, vector, true);
  serviced_ = vector;
  Write(host, kPpr, vector & 0xf0u);
  SetBit(host, kIrr, vector, false);
  requested_ = Highest(host, kIrr);
  host.interrupts().virtual_pending = false;
  return vector;
}

void VirtualApic::Request(VirtHost& host, std::uint8_t vector) {
  SetBit(host, kIrr, vector, true);
  requested_ = std::max(requested_, vector);
}

// [intel/vol3] "Posted-Interrupt Processing"
bool VirtualApic::TakePosted(VirtHost& host, std::uint32_t vector) {
  constexpr unsigned kDescriptorBytes = 64, kWords = 4, kWordBits = 64;
  if (vector != notification_) return false;
  std::byte* const memory = host.Memory(posted_, kDescriptorBytes);
  if (memory == nullptr) return true;
  auto* const words = reinterpret_cast<std::uint64_t*>(memory);
  std::atomic_ref(words[kWords]).fetch_and(~std::uint64_t{1});  // outstanding notification
  for (unsigned word = 0; word < kWords; ++word) {
    const std::uint64_t requests = std::atomic_ref(words[word]).exchange(0);
    for (unsigned bit = 0; bit < kWordBits; ++bit) {
      if ((requests >> bit & 1) != 0)
        Request(host, static_cast<std::uint8_t>(word * kWordBits + bit));
    }
  }
  host.Wrote(posted_);
  Evaluate(host);
  return true;
}

// -- the page, which other processors may be writing meanwhile

std::uint32_t VirtualApic::Read(VirtHost& host, std::uint32_t offset) const {
  std::uint32_t* const word = WordAt(host, page_, offset);
  return word == nullptr ? 0 : std::atomic_ref(*word).load(std::memory_order_relaxed);
}

void VirtualApic::Write(VirtHost& host, std::uint32_t offset, std::uint32_t value) {
  std::uint32_t* const word = WordAt(host, page_, offset);
  if (word == nullptr) return;
  std::atomic_ref(*word).store(value, std::memory_order_relaxed);
  host.Wrote(page_);
}

// 256 bits in the low words of eight registers.
void VirtualApic::SetBit(VirtHost& host, std::uint32_t base, std::uint8_t vector, bool set) {
  constexpr unsigned kWordBits = 32;
  std::uint32_t* const word = WordAt(host, page_, base + vector / kWordBits * 16);
  if (word == nullptr) return;
  const std::uint32_t bit = std::uint32_t{1} << vector % kWordBits;
  if (set) {
    std::atomic_ref(*word).fetch_or(bit);
  } else {
    std::atomic_ref(*word).fetch_and(~bit);
  }
  host.Wrote(page_);
}

std::uint8_t VirtualApic::Highest(VirtHost& host, std::uint32_t base) const {
  constexpr unsigned kWordBits = 32, kWords = 8;
  for (unsigned word = kWords; word-- > 0;) {
    const std::uint32_t bits = Read(host, base + word * 16);
    if (bits == 0) continue;
    return static_cast<std::uint8_t>(word * kWordBits + kWordBits - 1 -
                                     static_cast<unsigned>(std::countl_zero(bits)));
  }
  return 0;
}

}  // namespace pagesaw::vmx
