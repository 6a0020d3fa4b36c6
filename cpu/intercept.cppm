// What instructions ask before they do what guest mode may not let them do.
module;
#include <cstddef>
#include <cstdint>
export module pagesaw.cpu.intercept;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Asks the unit, which wants to be asked, whether `event` leaves guest mode. True: `core.stop` says
// so.
bool AskUnit(Core& core, const InterceptedEvent& event);

// The same of an event that the instruction `op` is.
bool AskUnit(Core& core, const Op& op, InterceptedEvent event);

// Fills in what every instruction has: its length, and the memory operand if there is one.
void DescribeInstruction(const Core& core, const Op& op, InterceptedEvent& event);

// True if the instruction `op`, which has made the checks that come first, may not happen: guest
// mode is left instead. An instruction ends with `if (Leaves(...)) return false`.
inline bool Leaves(Core& core, const Op& op, const InterceptedEvent& event) {
  if (!core.guest.intercepts.Has(event.what)) [[likely]]
    return false;
  return AskUnit(core, op, event);
}
inline bool Leaves(Core& core, const Op& op, Intercept what) {
  return Leaves(core, op, InterceptedEvent{.what = what});
}

// Whether `host` lies in the page that the unit answers for.
inline bool IsApicPage(const Core& core, std::uint64_t host) {
  return core.guest.apic_page != 0 && (host & ~std::uint64_t{0xfff}) == core.guest.apic_page;
}
// Where an access to `linear`, which leads to that page, is made; null if it is not made now:
// `core.stop` says why. Instructions that make one run alone, for what comes of it to be seen
// behind them.
std::byte* AccessApicPage(Core& core, PageAccess::Kind kind, std::uint64_t linear, unsigned bytes);

// The event that `pending` is for those who enter and leave guest mode, and the other way round.
DeliveredEvent DeliveredOf(const Pending& pending);
Pending PendingOf(const DeliveredEvent& event);

}  // namespace pagesaw::cpu
