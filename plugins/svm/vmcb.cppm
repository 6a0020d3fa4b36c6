// The virtual machine control block: where its fields are, and what they say of registers.
// [amd/vol2] "Layout of VMCB"
module;
#include <atomic>
#include <cstddef>
#include <cstdint>
export module pagesaw.plugins.svm.vmcb;

import pagesaw.core.cpu_state;

export namespace pagesaw::svm {

// A field of T at a byte offset.
template <class T>
struct Field {
  std::uint16_t offset;
};

namespace field {
// The control area.
inline constexpr Field<std::uint32_t> kInterceptControl{0x000};  // reads 15:0, writes 31:16
inline constexpr Field<std::uint32_t> kInterceptDebug{0x004};    // likewise
inline constexpr Field<std::uint32_t> kInterceptExceptions{0x008};
inline constexpr Field<std::uint32_t> kIntercept3{0x00c};
inline constexpr Field<std::uint32_t> kIntercept4{0x010};
inline constexpr Field<std::uint32_t> kIntercept5{0x014};
inline constexpr Field<std::uint16_t> kPauseFilterThreshold{0x03c};
inline constexpr Field<std::uint16_t> kPauseFilterCount{0x03e};
inline constexpr Field<std::uint64_t> kIoPermissions{0x040};
inline constexpr Field<std::uint64_t> kMsrPermissions{0x048};
inline constexpr Field<std::uint64_t> kTscOffset{0x050};
inline constexpr Field<std::uint32_t> kAsid{0x058};
inline constexpr Field<std::uint8_t> kTlbControl{0x05c};
inline constexpr Field<std::uint32_t> kVirtualInterrupt{0x060};
inline constexpr Field<std::uint32_t> kVirtualVector{0x064};
inline constexpr Field<std::uint64_t> kInterruptState{0x068};
inline constexpr Field<std::uint64_t> kExitCode{0x070};
inline constexpr Field<std::uint64_t> kExitInfo1{0x078};
inline constexpr Field<std::uint64_t> kExitInfo2{0x080};
inline constexpr Field<std::uint64_t> kExitInterrupt{0x088};
inline constexpr Field<std::uint64_t> kNestedControl{0x090};
inline constexpr Field<std::uint64_t> kEventInjection{0x0a8};
inline constexpr Field<std::uint64_t> kNestedCr3{0x0b0};
inline constexpr Field<std::uint64_t> kVirtualExtensions{0x0b8};
inline constexpr Field<std::uint64_t> kNextRip{0x0c8};
inline constexpr Field<std::uint8_t> kCodeCount{0x0d0};  // of the bytes behind it
// The state-save area.
inline constexpr Field<std::uint8_t> kCpl{0x4cb};
inline constexpr Field<std::uint64_t> kEfer{0x4d0};
inline constexpr Field<std::uint64_t> kCr4{0x548};
inline constexpr Field<std::uint64_t> kCr3{0x550};
inline constexpr Field<std::uint64_t> kCr0{0x558};
inline constexpr Field<std::uint64_t> kDr7{0x560};
inline constexpr Field<std::uint64_t> kDr6{0x568};
inline constexpr Field<std::uint64_t> kRflags{0x570};
inline constexpr Field<std::uint64_t> kRip{0x578};
inline constexpr Field<std::uint64_t> kRsp{0x5d8};
inline constexpr Field<std::uint64_t> kSupervisorCet{0x5e0};
inline constexpr Field<std::uint64_t> kSsp{0x5e8};
inline constexpr Field<std::uint64_t> kInterruptSspTable{0x5f0};
inline constexpr Field<std::uint64_t> kRax{0x5f8};
inline constexpr Field<std::uint64_t> kStar{0x600};
inline constexpr Field<std::uint64_t> kLstar{0x608};
inline constexpr Field<std::uint64_t> kCstar{0x610};
inline constexpr Field<std::uint64_t> kSfmask{0x618};
inline constexpr Field<std::uint64_t> kKernelGsBase{0x620};
inline constexpr Field<std::uint64_t> kSysenterCs{0x628};
inline constexpr Field<std::uint64_t> kSysenterEsp{0x630};
inline constexpr Field<std::uint64_t> kSysenterEip{0x638};
inline constexpr Field<std::uint64_t> kCr2{0x640};
inline constexpr Field<std::uint64_t> kGuestPat{0x668};
inline constexpr Field<std::uint64_t> kDebugctl{0x670};
inline constexpr Field<std::uint64_t> kBranchFrom{0x678};
inline constexpr Field<std::uint64_t> kBranchTo{0x680};
inline constexpr Field<std::uint64_t> kExceptionFrom{0x688};
inline constexpr Field<std::uint64_t> kExceptionTo{0x690};
}  // namespace field

inline constexpr std::size_t kCodeBytes = 15;

// Where the state-save area has segments.
enum class SegmentField : std::uint16_t {
  kEs = 0x400,
  kCs = 0x410,
  kSs = 0x420,
  kDs = 0x430,
  kFs = 0x440,
  kGs = 0x450,
  kGdtr = 0x460,
  kLdtr = 0x470,
  kIdtr = 0x480,
  kTr = 0x490,
};

// A control block in guest memory, which other processors may be writing meanwhile.
class Vmcb {
 public:
  explicit Vmcb(std::byte* page) : page_(page) {}

  template <class T>
  T Get(Field<T> field) const {
    return std::atomic_ref(*At<T>(field.offset)).load(std::memory_order_relaxed);
  }
  template <class T>
  void Set(Field<T> field, std::uint64_t value) {
    std::atomic_ref(*At<T>(field.offset)).store(static_cast<T>(value), std::memory_order_relaxed);
  }

  // The code that an exit tells: `count` bytes, no more than kCodeBytes.
  void SetCode(const std::byte* code, std::size_t count);

  Segment GetSegment(SegmentField field) const;
  void SetSegment(SegmentField field, const Segment& segment);
  DescriptorTable GetTable(SegmentField field) const;
  void SetTable(SegmentField field, const DescriptorTable& table);

 private:
  template <class T>
  T* At(unsigned offset) const {
    return reinterpret_cast<T*>(page_ + offset);
  }

  std::byte* page_;
};

}  // namespace pagesaw::svm
