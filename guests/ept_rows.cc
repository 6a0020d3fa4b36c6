// A hypervisor for Intel processors in miniature: runs a guest of a few instructions on extended
// page tables, with every combination of rights at every level and every kind of access, with every
// reserved bit, and checks exit reason, qualification and addresses of each, and A and D. Prints
// the table of rights as it is found, and a line for all else. Exits with status 1 if all went
// well, 3 if not.
//
// Physical memory as in support/vmx.h, and in MiB: the image at 1, the log at 8, the probed page at
// 32. The guest sees that page at 512 GiB + 32 MiB, and with 5 levels at 256 TiB + 32 MiB. Needs
// 48 MiB.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/traps.h"
#include "guests/support/vmx.h"

namespace guest {
namespace {

constexpr uint64_t kLog = kVmxFree;
constexpr uint64_t kProbed = 32 * kMiB;                           // to the hypervisor
constexpr uint64_t kProbedGpa = (uint64_t{512} << 30) + kProbed;  // to the guest
constexpr uint64_t kFarGpa = (uint64_t{1} << 48) + kProbed;       // where 5 levels are needed
constexpr uint64_t kLinear = uint64_t{1} << 30;                   // where the guest maps it

// Bits of the exit qualification.
constexpr uint64_t kQRead = 1;
constexpr uint64_t kQLinear = 1u << 7, kQFinal = 1u << 8;
constexpr uint64_t kQUser = 1u << 9, kQWritable = 1u << 10, kQNoExecute = 1u << 11;
constexpr uint64_t kFinal = kQLinear | kQFinal;

PageTables* own;
bool split = false;  // mode-based execute control is on
bool wrong = false;

void Check(const char* name, bool ok) {
  Print(Padded{name, 48}, ok ? "ok\n" : "WRONG\n");
  wrong = wrong || !ok;
}

uint64_t Qualification() { return VmRead(kExitQualification); }

// An entry that is another while this lives.
class Changed {
 public:
  Changed(uint64_t& entry, uint64_t value) : entry_(entry), was_(entry) { entry_ = value; }
  ~Changed() { entry_ = was_; }
  uint64_t was() const { return was_; }

 private:
  uint64_t& entry_;
  const uint64_t was_;
};

// Whether the exit was a violation with this qualification, of the final address `gpa` that the
// guest names `linear`. `guest`: what the guest's tables say, bits 11:9.
bool ViolatedAt(uint64_t reason, uint64_t qualification, uint64_t gpa, uint64_t linear,
                uint64_t guest = kQWritable) {
  return reason == kExitViolation && Qualification() == (qualification | kFinal | guest) &&
         VmRead(kGuestPhysical) == gpa && VmRead(kGuestLinear) == linear;
}

// -- rights

constexpr uint64_t kOk = ~uint64_t{0}, kBad = ~uint64_t{1};

// What read, write, a fetch from a supervisor's page and one from a user's meet: kOk, kBad (a
// misconfiguration), or bits 6:0 of the qualification. Where execution is split, and where it is
// not. [intel/vol3] "EPT Misconfigurations", "Exit Qualification for EPT Violations"
struct RightsRow {
  const char* name;
  uint64_t rights;
  uint64_t met[4];
};
constexpr RightsRow kSplitRows[] = {
    {"----", 0x000, {0x01, 0x02, 0x04, 0x04}}, {"r---", 0x001, {kOk, 0x0a, 0x0c, 0x0c}},
    {"-w--", 0x002, {kBad, kBad, kBad, kBad}}, {"rw--", 0x003, {kOk, kOk, 0x1c, 0x1c}},
    {"--s-", 0x004, {0x21, 0x22, kOk, 0x24}},  {"r-s-", 0x005, {kOk, 0x2a, kOk, 0x2c}},
    {"-ws-", 0x006, {kBad, kBad, kBad, kBad}}, {"rws-", 0x007, {kOk, kOk, kOk, 0x3c}},
    {"---u", 0x400, {0x41, 0x42, 0x44, kOk}},  {"r--u", 0x401, {kOk, 0x4a, 0x4c, kOk}},
    {"-w-u", 0x402, {kBad, kBad, kBad, kBad}}, {"rw-u", 0x403, {kOk, kOk, 0x5c, kOk}},
    {"--su", 0x404, {0x61, 0x62, kOk, kOk}},   {"r-su", 0x405, {kOk, 0x6a, kOk, kOk}},
    {"-wsu", 0x406, {kBad, kBad, kBad, kBad}}, {"rwsu", 0x407, {kOk, kOk, kOk, kOk}},
};
constexpr RightsRow kWholeRows[] = {
    {"---", 0, {0x01, 0x02, 0x04, 0x04}}, {"r--", 1, {kOk, 0x0a, 0x0c, 0x0c}},
    {"-w-", 2, {kBad, kBad, kBad, kBad}}, {"rw-", 3, {kOk, kOk, 0x1c, 0x1c}},
    {"--x", 4, {0x21, 0x22, kOk, kOk}},   {"r-x", 5, {kOk, 0x2a, kOk, kOk}},
    {"-wx", 6, {kBad, kBad, kBad, kBad}}, {"rwx", 7, {kOk, kOk, kOk, kOk}},
};

struct RightsAccess {
  const char* code;
  uint64_t offset;
  bool user;  // the linear address is a user's
};
const RightsAccess kRightsAccesses[] = {{guest_read, 8, false},
                                        {guest_write, 8, false},
                                        {guest_fetch, 0, false},
                                        {guest_fetch, 0, true}};

void MakeUser(bool user) {
  for (int level = 4; level > 0; --level) {
    uint64_t& entry = own->Entry(kLinear, level);
    entry = user ? entry | kUser : entry & ~kUser;
  }
}

// One row, with `entry` for `gpa` granting no more than it says. Prints it if asked to.
bool RowHolds(const RightsRow& row, uint64_t& entry, uint64_t gpa, bool print) {
  bool ok = true;
  if (print) Print("  ", row.name);
  for (unsigned i = 0; i < 4; ++i) {
    const RightsAccess& access = kRightsAccesses[i];
    MakeUser(access.user);
    const uint64_t linear = kLinear + access.offset;
    uint64_t reason;
    {
      const Changed changed(entry, (entry & ~kEptAll) | row.rights);
      reason = RunVmx(access.code, linear);
    }
    if (print && reason == kExitViolation) Print("  ", Hex{Qualification() & 0x7f, 2});
    if (print && reason != kExitViolation) Print(reason == kExitVmcall ? "  fine" : "  conf");
    if (row.met[i] == kOk) {
      ok = ok && reason == kExitVmcall;
    } else if (row.met[i] == kBad) {
      ok = ok && reason == kExitMisconfiguration && Qualification() == 0 &&
           VmRead(kGuestPhysical) == gpa + access.offset;
    } else {
      const uint64_t guest = kQWritable | (access.user ? kQUser : 0);
      ok = ok && ViolatedAt(reason, row.met[i], gpa + access.offset, linear, guest);
    }
  }
  MakeUser(false);
  if (print) Print(ok ? "  ok\n" : "  WRONG\n");
  return ok;
}

bool RowsHold(uint64_t& entry, uint64_t gpa, bool print) {
  bool ok = true;
  if (split) {
    for (const RightsRow& row : kSplitRows) ok = RowHolds(row, entry, gpa, print) && ok;
    return ok;
  }
  for (const RightsRow& row : kWholeRows) {
    ok = RowHolds(row, entry, gpa, print) && ok;
    // Bit 10 is ignored.
    const RightsRow other = {
        row.name, row.rights | kEptUserExecute, {row.met[0], row.met[1], row.met[2], row.met[3]}};
    ok = RowHolds(other, entry, gpa, false) && ok;
  }
  return ok;
}

// Rights are lowered at one level at a time.
void Rights(bool print) {
  static constexpr const char* kNames[] = {"rights of the leaf", "rights in PD", "rights in PDPT",
                                           "rights in PML4"};
  if (print) Print("the leaf: read, write, fetch from a supervisor's page, from a user's\n");
  for (int level = 1; level <= 4; ++level) {
    const bool ok = RowsHold(EptEntry(kProbedGpa, level), kProbedGpa, print && level == 1);
    Check(kNames[level - 1], ok);
  }
  for (int level = 2; level <= 3; ++level) {
    uint64_t& entry = EptEntry(kProbedGpa, level);
    const uint64_t page = level == 2 ? kProbed : 0;
    const Changed large(entry, page | kEptAll | kWriteBack | kPageSize);
    Check(level == 2 ? "rights of 2 MiB" : "rights of 1 GiB", RowsHold(entry, kProbedGpa, false));
  }
}

bool HasFiveLevels() {
  return (ReadMsr(0x48c) & 1u << 7) != 0 && (Cpuid(0x8000'0008).eax & 0xff) > 48;
}

// The highest of 5 levels; and what 4 do not reach.
void FiveLevels() {
  own->Map(kLinear, kFarGpa, PageSize::k4K, kWritable);
  EptEntry(kFarGpa, 1) = kProbed | kEptAll | kWriteBack;
  SetEptPointer(true, 5);
  Check("rights in PML5", RowsHold(EptEntry(kFarGpa, 5), kFarGpa, false));
  SetEptPointer(true, 4);
  Check("beyond 4 levels", ViolatedAt(RunVmx(guest_read, kLinear), kQRead, kFarGpa, kLinear));
  own->Map(kLinear, kProbedGpa, PageSize::k4K, kWritable);
}

// -- malformed entries

// Whether `bits` make the entry for the probed page at `level` malformed for every access, and
// nothing else if it is not present.
bool IsReserved(int level, uint64_t set, uint64_t clear = 0) {
  uint64_t& entry = EptEntry(kProbedGpa, level);
  bool ok = true;
  const char* const codes[] = {guest_read, guest_write, guest_fetch};
  for (unsigned i = 0; i < 3; ++i) {
    const Changed changed(entry, (entry & ~clear) | set);
    ok = ok && RunVmx(codes[i], kLinear) == kExitMisconfiguration && Qualification() == 0 &&
         VmRead(kGuestPhysical) == kProbedGpa;
    const Changed absent(entry, entry & ~kEptAll);
    ok = ok && ViolatedAt(RunVmx(codes[i], kLinear), uint64_t{1} << i, kProbedGpa, kLinear);
  }
  return ok;
}

constexpr uint64_t kTypeMask = 7u << 3;

void ReservedBits() {
  const int width = static_cast<int>(Cpuid(0x8000'0008).eax & 0xff);
  bool ok = true;
  for (int level = 1; level <= 4; ++level) {
    for (int bit = width; bit < 52; ++bit) ok = IsReserved(level, uint64_t{1} << bit) && ok;
  }
  Check("addresses that are too wide", ok);
  ok = true;
  for (int level = 2; level <= 4; ++level) {
    for (int bit = 3; bit <= (level == 4 ? 7 : 6); ++bit) ok = IsReserved(level, 1u << bit) && ok;
  }
  Check("bits 6:3 of tables, bit 7 of PML4", ok);
  ok = true;
  constexpr uint64_t kTypes[] = {2, 3, 7};
  for (uint64_t type : kTypes) ok = IsReserved(1, type << 3, kTypeMask) && ok;
  for (int level = 2; level <= 3; ++level) {
    const uint64_t page = level == 2 ? kProbed : 0;
    const Changed large(EptEntry(kProbedGpa, level), page | kEptAll | kWriteBack | kPageSize);
    for (uint64_t type : kTypes) ok = IsReserved(level, type << 3, kTypeMask) && ok;
    for (int bit = 12; bit < (level == 2 ? 21 : 30); ++bit) {
      ok = IsReserved(level, uint64_t{1} << bit) && ok;
    }
  }
  Check("memory types, low bits of large pages", ok);
}

void IgnoredBits() {
  bool ok = true;
  for (int level = 1; level <= 4; ++level) {
    for (int bit = 8; bit < 64; bit = bit == 11 ? 52 : bit + 1) {
      if (bit == 10) continue;
      uint64_t& entry = EptEntry(kProbedGpa, level);
      const Changed changed(entry, entry ^ uint64_t{1} << bit);
      ok = ok && RunVmx(guest_read, kLinear) == kExitVmcall;
    }
  }
  Check("bits that are ignored", ok);
}

// What is found first counts, from the root down, and rights last.
void Order() {
  uint64_t& root = EptEntry(kProbedGpa, 4);
  uint64_t& leaf = EptEntry(kProbedGpa, 1);
  const Changed malformed(leaf, leaf | kTypeMask);
  bool ok = false;
  {
    const Changed changed(root, root & ~kEptWrite);
    ok = RunVmx(guest_write, kLinear) == kExitMisconfiguration;
  }
  {
    const Changed changed(root, 0);
    ok = ok && RunVmx(guest_write, kLinear) == kExitViolation;
  }
  Check("a misconfiguration below wins over rights", ok);
}

// -- the guest's tables and modes

// The page of the guest's table that maps the probed page: rights, A and D of the guest's entry, A
// and D of EPT. [intel/vol3] "Accessed and Dirty Flags for EPT"
void GuestTables(bool accessed_dirty) {
  SetEptPointer(accessed_dirty);
  const uint64_t table = own->Entry(kLinear, 2) & kAddressMask;
  uint64_t& entry = EptEntry(table, 1);
  uint64_t& guest_entry = own->Entry(kLinear, 1);
  const uint64_t execute = kEptExecute | (split ? kEptUserExecute : 0);
  bool ok = true;
  const uint64_t all_rights[] = {0, kEptRead, kEptRead | execute, kEptRead | kEptWrite,
                                 kEptRead | kEptWrite | execute};
  for (const uint64_t rights : all_rights) {
    for (unsigned state = 0; state < 8; ++state) {
      const bool writes = (state & 1) != 0, accessed = (state & 2) != 0, dirty = (state & 4) != 0;
      guest_entry =
          (guest_entry & ~(kAccessed | kDirty)) | (accessed ? kAccessed : 0) | (dirty ? kDirty : 0);
      const Changed changed(entry, (entry & ~(kEptAll | kEptAccessed | kEptDirty)) | rights);
      const uint64_t reason = RunVmx(writes ? guest_write : guest_read, kLinear + 8);
      const bool updates = !accessed || (writes && !dirty);
      const bool refused =
          (rights & kEptRead) == 0 || ((rights & kEptWrite) == 0 && (accessed_dirty || updates));
      if (!refused) {
        const uint64_t wanted = kEptAccessed | kEptDirty;
        const uint64_t guest_wanted = kAccessed | (writes ? kDirty : 0);
        ok = ok && reason == kExitVmcall && (guest_entry & guest_wanted) == guest_wanted &&
             (entry & wanted) == (accessed_dirty ? wanted : 0);
        continue;
      }
      const bool both = accessed_dirty || (rights & kEptRead) != 0;
      const uint64_t granted = (rights & 7) << 3 | ((rights & kEptUserExecute) != 0 ? 1u << 6 : 0);
      ok = ok && reason == kExitViolation &&
           Qualification() == ((both ? 3u : 1u) | granted | kQLinear) &&
           VmRead(kGuestPhysical) == table + (reinterpret_cast<uint64_t>(&guest_entry) & 0xfff) &&
           VmRead(kGuestLinear) == kLinear + 8;
    }
  }
  Check(accessed_dirty ? "the guest's tables, with A and D" : "the guest's tables", ok);
}

// A walk that reads its tables from a device meets what nested tables refuse all the same, also
// where the device is known.
void TablesInDevice() {
  constexpr uint64_t kDevice = 0xdfff'f000;
  uint64_t& entry = EptEntry(kProbedGpa, 1);
  const uint64_t execute = kEptExecute | (split ? kEptUserExecute : 0);
  const Changed changed(entry, kDevice | kEptRead | execute | kWriteBack);
  bool ok = RunVmx(guest_read, kLinear) == kExitVmcall;
  VmWrite(kGuestCr3, kProbedGpa);
  ok = ok && RunVmx(guest_read, kLinear) == kExitViolation && VmRead(kGuestPhysical) == kProbedGpa;
  ok = ok && Qualification() == (3 | kQLinear | (split ? 0x68u : 0x28u));
  VmWrite(kGuestCr3, own->root());
  Check("tables in a device", ok);
}

// What the guest's own tables say of the page is told.
void AdvancedInformation() {
  uint64_t& entry = EptEntry(kProbedGpa, 1);
  const Changed absent(entry, 0);
  uint64_t& guest_entry = own->Entry(kLinear, 1);
  bool ok = false;
  {
    const Changed changed(guest_entry, guest_entry & ~kWritable);
    ok = ViolatedAt(RunVmx(guest_read, kLinear), kQRead, kProbedGpa, kLinear, 0);
  }
  {
    const Changed changed(guest_entry, guest_entry | kNoExecute);
    ok = ok && ViolatedAt(RunVmx(guest_read, kLinear), kQRead, kProbedGpa, kLinear,
                          kQWritable | kQNoExecute);
  }
  Check("advanced information", ok);
}

// Outside 64-bit mode: without paging every linear address is a user's; in PAE paging the load of
// CR3 reads PDPTEs, and no linear address is behind it.
void OtherModes() {
  const uint64_t controls = VmRead(kSecondaryControls), entry_controls = VmRead(kEntryControls);
  const uint64_t cr0 = VmRead(kGuestCr0), cr4 = VmRead(kGuestCr4), cr3 = VmRead(kGuestCr3);
  const uint64_t code = VmRead(0x4816);
  auto* const words = reinterpret_cast<uint32_t*>(kProbed);
  words[4] = 0x0fdf'220f;  // mov %edi, %cr3; vmcall
  words[5] = 0x0000'c101;
  VmWrite(kSecondaryControls, controls | kSecondaryUnrestricted);
  VmWrite(kEntryControls, entry_controls & ~uint64_t{1u << 9});
  VmWrite(0x4816, 0xc09b);
  VmWrite(kGuestCr0, cr0 & ~(uint64_t{1} << 31));
  const auto* const target = reinterpret_cast<const void*>(kProbed);
  uint64_t& page = EptEntry(kProbed, 2);
  bool ok = RunVmx(target, 0) == kExitVmcall;
  {
    const Changed changed(page, page & ~kEptUserExecute);
    const uint64_t reason = RunVmx(target, 0);
    ok = ok && (split ? ViolatedAt(reason, 0x3c, kProbed, kProbed, kQUser | kQWritable)
                      : reason == kExitVmcall);
  }
  {
    const Changed changed(page, page & ~kEptExecute);
    const uint64_t reason = RunVmx(target, 0);
    ok = ok && (split ? reason == kExitVmcall
                      : ViolatedAt(reason, 0x1c, kProbed, kProbed, kQUser | kQWritable));
  }
  Check("without paging", ok);

  VmWrite(kGuestCr0, cr0);
  const uint64_t directory = own->Entry(0, 3) & kAddressMask;
  const uint64_t pointers = 7 * kMiB + 0xff000;
  reinterpret_cast<uint64_t*>(pointers)[0] = directory | kPresent;
  for (uint64_t i = 0; i < 4; ++i) VmWrite(0x280a + 2 * i, i == 0 ? directory | kPresent : 0);
  SetEptPointer(false);
  const auto* const loads = reinterpret_cast<const void*>(&words[4]);
  ok = RunVmx(loads, pointers) == kExitVmcall;
  {
    uint64_t& entry = EptEntry(pointers, 1);
    const Changed changed(entry, entry & ~kEptAll);
    ok = ok && RunVmx(loads, pointers) == kExitViolation && Qualification() == kQRead &&
         VmRead(kGuestPhysical) == pointers;
  }
  SetEptPointer(true);
  Check("PDPTEs that a load of CR3 reads", ok);

  VmWrite(kSecondaryControls, controls);
  VmWrite(kEntryControls, entry_controls);
  VmWrite(0x4816, code);
  VmWrite(kGuestCr0, cr0);
  VmWrite(kGuestCr4, cr4);
  VmWrite(kGuestCr3, cr3);
}

// -- A and D

void AccessedAndDirty() {
  uint64_t& leaf = EptEntry(kProbedGpa, 1);
  leaf &= ~(kEptAccessed | kEptDirty);
  bool ok = RunVmx(guest_read, kLinear) == kExitVmcall && (leaf & kEptAccessed) != 0;
  ok = ok && (leaf & kEptDirty) == 0 && (EptEntry(kProbedGpa, 4) & kEptAccessed) != 0;
  ok = ok && RunVmx(guest_write, kLinear + 8) == kExitVmcall && (leaf & kEptDirty) != 0;
  Check("A and D", ok);

  uint64_t& of_root = own->Entry(EptRoot(), 2);
  of_root &= ~(kAccessed | kDirty);
  ok = RunVmx(guest_write, EptRoot() + 0xff8) == kExitVmcall;
  Check("A and D of the guest's, for a write to EPT",
        ok && (of_root & (kAccessed | kDirty)) == (kAccessed | kDirty));

  // [intel/vol3] "Page-Modification Logging"
  VmWrite(kSecondaryControls, VmRead(kSecondaryControls) | kSecondaryLog);
  VmWrite(0x200e, kLog);
  VmWrite(0x0812, 0);
  leaf &= ~kEptDirty;
  ok = RunVmx(guest_write, kLinear + 8) == kExitVmcall && VmRead(0x0812) == 0xffff;
  ok = ok && *reinterpret_cast<uint64_t*>(kLog) == kProbedGpa;
  leaf &= ~kEptDirty;
  ok = ok && RunVmx(guest_write, kLinear + 8) == 62 && (leaf & kEptDirty) == 0;
  VmWrite(kSecondaryControls, VmRead(kSecondaryControls) & ~kSecondaryLog);
  Check("log of written pages, and its end", ok);
}

// With and without A and D, at the end with.
void AllOfOneKind(bool splits) {
  split = splits;
  SplitExecute(splits);
  Print(splits ? "-- execution split by mode\n" : "-- one right to execute\n");
  for (int pass = 0; pass < 2; ++pass) {
    const bool accessed_dirty = pass == 1;
    Print(accessed_dirty ? "with A and D\n" : "without A and D\n");
    SetEptPointer(accessed_dirty);
    Rights(!accessed_dirty);
    ReservedBits();
    IgnoredBits();
    Order();
    GuestTables(accessed_dirty);
  }
  if (HasFiveLevels()) FiveLevels();
  TablesInDevice();
  AdvancedInformation();
  OtherModes();
}

}  // namespace
}  // namespace guest

extern "C" void GuestMain(const guest::MultibootInfo*) {
  using namespace guest;
  InitConsole();
  InitTraps();
  WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) | kEferNxe);
  PageTables own_tables(6 * kMiB, 7 * kMiB);
  own = &own_tables;
  StartVmx(own_tables);
  own->Map(kLinear, kProbedGpa, PageSize::k4K, kWritable);
  EptEntry(kProbedGpa, 1) = kProbed | kEptAll | kWriteBack;
  *reinterpret_cast<uint32_t*>(kProbed) = 0xc1010f;  // VMCALL
  AllOfOneKind(false);
  if (HasSplitExecute()) AllOfOneKind(true);
  AccessedAndDirty();
  Print(wrong ? "something is wrong\n" : "all is well\n");
  Exit(wrong ? 1 : 0);
}
