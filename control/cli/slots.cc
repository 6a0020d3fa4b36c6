// `slot ...`, `dirty-log ...`, `working-set`: memory slots, and which of their pages are written
// and used.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.cli.table;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kMaxSlotNumber = 0xffff'ffff;

std::string MethodText(v1::DirtyLogMethod method) {
  switch (method) {
    case v1::WRITE_PROTECT:
      return "write-protect";
    case v1::DIRTY_BITS:
      return "dirty-bits";
    default:
      return "-";
  }
}

// `vms/{vm}/slots/{slot}` of the first operand and `number`.
absl::StatusOr<std::string> SlotNameOf(const ParsedCommand& parsed, std::string_view where,
                                       const std::string& number) {
  const auto vm = VmNameOf(parsed.operands()[0]);
  if (!vm.ok()) return vm.status();
  const auto slot = ParseNumber(where, number, 0, kMaxSlotNumber);
  if (!slot.ok()) return Usage(slot.status());
  return absl::StrCat(*vm, "/slots/", *slot);
}

void PrintSlots(const std::vector<v1::MemorySlot>& slots) {
  Table table({"SLOT", "GPA", "SIZE", "ACCESS", "KIND", "DIRTY LOG"});
  for (const v1::MemorySlot& slot : slots) {
    table.AddRow({LastPart(slot.name()), HexText(slot.gpa()), BytesText(slot.size_bytes()),
                  slot.read_only() ? "read-only" : "read-write", slot.ram() ? "RAM" : "added",
                  MethodText(slot.dirty_log_method())});
  }
  Print(table.Text());
}

absl::StatusOr<int> ListSlots(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, VmNameOf(parsed.operands()[0]));
  if (!inquiry.ok()) return inquiry.status();
  v1::ListMemorySlotsRequest request;
  request.set_parent(inquiry->name);
  const auto response = inquiry->client->Call(request);
  if (!response.ok()) return response.status();
  if (inquiry->json) {
    PrintJson(*response);
  } else {
    PrintSlots({response->memory_slots().begin(), response->memory_slots().end()});
  }
  return int{kDone};
}

// Makes the call and prints the slot that it answers with.
template <typename Request>
absl::StatusOr<int> CallForSlot(const ParsedCommand& parsed, const Request& request) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  const auto slot = (*client)->Call(request);
  if (!slot.ok()) return slot.status();
  if (*json) {
    PrintJson(*slot);
  } else {
    PrintSlots({*slot});
  }
  return int{kDone};
}

absl::StatusOr<int> AddSlot(const ParsedCommand& parsed) {
  const auto name = SlotNameOf(parsed, "SLOT", parsed.operands()[1]);
  if (!name.ok()) return name.status();
  const auto gpa = AddressOf("GPA", parsed.operands()[2]);
  if (!gpa.ok()) return gpa.status();
  const auto size = ParseBytes("SIZE", parsed.operands()[3]);
  if (!size.ok()) return Usage(size.status());
  v1::AddMemorySlotRequest request;
  request.mutable_memory_slot()->set_name(*name);
  request.mutable_memory_slot()->set_gpa(*gpa);
  request.mutable_memory_slot()->set_size_bytes(static_cast<std::int64_t>(*size));
  request.mutable_memory_slot()->set_read_only(parsed.Has("read_only"));
  return CallForSlot(parsed, request);
}

absl::StatusOr<int> DeleteSlot(const ParsedCommand& parsed) {
  const auto name = SlotNameOf(parsed, "SLOT", parsed.operands()[1]);
  if (!name.ok()) return name.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::DeleteMemorySlotRequest request;
  request.set_name(*name);
  if (const auto done = (*client)->Call(request); !done.ok()) return done.status();
  return int{kDone};
}

absl::StatusOr<int> MoveSlot(const ParsedCommand& parsed) {
  const auto name = SlotNameOf(parsed, "SLOT", parsed.operands()[1]);
  if (!name.ok()) return name.status();
  const auto gpa = AddressOf("GPA", parsed.operands()[2]);
  if (!gpa.ok()) return gpa.status();
  v1::MoveMemorySlotRequest request;
  request.set_name(*name);
  request.set_gpa(*gpa);
  return CallForSlot(parsed, request);
}

absl::StatusOr<int> SetSlot(const ParsedCommand& parsed) {
  const auto name = SlotNameOf(parsed, "SLOT", parsed.operands()[1]);
  if (!name.ok()) return name.status();
  const auto access = ParseChoice("--access", parsed.Value("access"), {"read-write", "read-only"});
  if (!access.ok()) return Usage(access.status());
  v1::UpdateMemorySlotRequest request;
  request.set_name(*name);
  request.set_read_only(*access == 1);
  return CallForSlot(parsed, request);
}

// -- dirty-log

absl::StatusOr<std::string> LoggedSlotOf(const ParsedCommand& parsed) {
  return SlotNameOf(parsed, "--slot", parsed.Value("slot", "0"));
}

absl::StatusOr<int> StartDirtyLog(const ParsedCommand& parsed) {
  const auto name = LoggedSlotOf(parsed);
  if (!name.ok()) return name.status();
  const auto method = ParseChoice("--method", parsed.Value("method", "auto"),
                                  {"auto", "write-protect", "dirty-bits"});
  if (!method.ok()) return Usage(method.status());
  v1::StartDirtyLogRequest request;
  request.set_name(*name);
  if (*method == 1) request.set_method(v1::WRITE_PROTECT);
  if (*method == 2) request.set_method(v1::DIRTY_BITS);
  return CallForSlot(parsed, request);
}

absl::StatusOr<int> StopDirtyLog(const ParsedCommand& parsed) {
  const auto name = LoggedSlotOf(parsed);
  if (!name.ok()) return name.status();
  v1::StopDirtyLogRequest request;
  request.set_name(*name);
  return CallForSlot(parsed, request);
}

bool IsDirty(const v1::DirtyLog& log, std::uint64_t page) {
  const std::string& bitmap = log.bitmap();
  return page / 8 < bitmap.size() && (bitmap[page / 8] >> page % 8 & 1) != 0;
}

void PrintDirtyLog(const v1::DirtyLog& log) {
  Table table({"GPA", "PAGES"});
  const std::uint64_t pages = log.bitmap().size() * 8;
  for (std::uint64_t page = 0; page < pages; ++page) {
    if (!IsDirty(log, page)) continue;
    const std::uint64_t first = page;
    while (IsDirty(log, page)) ++page;
    table.AddRow({HexText(log.gpa() + first * kPageBytes), absl::StrCat(page - first)});
  }
  if (pages != 0) Print(table.Text());
  Print(absl::StrCat(log.dirty_page_count(), " of ", log.page_count(), " pages written\n"));
}

absl::StatusOr<int> GetDirtyLog(const ParsedCommand& parsed) {
  const auto form =
      ParseChoice("--output", parsed.Value("output", "table"), {"table", "json", "count"});
  if (!form.ok()) return Usage(form.status());
  const auto name = LoggedSlotOf(parsed);
  if (!name.ok()) return name.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::TakeDirtyLogRequest request;
  request.set_name(*name);
  const auto log = (*client)->Call(request);
  if (!log.ok()) return log.status();
  if (*form == 1) {
    PrintJson(*log);
  } else if (*form == 2) {
    Print(absl::StrCat(log->dirty_page_count(), "\n"));
  } else {
    PrintDirtyLog(*log);
  }
  return int{kDone};
}

absl::StatusOr<int> GetWorkingSet(const ParsedCommand& parsed) {
  const auto inquiry = Inquire(parsed, LoggedSlotOf(parsed));
  if (!inquiry.ok()) return inquiry.status();
  v1::TakeWorkingSetRequest request;
  request.set_name(inquiry->name);
  const auto set = inquiry->client->Call(request);
  if (!set.ok()) return set.status();
  if (inquiry->json) {
    PrintJson(*set);
  } else {
    Print(absl::StrCat(set->used_page_count(), " of ", set->page_count(), " pages used\n"));
  }
  return int{kDone};
}

constexpr OperandSpec kSlotOperand = {.name = "SLOT", .help = "number of a memory slot"};
constexpr OperandSpec kGpaOperand = {.name = "GPA",
                                     .help = "guest-physical address, a multiple of 4096"};
constexpr OptionSpec kSlotOption = {
    .name = "slot", .placeholder = "0", .help = "the memory slot; default: 0, the RAM below 3 GiB"};

std::vector<Command> OnSlots() {
  return {
      {.spec = {.name = "pagesawctl slot list",
                .summary = "Lists the memory slots of a VM.",
                .operands = {kVmOperand},
                .options = {kOutputOption, kSocketOption},
                .details = "",
                .example = "pagesawctl slot list demo"},
       .run = ListSlots},
      {.spec = {.name = "pagesawctl slot add",
                .summary = "Adds memory to a VM, also while it runs.",
                .operands = {kVmOperand,
                             kSlotOperand,
                             kGpaOperand,
                             {.name = "SIZE", .help = "bytes, a multiple of 4096: 64M"}},
                .options = {{.name = "read_only",
                             .placeholder = "",
                             .help = "the guest's writes do not reach it"},
                            kOutputOption,
                            kSocketOption},
                .details = "It is all zeroes. The guest is not told: it has to know where to look.",
                .example = "pagesawctl slot add demo 7 0x140000000 64M"},
       .run = AddSlot},
      {.spec = {.name = "pagesawctl slot delete",
                .summary = "Takes a memory slot from a VM, with what is in it.",
                .operands = {kVmOperand, kSlotOperand},
                .options = {kSocketOption},
                .details = "Not the RAM that the VM was made with.",
                .example = "pagesawctl slot delete demo 7"},
       .run = DeleteSlot},
      {.spec = {.name = "pagesawctl slot move",
                .summary = "Moves a memory slot, with what is in it, to another address.",
                .operands = {kVmOperand, kSlotOperand, kGpaOperand},
                .options = {kOutputOption, kSocketOption},
                .details = "Not the RAM that the VM was made with, and no slot that is logged.",
                .example = "pagesawctl slot move demo 7 0x180000000"},
       .run = MoveSlot},
      {.spec = {.name = "pagesawctl slot set",
                .summary = "Makes a memory slot read-only, or writable again.",
                .operands = {kVmOperand, kSlotOperand},
                .options = {{.name = "access",
                             .placeholder = "read-write|read-only",
                             .help = "what the guest may do; required"},
                            kOutputOption,
                            kSocketOption},
                .details = "Writes to a read-only slot go to the bus, where nothing takes them.",
                .example = "pagesawctl slot set demo 7 --access=read-only"},
       .run = SetSlot}};
}

std::vector<Command> OnPages() {
  return {{.spec = {.name = "pagesawctl dirty-log start",
                    .summary = "Starts to log which pages of a memory slot are written.",
                    .operands = {kVmOperand},
                    .options = {kSlotOption,
                                {.name = "method",
                                 .placeholder = "auto|write-protect|dirty-bits",
                                 .help = "how; default: auto, by dirty bits if SPTEs have them"},
                                kOutputOption,
                                kSocketOption},
                    .details = "Large pages are broken by their first write while the log is on.",
                    .example = "pagesawctl dirty-log start demo --method=write-protect"},
           .run = StartDirtyLog},
          {.spec = {.name = "pagesawctl dirty-log get",
                    .summary = "Prints which pages were written since this was last asked.",
                    .operands = {kVmOperand},
                    .options = {kSlotOption,
                                {.name = "output",
                                 .placeholder = "table|json|count",
                                 .help = "how to print; default: table"},
                                kSocketOption},
                    .details =
                        "What is printed is forgotten: the next call tells of later writes only.",
                    .example = "pagesawctl dirty-log get demo --output=count"},
           .run = GetDirtyLog},
          {.spec = {.name = "pagesawctl dirty-log stop",
                    .summary = "Stops to log writes to a memory slot.",
                    .operands = {kVmOperand},
                    .options = {kSlotOption, kOutputOption, kSocketOption},
                    .details = "Large pages form again when the guest next uses them.",
                    .example = "pagesawctl dirty-log stop demo"},
           .run = StopDirtyLog},
          {.spec = {.name = "pagesawctl working-set",
                    .summary = "Prints how many pages were used since this was last asked.",
                    .operands = {kVmOperand},
                    .options = {kSlotOption, kOutputOption, kSocketOption},
                    .details = "A large page counts whole.",
                    .example = "pagesawctl working-set demo"},
           .run = GetWorkingSet}};
}

}  // namespace

std::vector<Command> SlotCommands() {
  std::vector<Command> commands = OnSlots();
  for (Command& command : OnPages()) commands.push_back(std::move(command));
  return commands;
}

}  // namespace pagesaw
