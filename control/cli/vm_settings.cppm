// What `run` and `vm create` say about a VM to make.
module;
#include <absl/status/statusor.h>

#include <string>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands:vm_settings;

import pagesaw.control.command_line;

namespace pagesaw {

// The options of `vm create` that are settings of the VM.
std::vector<OptionSpec> VmSettingOptions();

// The settings in `parsed`, for the image `image` (empty: none). Paths are made absolute; files
// must be there. Errors are of usage, but for a missing file.
absl::StatusOr<control::v1::VmConfig> VmConfigOf(const ParsedCommand& parsed,
                                                 const std::string& image);

}  // namespace pagesaw
