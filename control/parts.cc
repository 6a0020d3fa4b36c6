module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <memory>
#include <string>
#include <utility>
#include <variant>
module pagesaw.control.parts;

import pagesaw.core.processor;
import pagesaw.cpu.model;
import pagesaw.cpu.software_processor;
import pagesaw.machine.vm_mmu;

namespace pagesaw {
namespace {

absl::StatusOr<std::unique_ptr<Processor>> MakeProcessor(const ProcessorRequest& request) {
  const auto model = cpu::MakeModel({.extension = request.extension,
                                     .model = request.cpu_model,
                                     .features = request.cpu_features,
                                     .apic_id = request.index,
                                     .cpu_count = request.count});
  if (const auto* refusal = std::get_if<std::string>(&model)) {
    return absl::InvalidArgumentError(*refusal);
  }
  std::shared_ptr<cpu::CodeRegistry> registry;
  if (auto* first = dynamic_cast<cpu::SoftwareProcessor*>(request.first); first != nullptr) {
    registry = first->registry();
  }
  auto processor = std::make_unique<cpu::SoftwareProcessor>(std::get<cpu::CpuModel>(model),
                                                            std::move(registry), request.memory);
  if (request.virtual_time != nullptr) processor->SetVirtualTime(request.virtual_time);
  return processor;
}

}  // namespace

VmParts MakeVmParts() { return {.make_processor = MakeProcessor, .make_mmu = MakeVmMmu}; }

}  // namespace pagesaw
