// The `mbec` plugin: for each vendor the second-stage format that splits execution by mode.
module;
#include <memory>
#include <string_view>
export module pagesaw.plugins.mbec.plugin;

import pagesaw.core.plugin;

export namespace pagesaw::mbec {

class MbecPlugin final : public Plugin {
 public:
  std::string_view name() const override { return "mbec"; }
  [[nodiscard]] RegistrationResult Register(PluginRegistry& registry) override;
};

std::unique_ptr<Plugin> MakeMbecPlugin();

}  // namespace pagesaw::mbec
