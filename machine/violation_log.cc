module;
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>
module pagesaw.machine.violation_log;

namespace pagesaw {
namespace {

std::string RightsText(Rights rights) {
  std::string text;
  const auto add = [&text](bool has, const char* name) {
    if (has) absl::StrAppend(&text, text.empty() ? "" : " ", name);
  };
  add(rights.read(), "R");
  add(rights.write(), "W");
  add(rights.exec_supervisor(), "XS");
  add(rights.exec_user(), "XU");
  return text.empty() ? "-" : text;
}

std::string AccessText(const Violation& violation) {
  const Access access = violation.access;
  if (violation.stage == Stage::kTable) {
    return access.is_write() ? "setting A or D in the guest's table at"
                             : "reading the guest's table at";
  }
  return absl::StrCat(access.is_user() ? "user " : "supervisor ", access.is_fetch()   ? "fetch of"
                                                                  : access.is_write() ? "write of"
                                                                                      : "read of");
}

}  // namespace

std::string Describe(const Violation& violation) {
  return absl::StrFormat("vCPU %d, rip 0x%x: %s 0x%x (linear 0x%x) needs %s, its attribute is %s",
                         violation.vcpu, violation.rip, AccessText(violation), violation.gpa.bits(),
                         violation.linear.bits(), RightsText(violation.missing),
                         RightsText(violation.attribute.rights));
}

void ViolationLog::Note(Violation violation) {
  const ViolationPolicy policy = violation.attribute.policy;
  counts_[static_cast<std::size_t>(policy)].fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  violation.number = ++last_number_;
  recent_.push_back(violation);
  if (recent_.size() > kKept) recent_.pop_front();
  if (policy != ViolationPolicy::kStop) return;
  std::erase_if(holding_, [&](const Violation& v) { return v.vcpu == violation.vcpu; });
  holding_.push_back(violation);
}

std::vector<Violation> ViolationLog::Recent() const {
  const std::lock_guard lock(mutex_);
  return {recent_.begin(), recent_.end()};
}

std::vector<Violation> ViolationLog::Holding() const {
  const std::lock_guard lock(mutex_);
  return holding_;
}

void ViolationLog::Release() {
  const std::lock_guard lock(mutex_);
  holding_.clear();
}

}  // namespace pagesaw
