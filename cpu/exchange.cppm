// Instructions that exchange with memory, and every instruction's LOCK form but the bit tests'.
module;
export module pagesaw.cpu.exchange;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
Selection SelectExchange(const Decoded& decoded, Op& op);
// ADD, OR, ADC, SBB, AND, SUB, XOR, INC, DEC, NOT and NEG if they have a LOCK prefix.
Selection SelectLocked(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
