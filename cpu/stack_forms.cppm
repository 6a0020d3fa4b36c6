// PUSH and POP of a register, as handlers: `stack` chooses among them.
module;
#include <cstdint>
export module pagesaw.cpu.stack_forms;

export import pagesaw.cpu.dispatch;
export import pagesaw.cpu.memory;

export namespace pagesaw::cpu {

template <class T, bool kFlat>
void PushRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!PushFast<T, kFlat>(core, core.Read<T>(op->first))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class T, bool kFlat>
void PopRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  T value;
  if (!PeekFast<T, kFlat>(core, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  MoveStack(core, sizeof(T));
  core.Write<T>(op->first, value);  // POP SP: what was popped wins
  [[clang::musttail]] return op[1].run(core, op + 1);
}

}  // namespace pagesaw::cpu
