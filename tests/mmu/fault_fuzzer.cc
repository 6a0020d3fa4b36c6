// The path of a fault, by inputs of a fuzzer: each byte decides what a vCPU, or the host, of a
// random VM does next. See random_vm.cppm for what is compared.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>

import pagesaw.tests.mmu.choices;
import pagesaw.tests.mmu.random_vm;

namespace {

constexpr unsigned kMaxSteps = 2000;

void FailWith(const std::string& complaint, const pagesaw::RandomVm& vm) {
  std::fprintf(stderr, "%s\n%s\n", complaint.c_str(), vm.Describe().c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pagesaw::Choices choices(std::span(data, size));
  const auto kind = static_cast<unsigned>(choices.Below(pagesaw::RandomVm::kKinds));
  const auto vcpus = 1 + static_cast<unsigned>(choices.Below(4));
  pagesaw::RandomVm vm(kind, vcpus, choices);
  for (unsigned step = 0; step < kMaxSteps && !choices.exhausted(); ++step) {
    if (const std::optional<std::string> complaint = vm.Step()) FailWith(*complaint, vm);
  }
  if (const std::optional<std::string> complaint = vm.CheckAllSptes()) FailWith(*complaint, vm);
  return 0;
}
