// Messages from and to the types of core/ and machine/. No decisions are taken here.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <string>
#include <string_view>

#include "pagesaw/control/v1/mmu_service.pb.h"
#include "pagesaw/control/v1/vm_service.pb.h"
module pagesaw.control.server:messages;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.plugin;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.machine.vm_manager;
import pagesaw.control.describe;

namespace pagesaw {

// Requests. Each refuses what the other side has no value for.
absl::StatusOr<VmConfig> ConfigOf(const control::v1::CreateVmRequest& request);
absl::StatusOr<Access> AccessOf(const control::v1::Access& access);
Rights RightsOf(const control::v1::Rights& rights);
absl::StatusOr<MemoryAttribute> AttributeOf(const control::v1::MemoryAttribute& message);
// Sets the registers that are present in `registers`.
absl::Status ApplyRegisters(const control::v1::Registers& registers, CpuState& state);

// Responses.
void Fill(control::v1::Vm& message, const Vm& vm);
void Fill(control::v1::VmExit& message, const VmExit& exit);
void Fill(control::v1::Registers& message, const CpuState& state);
void Fill(control::v1::Rights& message, Rights rights);
void Fill(control::v1::MemoryAttribute& message, const AttributeRange& range);
void Fill(control::v1::AttributeViolation& message, const Violation& violation);
void Fill(control::v1::ShadowRole& message, const ShadowRole& role);
void Fill(control::v1::ShadowPage& message, const ShadowPageInfo& page);
void Fill(control::v1::Root& message, const RootInfo& root);
void Fill(control::v1::Walker& message, const WalkerInfo& walker);
void Fill(control::v1::ShadowMmu& message, const ShadowMmuInfo& mmu);
void Fill(control::v1::Statistics& message, const VmStatistics& statistics);
// The format itself; the name and what is registered beside it are left alone.
void Fill(control::v1::Format& message, const PageFormat& format);
void Fill(control::v1::Format& message, const TdpFormat& format, unsigned physical_bits);
// Steps, outcome and explanation of a walk.
void Fill(control::v1::WalkResponse& message, const WalkReport& report, InputAddress address,
          Access access);
void Fill(control::v1::NestedState& message, const NestedState& state);
void Fill(control::v1::WalkSptesResponse& message, const WalkReport& report, InputAddress address,
          Access access);

}  // namespace pagesaw
