module;
#include <array>
#include <cstdint>
module pagesaw.machine.hypercalls;

namespace pagesaw {
namespace {

constexpr std::uint64_t kEferLongActive = 1u << 10;

// No local APIC has a higher ID; 255 is everybody.
constexpr std::uint64_t kMaxApicId = 254;

std::uint64_t SendIpi(const Hypercall& call, const ApicBus& bus) {
  const auto [low, high, first, command] = call.arguments;
  const auto vector = static_cast<std::uint8_t>(command);
  const auto mode = static_cast<DeliveryMode>(command >> 8 & 7);
  if ((command & ~std::uint64_t{0x7ff}) != 0) return kHypercallInvalid;
  if (mode != DeliveryMode::kNmi && mode != DeliveryMode::kFixed) return kHypercallInvalid;
  const unsigned width = call.wide ? 64 : 32;
  std::uint64_t reached = 0;
  for (unsigned bit = 0; bit < 2 * width; ++bit) {
    const std::uint64_t map = bit < width ? low : high;
    if ((map >> bit % width & 1) == 0) continue;
    if (first > kMaxApicId || first + bit > kMaxApicId) break;
    reached += bus.Send({.mode = mode,
                         .vector = vector,
                         .destination = static_cast<std::uint32_t>(first + bit),
                         .wide = true},
                        nullptr);
  }
  return reached;
}

}  // namespace

Hypercall HypercallOf(const CpuState& state) {
  Hypercall call;
  call.wide = (state.efer & kEferLongActive) != 0 && state.segments[kCs].long_mode();
  const std::uint64_t mask = call.wide ? ~std::uint64_t{0} : 0xffff'ffff;
  call.number = state.gpr[kRax] & mask;
  call.arguments = {state.gpr[kRbx] & mask, state.gpr[kRcx] & mask, state.gpr[kRdx] & mask,
                    state.gpr[kRsi] & mask};
  return call;
}

std::uint64_t AnswerHypercall(const Hypercall& call, const ApicBus& bus) {
  return call.number == kHypercallSendIpi ? SendIpi(call, bus) : kHypercallUnknown;
}

}  // namespace pagesaw
