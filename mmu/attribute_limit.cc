module;
#include <cstdint>
#include <optional>
#include <string>
module pagesaw.mmu.attribute_limit;

import pagesaw.core.page_format;

namespace pagesaw {
namespace {

bool CanExpress(const SpteCodec& codec, Rights rights) {
  if (!codec.CanExpress(rights | Rights(Rights::kUser))) return false;
  return codec.format().second_stage || codec.CanExpress(rights);
}

}  // namespace

std::optional<std::string> WhyInexpressible(const SpteCodec& codec, Rights rights) {
  if (CanExpress(codec, rights)) return std::nullopt;
  if (rights.write() && !rights.read())
    return "entries that can be written but not read are malformed";
  if (!rights.read() && (rights.exec_supervisor() || rights.exec_user())) {
    return "its entries cannot grant execution without reading";
  }
  if (codec.format().user_pages_refuse_supervisor_fetch) {
    return "in its entries whatever a supervisor may execute, a user may execute too";
  }
  return "its entries have one execute right for supervisor and user mode";
}

Rights LeafLimit(const SpteCodec& codec, const MemoryAttribute& attribute, Access access,
                 std::uint64_t old) {
  const Rights user(Rights::kUser);  // no attribute says whose page it is
  if (attribute.policy != ViolationPolicy::kLog) return attribute.rights | user;
  const Rights seen = SpteCodec::IsLive(old) ? codec.GrantsOf(old) : Rights();
  const Rights granted = attribute.rights | seen | MemoryAttribute::NeededFor(access);
  return (CanExpress(codec, granted) ? granted : MemoryAttribute::kEverything) | user;
}

}  // namespace pagesaw
