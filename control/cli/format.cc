// `format list|show`.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <string>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import pagesaw.control.cli.table;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

const char* YesNo(bool yes) { return yes ? "yes" : "no"; }

void PrintFormats(const v1::ListFormatsResponse& response) {
  Table table({"NAME", "VENDOR", "ROOT LEVEL", "SPLITS EXECUTE", "ACCESSED/DIRTY"});
  for (const v1::Format& format : response.formats()) {
    table.AddRow({LastPart(format.name()), format.vendor(), absl::StrCat(format.root_level()),
                  YesNo(format.splits_execute()), YesNo(format.accessed_dirty())});
  }
  Print(table.Text());
}

absl::StatusOr<int> List(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::ListFormatsRequest request;
  const auto all = CallForAll(**client, request);
  if (!all.ok()) return all.status();
  if (*json) {
    PrintJson(*all);
  } else {
    PrintFormats(*all);
  }
  return int{kDone};
}

// The codes of rights that refuse an access, as the table of a format has them.
std::string RefusedText(std::uint32_t refused) {
  return absl::StrCat("0x", absl::Hex(refused, absl::kZeroPad4));
}

void PrintFormat(const v1::Format& format) {
  Print(absl::StrCat(
      "name            ", LastPart(format.name()), "\nvendor          ", format.vendor(),
      "\nroot level      ", format.root_level(), "\nsecond stage    ", YesNo(format.second_stage()),
      "\nsplits execute  ", YesNo(format.splits_execute()), "\naccessed/dirty  ",
      YesNo(format.accessed_dirty()), "\naddress         ", HexText16(format.address_mask()),
      "\nmalformed 5:0   ", HexText16(format.malformed_low_bits()), "\n\n"));
  Table bits({"BIT", "MASK", "MEANS"});
  for (const v1::FormatBit& bit : format.bits()) {
    bits.AddRow({bit.name(), HexText16(bit.mask()), bit.description()});
  }
  Table reserved({"LEVEL", "BIT 7", "RESERVED"});
  for (const v1::ReservedBits& row : format.reserved()) {
    reserved.AddRow({absl::StrCat(row.level()), row.bit7() ? "1" : "0", HexText16(row.mask())});
  }
  Table permissions({"ACCESS", "REFUSED BY RIGHTS"});
  for (const v1::PermissionRow& row : format.permissions()) {
    permissions.AddRow({row.access(), RefusedText(row.refused())});
  }
  Print(absl::StrCat(bits.Text(), "\n", reserved.Text(), "\n", permissions.Text()));
}

absl::StatusOr<int> Show(const ParsedCommand& parsed) {
  const auto json = WantsJson(parsed);
  if (!json.ok()) return json.status();
  const auto client = Connect(parsed);
  if (!client.ok()) return client.status();
  v1::GetFormatRequest request;
  request.set_name("formats/" + parsed.operands()[0]);
  const auto response = (*client)->Call(request);
  if (!response.ok()) return response.status();
  if (*json) {
    PrintJson(*response);
  } else {
    PrintFormat(*response);
  }
  return int{kDone};
}

}  // namespace

std::vector<Command> FormatCommands() {
  return {{.spec = {.name = "pagesawctl format list",
                    .summary = "Lists the page formats that plugins registered.",
                    .operands = {},
                    .options = {kOutputOption, kSocketOption},
                    .details = "",
                    .example = "pagesawctl format list"},
           .run = List},
          {.spec = {.name = "pagesawctl format show",
                    .summary = "Shows a page format: bits, reserved masks, permission table.",
                    .operands = {{.name = "FORMAT", .help = "name of a page format"}},
                    .options = {kOutputOption, kSocketOption},
                    .details = "In the permission table bit c stands for rights of code c: "
                               "R 1, W 2, U (or XU) 4, X (or XS) 8.",
                    .example = "pagesawctl format show ept"},
           .run = Show}};
}

}  // namespace pagesaw
