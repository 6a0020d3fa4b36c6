// The registers of a local APIC by their offset in its page; as MSRs they are 800h + offset / 16.
// [intel/vol3] "Local APIC Register Address Map"
module;
#include <cstdint>
export module pagesaw.machine.apic_registers;

export namespace pagesaw::apic {

inline constexpr std::uint32_t kId = 0x020, kVersion = 0x030, kTpr = 0x080, kArbitration = 0x090,
                               kPpr = 0x0a0, kEoi = 0x0b0, kRemoteRead = 0x0c0, kLdr = 0x0d0,
                               kDfr = 0x0e0, kSpurious = 0x0f0, kIsr = 0x100, kTmr = 0x180,
                               kIrr = 0x200, kEsr = 0x280, kIcrLow = 0x300, kIcrHigh = 0x310,
                               kLvtTimer = 0x320, kLvtThermal = 0x330, kLvtPerformance = 0x340,
                               kLvtLint0 = 0x350, kLvtLint1 = 0x360, kLvtError = 0x370,
                               kInitialCount = 0x380, kCurrentCount = 0x390, kDivide = 0x3e0,
                               kSelfIpi = 0x3f0;

inline constexpr std::uint32_t kX2apicFirstMsr = 0x800;
inline constexpr std::uint32_t kX2apicMsrCount = 0x100;

// IA32_APIC_BASE. [intel/vol3] "Local APIC Status and Location"
inline constexpr std::uint64_t kBaseBootstrap = 1u << 8;
inline constexpr std::uint64_t kBaseX2apic = 1u << 10;
inline constexpr std::uint64_t kBaseEnable = 1u << 11;
inline constexpr std::uint64_t kBaseDefault = 0xfee0'0000;

inline constexpr std::uint32_t kSpuriousEnable = 1u << 8;
// [intel/vol3] "Signaling Interrupt Servicing Completion": EOIs are not broadcast.
inline constexpr std::uint32_t kSpuriousNoBroadcast = 1u << 12;

inline constexpr std::uint32_t kLvtLevelTriggered = 1u << 15;
inline constexpr std::uint32_t kLvtMasked = 1u << 16;
inline constexpr std::uint32_t kLvtTimerPeriodic = 1u << 17;
inline constexpr std::uint32_t kLvtTimerTscDeadline = 2u << 17;
inline constexpr std::uint32_t kLvtTimerMode = 3u << 17;

inline constexpr std::uint32_t kEsrSendIllegalVector = 1u << 5;
inline constexpr std::uint32_t kEsrReceiveIllegalVector = 1u << 6;
inline constexpr std::uint32_t kEsrIllegalRegister = 1u << 7;

inline constexpr std::uint32_t kIcrLevelAssert = 1u << 14;
inline constexpr std::uint32_t kIcrTriggerLevel = 1u << 15;

// 256 bits by vector: IRR, ISR or TMR.
class VectorSet {
 public:
  constexpr void Set(std::uint8_t vector) { words_[vector / 32] |= 1u << (vector % 32); }
  constexpr void Clear(std::uint8_t vector) { words_[vector / 32] &= ~(1u << (vector % 32)); }
  constexpr bool Has(std::uint8_t vector) const {
    return (words_[vector / 32] >> (vector % 32) & 1) != 0;
  }
  constexpr std::uint32_t word(unsigned index) const { return words_[index]; }
  // The highest vector in the set, or -1.
  constexpr int Highest() const {
    for (int i = 7; i >= 0; --i) {
      if (words_[i] != 0) return i * 32 + 31 - __builtin_clz(words_[i]);
    }
    return -1;
  }

 private:
  std::uint32_t words_[8] = {};
};

}  // namespace pagesaw::apic
