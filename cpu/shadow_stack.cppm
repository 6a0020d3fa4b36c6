// Shadow stacks: the second stack, of return addresses alone, that transfers of control keep.
// [intel/vol1] "Shadow Stacks"; [amd/vol2] "Shadow Stacks"
module;
#include <cstdint>
export module pagesaw.cpu.shadow_stack;

export import pagesaw.cpu.memory;

export namespace pagesaw::cpu {

// Error codes of #CP. [intel/vol3] "Control Protection Exception (#CP)"
enum class ControlProtection : std::uint8_t {
  kNearReturn = 1,
  kFarReturn = 2,
  kEndBranch = 3,
  kRestore = 4,
  kSetBusy = 5,
};

bool RaiseControlProtection(Core& core, ControlProtection cause);

// `address` as wide as addresses of shadow stacks are where code is 64-bit or not. #GP(0) if it is
// not canonical.
bool ShadowStackAddress(Core& core, bool wide, std::uint64_t& address);

// Loads and stores in a shadow stack of privilege level `level`, which belongs to 64-bit code if
// `wide`. The address is a linear one.
template <class T>
inline bool LoadShadow(Core& core, unsigned level, bool wide, std::uint64_t address, T& value) {
  const By by = level == 3 ? By::kUserShadowStack : By::kSupervisorShadowStack;
  return ShadowStackAddress(core, wide, address) && LoadSlow(core, address, &value, sizeof(T), by);
}
template <class T>
inline bool StoreShadow(Core& core, unsigned level, bool wide, std::uint64_t address, T value) {
  const By by = level == 3 ? By::kUserShadowStack : By::kSupervisorShadowStack;
  return ShadowStackAddress(core, wide, address) && StoreSlow(core, address, &value, sizeof(T), by);
}
// Atomically stores `desired` at `address`, aligned to 8, if `expected` is there; `equal` says so.
bool ExchangeShadow(Core& core, unsigned level, std::uint64_t address, std::uint64_t expected,
                    std::uint64_t desired, bool& equal);

// What a far transfer does to the shadow stacks, found out before any register changes.
struct ShadowSwitch {
  std::uint64_t ssp = 0;
  std::uint64_t user_ssp = 0;
  bool sets_ssp = false;
  bool sets_user_ssp = false;  // IA32_PL3_SSP

  void Commit(Core& core) const;
};

// A far CALL, or the delivery of an event.
struct ShadowCall {
  unsigned level = 0;  // the new CPL
  bool wide = false;   // the new code is 64-bit
  bool event = false;  // not a CALL
  unsigned ist = 0;    // of the gate, or 0
  std::uint64_t return_rip = 0;
};
// Makes the pushes and takes the token. False: it faults, and no register has changed.
bool PrepareShadowCall(Core& core, const ShadowCall& call, ShadowSwitch& result);

// A far RET or IRET.
struct ShadowReturn {
  unsigned level = 0;
  bool wide = false;
  bool event = false;  // IRET
  std::uint16_t selector = 0;
  std::uint64_t linear = 0;  // of the instruction returned to
};
bool PrepareShadowReturn(Core& core, const ShadowReturn& to, ShadowSwitch& result);

// What SYSCALL and SYSENTER do, and SYSRET and SYSEXIT, after the CPL has changed. `kept`: a shadow
// stack was in use before.
void EnterShadowStack(Core& core, bool kept);
void LeaveShadowStack(Core& core);

// Where `rip` is in code segment `cs`, which is 64-bit or not; in the current one.
std::uint64_t LinearIn(const Segment& cs, bool wide, std::uint64_t rip);
std::uint64_t LinearIp(const Core& core, std::uint64_t rip);

// Takes and gives back the token of a supervisor's shadow stack, at `ssp`. A token that is not as
// it should be is `refused`; one that is not given back is none.
bool AcquireToken(Core& core, std::uint64_t ssp, bool& refused);
bool ReleaseToken(Core& core, std::uint64_t ssp);

bool Incssp(Core& core, const Op& op);
bool Rdssp(Core& core, const Op& op);
bool SavePrevSsp(Core& core, const Op& op);
bool RestoreSsp(Core& core, const Op& op);
bool WriteShadowStack(Core& core, const Op& op);
bool WriteUserShadowStack(Core& core, const Op& op);
bool SetSsBusy(Core& core, const Op& op);
bool ClearSsBusy(Core& core, const Op& op);

}  // namespace pagesaw::cpu
