module;
#include <memory>
#include <optional>
module pagesaw.plugins.mbec.plugin;

import pagesaw.core.virt_extension;
import pagesaw.plugins.mbec.split_formats;

namespace pagesaw::mbec {

RegistrationResult MbecPlugin::Register(PluginRegistry& registry) {
  const TdpFormat ept = {
      .name = "ept-mbec", .vendor = "intel", .splits_execute = true, .make = MakeEptMbecFormat};
  const TdpFormat npt = {
      .name = "npt-gmet", .vendor = "amd", .splits_execute = true, .make = MakeNptGmetFormat};
  if (RegistrationResult error = registry.AddTdpFormat(ept)) return error;
  return registry.AddTdpFormat(npt);
}

std::unique_ptr<Plugin> MakeMbecPlugin() { return std::make_unique<MbecPlugin>(); }

}  // namespace pagesaw::mbec
