// Hardware task switches of legacy protected mode. [intel/vol3] "Task Switching"
module;
#include <cstdint>
#include <optional>
export module pagesaw.cpu.task_switch;

export import pagesaw.cpu.segmentation;

export namespace pagesaw::cpu {

enum class TaskSwitchKind : std::uint8_t { kJump, kCall, kReturn };

struct TaskSwitch {
  std::uint16_t selector = 0;                   // of the new task's TSS
  TaskSwitchKind kind = TaskSwitchKind::kJump;  // interrupts through task gates are calls
  std::uint64_t return_rip = 0;                 // EIP of the old task
  std::optional<std::uint32_t> error_code;      // pushed in the new task
};

// Switches to a task, all checks included; `core.rip` becomes its EIP. A fault that the new task's
// registers or segments give is raised in the old task, so that nothing has changed. Returns false
// as instructions do.
bool SwitchTask(Core& core, const TaskSwitch& to);

// A jump, call or event through a task gate: checks the TSS selector in it, then switches.
bool SwitchTaskByGate(Core& core, const Descriptor& gate, TaskSwitchKind kind,
                      std::uint64_t return_rip, std::optional<std::uint32_t> error_code);

}  // namespace pagesaw::cpu
