module;
#include <cstdint>
#include <optional>
module pagesaw.plugins.svm.intercepts;

import pagesaw.core.cpu_state;
import pagesaw.core.guest_structures;

namespace pagesaw::svm {
namespace {

// The words at 00Ch, 010h and 014h number their bits on; so do the exit codes from here.
constexpr std::uint64_t kFirstBitCode = 0x60;

struct Row {
  Intercept what;
  std::uint8_t bit;
};
constexpr Row kRows[] = {
    {Intercept::kInterrupt, 0},     {Intercept::kNmi, 1},
    {Intercept::kInit, 3},          {Intercept::kVirtualInterrupt, 4},
    {Intercept::kReadIdtr, 6},      {Intercept::kReadGdtr, 7},
    {Intercept::kReadLdtr, 8},      {Intercept::kReadTr, 9},
    {Intercept::kWriteIdtr, 10},    {Intercept::kWriteGdtr, 11},
    {Intercept::kWriteLdtr, 12},    {Intercept::kWriteTr, 13},
    {Intercept::kRdtsc, 14},        {Intercept::kRdpmc, 15},
    {Intercept::kPushf, 16},        {Intercept::kPopf, 17},
    {Intercept::kCpuid, 18},        {Intercept::kRsm, 19},
    {Intercept::kIret, 20},         {Intercept::kSoftwareInterrupt, 21},
    {Intercept::kInvd, 22},         {Intercept::kPause, 23},
    {Intercept::kHlt, 24},          {Intercept::kInvlpg, 25},
    {Intercept::kIo, 27},           {Intercept::kReadMsr, 28},
    {Intercept::kWriteMsr, 28},     {Intercept::kTaskSwitch, 29},
    {Intercept::kShutdown, 31},     {Intercept::kRdtscp, 32 + 7},
    {Intercept::kIcebp, 32 + 8},    {Intercept::kWbinvd, 32 + 9},
    {Intercept::kMonitor, 32 + 10}, {Intercept::kMwait, 32 + 11},
    {Intercept::kXsetbv, 32 + 13},  {Intercept::kInvpcid, 64 + 2},
};
constexpr std::uint8_t kSelectiveCr0Bit = 5;

struct InstructionRow {
  VirtInstruction instruction;
  std::uint8_t bit;
};
constexpr InstructionRow kInstructionRows[] = {
    {VirtInstruction::kInvlpga, 26},     {VirtInstruction::kVmrun, 32 + 0},
    {VirtInstruction::kVmmcall, 32 + 1}, {VirtInstruction::kVmload, 32 + 2},
    {VirtInstruction::kVmsave, 32 + 3},  {VirtInstruction::kStgi, 32 + 4},
    {VirtInstruction::kClgi, 32 + 5},    {VirtInstruction::kSkinit, 32 + 6},
};

constexpr std::optional<std::uint8_t> BitOf(Intercept what) {
  for (const Row& row : kRows) {
    if (row.what == what) return row.bit;
  }
  return std::nullopt;
}
constexpr std::optional<std::uint8_t> BitOf(VirtInstruction instruction) {
  for (const InstructionRow& row : kInstructionRows) {
    if (row.instruction == instruction) return row.bit;
  }
  return std::nullopt;
}

// CR0 bits whose change the selective intercept does not mind.
constexpr std::uint64_t kUnselected = 1u << 1 | 1u << 3;  // MP and TS

// Two bits for each MSR of three ranges, a page's half for each.
std::optional<std::uint32_t> MsrBit(std::uint32_t index) {
  constexpr std::uint32_t kRange = 0x2000;
  constexpr std::uint32_t kFirst[] = {0, 0xc000'0000, 0xc001'0000};
  for (std::uint32_t i = 0; i < 3; ++i) {
    if (index - kFirst[i] < kRange) return 2 * (i * kRange + (index - kFirst[i]));
  }
  return std::nullopt;
}

}  // namespace

Intercepts::Intercepts(const Vmcb& vmcb)
    : control_(vmcb.Get(field::kInterceptControl)),
      debug_(vmcb.Get(field::kInterceptDebug)),
      exceptions_(vmcb.Get(field::kInterceptExceptions)),
      words_{vmcb.Get(field::kIntercept3), vmcb.Get(field::kIntercept4),
             vmcb.Get(field::kIntercept5)},
      io_map_(vmcb.Get(field::kIoPermissions) & ~(kPageBytes - 1)),
      msr_map_(vmcb.Get(field::kMsrPermissions) & ~(kPageBytes - 1)) {}

bool Intercepts::uses_io_map() const { return Has(Intercept::kIo); }
bool Intercepts::uses_msr_map() const { return Has(Intercept::kReadMsr); }

bool Intercepts::Has(Intercept what) const {
  const std::optional<std::uint8_t> bit = BitOf(what);
  return bit && (words_[*bit / 32] >> (*bit % 32) & 1) != 0;
}

bool Intercepts::Has(VirtInstruction instruction) const {
  const std::optional<std::uint8_t> bit = BitOf(instruction);
  return bit && (words_[*bit / 32] >> (*bit % 32) & 1) != 0;
}

GuestEntry Intercepts::Entry() const {
  GuestEntry entry = {.intercepts = {}, .exceptions = exceptions_};
  for (const Row& row : kRows) entry.intercepts.AddIf(Has(row.what), row.what);
  const bool selective = (words_[0] >> kSelectiveCr0Bit & 1) != 0;
  const bool writes_cr0 = (control_ >> 16 & 1) != 0;
  entry.intercepts.AddIf((control_ & 0xffff) != 0, Intercept::kReadControl);
  entry.intercepts.AddIf((control_ & 1) != 0, Intercept::kSmsw);
  entry.intercepts.AddIf(selective || control_ >> 16 != 0, Intercept::kWriteControl);
  entry.intercepts.AddIf(selective || writes_cr0, Intercept::kLmsw);
  entry.intercepts.AddIf(writes_cr0, Intercept::kClts);
  entry.intercepts.AddIf((debug_ & 0xffff) != 0, Intercept::kReadDebug);
  entry.intercepts.AddIf(debug_ >> 16 != 0, Intercept::kWriteDebug);
  return entry;
}

std::optional<std::uint64_t> Intercepts::ControlWrite(VirtHost& host,
                                                      const InterceptedEvent& event) const {
  constexpr std::uint64_t kWriteCode = 0x10;
  const unsigned number = event.what == Intercept::kWriteControl ? event.number : 0;
  if ((control_ >> (16 + number) & 1) != 0) return kWriteCode + number;
  const bool selective = (words_[0] >> kSelectiveCr0Bit & 1) != 0;
  if (!selective || number != 0 || event.what == Intercept::kClts) return std::nullopt;
  const bool selected =
      event.what == Intercept::kLmsw || ((host.State().cr0 ^ event.value) & ~kUnselected) != 0;
  if (!selected) return std::nullopt;
  return kFirstBitCode + kSelectiveCr0Bit;
}

bool Intercepts::PortIntercepted(VirtHost& host, const PortAccess& io) const {
  for (unsigned i = 0; i < io.bytes; ++i) {
    if (BitmapBit(host, io_map_, std::uint64_t{io.port} + i)) return true;
  }
  return false;
}

bool Intercepts::MsrIntercepted(VirtHost& host, std::uint32_t index, bool write) const {
  const std::optional<std::uint32_t> bit = MsrBit(index);
  return !bit || BitmapBit(host, msr_map_, *bit + (write ? 1 : 0));
}

std::optional<std::uint64_t> Intercepts::ExitCodeOf(VirtHost& host,
                                                    const InterceptedEvent& event) const {
  constexpr std::uint64_t kReadDebugCode = 0x20, kWriteDebugCode = 0x30;
  const auto if_set = [](std::uint32_t bits, unsigned bit,
                         std::uint64_t code) -> std::optional<std::uint64_t> {
    if ((bits >> bit & 1) == 0) return std::nullopt;
    return code;
  };
  switch (event.what) {
    case Intercept::kException:
      return kExitException + event.number;
    case Intercept::kReadControl:
      return if_set(control_, event.number, event.number);
    case Intercept::kSmsw:
      return if_set(control_, 0, 0);
    case Intercept::kWriteControl:
    case Intercept::kLmsw:
    case Intercept::kClts:
      return ControlWrite(host, event);
    case Intercept::kReadDebug:
      return if_set(debug_, event.number, kReadDebugCode + event.number);
    case Intercept::kWriteDebug:
      return if_set(debug_, 16 + event.number, kWriteDebugCode + event.number);
    case Intercept::kInstruction:
      if (!Has(event.instruction)) return std::nullopt;
      return kFirstBitCode + *BitOf(event.instruction);
    default:
      break;
  }
  if (!Has(event.what)) return std::nullopt;
  if (event.what == Intercept::kIo && !PortIntercepted(host, event.io)) return std::nullopt;
  const bool write_msr = event.what == Intercept::kWriteMsr;
  if ((write_msr || event.what == Intercept::kReadMsr) &&
      !MsrIntercepted(host, event.number, write_msr)) {
    return std::nullopt;
  }
  return kFirstBitCode + *BitOf(event.what);
}

}  // namespace pagesaw::svm
