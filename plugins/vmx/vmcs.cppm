// The virtual-machine control structure: its fields by their encodings, and the layout that this
// processor gives them in memory. [intel/vol3] "Virtual Machine Control Structures", "Field
// Encoding in VMCS"
module;
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.vmcs;

import pagesaw.core.address;

export namespace pagesaw::vmx {

// Our layout. A change of it changes the number.
inline constexpr std::uint32_t kRevision = 0x5057'0002;
inline constexpr std::uint32_t kShadowIndicator = 1u << 31;
inline constexpr std::uint32_t kRegionBytes = 4096;

namespace detail {

// All fields that there are.
inline constexpr std::uint16_t kEncodings[] = {
    // 16 bits: control, guest, host.
    0x0000, 0x0002, 0x0004, 0x0800, 0x0802, 0x0804, 0x0806, 0x0808, 0x080a, 0x080c, 0x080e, 0x0810,
    0x0812, 0x0c00, 0x0c02, 0x0c04, 0x0c06, 0x0c08, 0x0c0a, 0x0c0c,
    // 64 bits: control, read-only, guest, host.
    0x2000, 0x2002, 0x2004, 0x2006, 0x2008, 0x200a, 0x200c, 0x200e, 0x2010, 0x2012, 0x2014, 0x2016,
    0x2018, 0x201a, 0x201c, 0x201e, 0x2020, 0x2022, 0x2024, 0x202a, 0x2026, 0x2028, 0x202c, 0x2032,
    0x2400, 0x2800, 0x2802, 0x2804, 0x2806, 0x280a, 0x280c, 0x280e, 0x2810, 0x2c00, 0x2c02,
    // 32 bits.
    0x4000, 0x4002, 0x4004, 0x4006, 0x4008, 0x400a, 0x400c, 0x400e, 0x4010, 0x4012, 0x4014, 0x4016,
    0x4018, 0x401a, 0x401c, 0x401e, 0x4020, 0x4022, 0x4400, 0x4402, 0x4404, 0x4406, 0x4408, 0x440a,
    0x440c, 0x440e, 0x4800, 0x4802, 0x4804, 0x4806, 0x4808, 0x480a, 0x480c, 0x480e, 0x4810, 0x4812,
    0x4814, 0x4816, 0x4818, 0x481a, 0x481c, 0x481e, 0x4820, 0x4822, 0x4824, 0x4826, 0x4828, 0x482a,
    0x482e, 0x4c00,
    // Natural width.
    0x6000, 0x6002, 0x6004, 0x6006, 0x6008, 0x600a, 0x600c, 0x600e, 0x6400, 0x6402, 0x6404, 0x6406,
    0x6408, 0x640a, 0x6800, 0x6802, 0x6804, 0x6806, 0x6808, 0x680a, 0x680c, 0x680e, 0x6810, 0x6812,
    0x6814, 0x6816, 0x6818, 0x681a, 0x681c, 0x681e, 0x6820, 0x6822, 0x6824, 0x6826, 0x6828, 0x682a,
    0x682c, 0x6c00, 0x6c02, 0x6c04, 0x6c06, 0x6c08, 0x6c0a, 0x6c0c, 0x6c0e, 0x6c10, 0x6c12, 0x6c14,
    0x6c16, 0x6c18, 0x6c1a, 0x6c1c};

}  // namespace detail

// A field that there is.
class Field {
 public:
  consteval Field(std::uint16_t encoding) : encoding_(encoding), slot_(SlotOf(encoding)) {}

  // The field of `encoding` without its access type, if there is one.
  static std::optional<Field> Find(std::uint64_t encoding);
  // The highest index that an encoding has, where it stands in one. [intel/vol3] "VMCS Enumeration"
  static std::uint64_t HighestIndex();

  constexpr std::uint16_t encoding() const { return encoding_; }
  constexpr unsigned slot() const { return slot_; }
  constexpr bool is_64_bit() const { return (encoding_ >> 13 & 3) == 1; }
  constexpr bool is_read_only() const { return (encoding_ >> 10 & 3) == 1; }
  // The bits of its value.
  constexpr std::uint64_t mask() const {
    constexpr std::uint64_t kAll = ~std::uint64_t{0};
    constexpr std::array<std::uint64_t, 4> kMasks = {0xffff, kAll, 0xffff'ffff, kAll};
    return kMasks[encoding_ >> 13 & 3];
  }

 private:
  constexpr Field(std::uint16_t encoding, std::uint8_t slot) : encoding_(encoding), slot_(slot) {}
  static consteval std::uint8_t SlotOf(std::uint16_t encoding) {
    std::uint8_t slot = 0;
    while (detail::kEncodings[slot] != encoding) ++slot;
    return slot;
  }

  std::uint16_t encoding_;
  std::uint8_t slot_;
};

namespace field {
inline constexpr Field kVpid{0x0000};
inline constexpr Field kNotificationVector{0x0002};
inline constexpr Field kEptPointerIndex{0x0004};
inline constexpr Field kInterruptStatus{0x0810};
inline constexpr Field kLogIndex{0x0812};
inline constexpr Field kHostEs{0x0c00};
inline constexpr Field kHostCs{0x0c02};
inline constexpr Field kHostSs{0x0c04};
inline constexpr Field kHostDs{0x0c06};
inline constexpr Field kHostFs{0x0c08};
inline constexpr Field kHostGs{0x0c0a};
inline constexpr Field kHostTr{0x0c0c};
inline constexpr Field kIoBitmapA{0x2000};
inline constexpr Field kIoBitmapB{0x2002};
inline constexpr Field kMsrBitmap{0x2004};
inline constexpr Field kExitMsrStore{0x2006};
inline constexpr Field kExitMsrLoad{0x2008};
inline constexpr Field kEntryMsrLoad{0x200a};
inline constexpr Field kLogAddress{0x200e};
inline constexpr Field kTscOffset{0x2010};
inline constexpr Field kVirtualApic{0x2012};
inline constexpr Field kApicAccess{0x2014};
inline constexpr Field kPostedDescriptor{0x2016};
inline constexpr Field kVmFunctionControls{0x2018};
inline constexpr Field kEptPointer{0x201a};
inline constexpr std::array kEoiExits = {Field{0x201c}, Field{0x201e}, Field{0x2020},
                                         Field{0x2022}};
inline constexpr Field kEptPointerList{0x2024};
inline constexpr Field kViolationInformation{0x202a};
inline constexpr Field kVmreadBitmap{0x2026};
inline constexpr Field kVmwriteBitmap{0x2028};
inline constexpr Field kXssBitmap{0x202c};
inline constexpr Field kTscMultiplier{0x2032};
inline constexpr Field kGuestPhysical{0x2400};
inline constexpr Field kLinkPointer{0x2800};
inline constexpr Field kGuestDebugctl{0x2802};
inline constexpr Field kGuestPat{0x2804};
inline constexpr Field kGuestEfer{0x2806};
inline constexpr std::array kGuestPdptes = {Field{0x280a}, Field{0x280c}, Field{0x280e},
                                            Field{0x2810}};
inline constexpr Field kHostPat{0x2c00};
inline constexpr Field kHostEfer{0x2c02};
inline constexpr Field kPinControls{0x4000};
inline constexpr Field kPrimaryControls{0x4002};
inline constexpr Field kExceptionBitmap{0x4004};
inline constexpr Field kPageFaultMask{0x4006};
inline constexpr Field kPageFaultMatch{0x4008};
inline constexpr Field kCr3TargetCount{0x400a};
inline constexpr Field kExitControls{0x400c};
inline constexpr Field kExitMsrStoreCount{0x400e};
inline constexpr Field kExitMsrLoadCount{0x4010};
inline constexpr Field kEntryControls{0x4012};
inline constexpr Field kEntryMsrLoadCount{0x4014};
inline constexpr Field kEntryInterruption{0x4016};
inline constexpr Field kEntryErrorCode{0x4018};
inline constexpr Field kEntryInstructionLength{0x401a};
inline constexpr Field kTprThreshold{0x401c};
inline constexpr Field kSecondaryControls{0x401e};
inline constexpr Field kPauseGap{0x4020};
inline constexpr Field kPauseWindow{0x4022};
inline constexpr Field kInstructionError{0x4400};
inline constexpr Field kExitReason{0x4402};
inline constexpr Field kExitInterruption{0x4404};
inline constexpr Field kExitErrorCode{0x4406};
inline constexpr Field kIdtVectoring{0x4408};
inline constexpr Field kIdtVectoringErrorCode{0x440a};
inline constexpr Field kInstructionLength{0x440c};
inline constexpr Field kInstructionInformation{0x440e};
inline constexpr Field kGuestGdtrLimit{0x4810};
inline constexpr Field kGuestIdtrLimit{0x4812};
inline constexpr Field kInterruptibility{0x4824};
inline constexpr Field kActivity{0x4826};
inline constexpr Field kGuestSysenterCs{0x482a};
inline constexpr Field kPreemptionTimer{0x482e};
inline constexpr Field kHostSysenterCs{0x4c00};
inline constexpr Field kCr0Mask{0x6000};
inline constexpr Field kCr4Mask{0x6002};
inline constexpr Field kCr0Shadow{0x6004};
inline constexpr Field kCr4Shadow{0x6006};
inline constexpr std::array kCr3Targets = {Field{0x6008}, Field{0x600a}, Field{0x600c},
                                           Field{0x600e}};
inline constexpr Field kQualification{0x6400};
inline constexpr Field kIoRcx{0x6402};
inline constexpr Field kIoRsi{0x6404};
inline constexpr Field kIoRdi{0x6406};
inline constexpr Field kIoRip{0x6408};
inline constexpr Field kGuestLinear{0x640a};
inline constexpr Field kGuestCr0{0x6800};
inline constexpr Field kGuestCr3{0x6802};
inline constexpr Field kGuestCr4{0x6804};
inline constexpr Field kGuestGdtrBase{0x6816};
inline constexpr Field kGuestIdtrBase{0x6818};
inline constexpr Field kGuestDr7{0x681a};
inline constexpr Field kGuestRsp{0x681c};
inline constexpr Field kGuestRip{0x681e};
inline constexpr Field kGuestRflags{0x6820};
inline constexpr Field kGuestPendingDebug{0x6822};
inline constexpr Field kGuestSysenterEsp{0x6824};
inline constexpr Field kGuestSysenterEip{0x6826};
inline constexpr Field kGuestSupervisorCet{0x6828};
inline constexpr Field kGuestSsp{0x682a};
inline constexpr Field kGuestInterruptSspTable{0x682c};
inline constexpr Field kHostCr0{0x6c00};
inline constexpr Field kHostCr3{0x6c02};
inline constexpr Field kHostCr4{0x6c04};
inline constexpr Field kHostFsBase{0x6c06};
inline constexpr Field kHostGsBase{0x6c08};
inline constexpr Field kHostTrBase{0x6c0a};
inline constexpr Field kHostGdtrBase{0x6c0c};
inline constexpr Field kHostIdtrBase{0x6c0e};
inline constexpr Field kHostSysenterEsp{0x6c10};
inline constexpr Field kHostSysenterEip{0x6c12};
inline constexpr Field kHostRsp{0x6c14};
inline constexpr Field kHostRip{0x6c16};
inline constexpr Field kHostSupervisorCet{0x6c18};
inline constexpr Field kHostSsp{0x6c1a};
inline constexpr Field kHostInterruptSspTable{0x6c1c};
}  // namespace field

// The four fields of a guest's segment register, in the order of SegmentName.
struct SegmentFields {
  Field selector, limit, access, base;
};
inline constexpr SegmentFields kGuestSegments[] = {
    {0x0800, 0x4800, 0x4814, 0x6806}, {0x0802, 0x4802, 0x4816, 0x6808},
    {0x0804, 0x4804, 0x4818, 0x680a}, {0x0806, 0x4806, 0x481a, 0x680c},
    {0x0808, 0x4808, 0x481c, 0x680e}, {0x080a, 0x480a, 0x481e, 0x6810},
    {0x080c, 0x480c, 0x4820, 0x6812}, {0x080e, 0x480e, 0x4822, 0x6814}};

// A VMCS in guest memory, which other processors may be writing meanwhile.
class Vmcs {
 public:
  // Null: there is no memory. Reads as ones, and takes no writes.
  inline explicit Vmcs(std::byte* page = nullptr) : page_(page) {}

  inline explicit operator bool() const { return page_ != nullptr; }

  inline std::uint64_t Get(Field field) const { return Load(AtSlot(field)) & field.mask(); }
  inline std::uint32_t Get32(Field field) const { return static_cast<std::uint32_t>(Get(field)); }
  // The address `offset` bytes into the page at the address in `field`, and the MSR list there.
  // They are aligned, although the field may have been overwritten behind the checks of VM entry.
  inline Gpa Page(Field field, std::uint64_t offset = 0) const {
    return Gpa((Get(field) & ~(kPageBytes - 1)) + offset);
  }
  inline Gpa MsrList(Field field) const { return Gpa(Get(field) & ~std::uint64_t{15}); }
  inline void Set(Field field, std::uint64_t value) { Store(AtSlot(field), value & field.mask()); }

  // The revision identifier without the bit that says that this is a shadow VMCS, and that bit.
  std::uint32_t revision() const { return static_cast<std::uint32_t>(Load(0)) & ~kShadowIndicator; }
  bool is_shadow() const { return (Load(0) & kShadowIndicator) != 0; }
  bool launched() const { return Load(kLaunchState) == kLaunched; }
  void set_launched(bool launched) { Store(kLaunchState, launched ? kLaunched : 0); }

 private:
  static constexpr unsigned kLaunchState = 8, kFirstSlot = 64;  // offsets
  static constexpr std::uint64_t kLaunched = 0x6465'6863'6e75'616c;
  static_assert(kFirstSlot + 8 * std::size(detail::kEncodings) <= kRegionBytes);

  static constexpr unsigned AtSlot(Field field) { return kFirstSlot + 8 * field.slot(); }
  inline std::uint64_t Load(unsigned offset) const {
    return page_ == nullptr ? ~std::uint64_t{0}
                            : std::atomic_ref(*At(offset)).load(std::memory_order_relaxed);
  }
  inline void Store(unsigned offset, std::uint64_t value) {
    if (page_ != nullptr) std::atomic_ref(*At(offset)).store(value, std::memory_order_relaxed);
  }
  inline std::uint64_t* At(unsigned offset) const {
    return reinterpret_cast<std::uint64_t*>(page_ + offset);
  }

  std::byte* page_;
};

}  // namespace pagesaw::vmx
