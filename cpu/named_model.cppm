// Processors that exist, by name: what each is, and which of its features Pagesaw knows.
module;
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
export module pagesaw.cpu.named_model;

export namespace pagesaw::cpu {

struct NamedModel {
  std::string_view name = {};
  std::string_view vendor = {};  // as `VirtExtension::vendor` has it
  std::uint32_t signature = 0;   // CPUID leaf 1 EAX: family, model and stepping
  std::string_view brand = {};   // CPUID leaves 80000002h to 80000004h
  std::uint8_t physical_bits = 46;
  std::uint32_t max_basic_leaf = 0;
  std::uint32_t max_extended_leaf = 0;
  // Features that it has and its predecessor, of the same vendor, has not, separated by blanks and
  // named as the flags of /proc/cpuinfo are.
  std::string_view predecessor = {};
  std::string_view added = {};

  // Whether the part has the feature that is called `feature`.
  bool Has(std::string_view feature) const;
};

// The name of the model that has all that works, of whatever vendor.
inline constexpr std::string_view kMaxModel = "max";

// All but `max`.
std::span<const NamedModel> NamedModels();
// Null if there is none of that name; `max` and the empty name, which means it, are none.
const NamedModel* FindNamedModel(std::string_view name);
// Whether `name` is a model's, `max` or empty.
bool IsModelName(std::string_view name);
// What to say of another name.
std::string UnknownModel(std::string_view name);

}  // namespace pagesaw::cpu
