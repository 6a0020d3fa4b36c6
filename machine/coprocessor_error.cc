module;
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
module pagesaw.machine.coprocessor_error;

namespace pagesaw {
namespace {

constexpr std::array kRanges = {BusRange{BusSpace::kPort, 0xf0, 1}};

}  // namespace

bool CoprocessorError::Report(bool is_new) {
  const std::lock_guard lock(mutex_);
  if (is_new) ignored_ = false;
  error_ = true;
  if (!ignored_) lines_.SetIrq(kIrq, true);
  return ignored_;
}

std::span<const BusRange> CoprocessorError::ranges() const { return kRanges; }

std::uint64_t CoprocessorError::Read(BusSpace, std::uint64_t, unsigned) { return 0xff; }

void CoprocessorError::Write(BusSpace, std::uint64_t, unsigned, std::uint64_t) {
  const std::lock_guard lock(mutex_);
  ignored_ = error_;
  lines_.SetIrq(kIrq, false);
}

}  // namespace pagesaw
