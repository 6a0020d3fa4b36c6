// How handlers follow one another: each ends in a tail call of the next op's handler. Instructions
// that need not be fast are plain functions, wrapped here.
module;
#include <cstdint>
export module pagesaw.cpu.dispatch;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// An instruction as a plain function. False: it did not happen, `core.stop` says why, and nothing
// that a program sees has changed. `core.rip` is the address of the instruction behind it: a
// transfer of control stores its target there.
using Instruction = bool (*)(Core& core, const Op& op);

// Ends straight-line execution at `op`, which did not happen: RIP stays on it.
void Abort(Core& core, const Op* op) [[clang::preserve_none]];
// Ends straight-line execution; `core.rip` says where it goes on.
void Leave(Core& core, const Op* op) [[clang::preserve_none]];

// Behind the last op of a block that no branch ends.
void EndOfBlock(Core& core, const Op* op) [[clang::preserve_none]];
// Goes on at `core.rip`, which may be anywhere in the current code segment: at once if the jump
// cache knows the place, else by way of Leave. `op` was the last instruction executed.
void JumpToRip(Core& core, const Op* op) [[clang::preserve_none]];

// An instruction after which the next one follows.
template <Instruction kInstruction>
void Plain(Core& core, const Op* op) [[clang::preserve_none]] {
  core.rip = core.NextRip(op);
  if (!kInstruction(core, *op)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// An instruction after which nothing is as before: control, mode, flags that interrupts depend on
// or translations may have changed. The decoder ends the block with it.
template <Instruction kInstruction>
void Ending(Core& core, const Op* op) [[clang::preserve_none]] {
  core.rip = core.NextRip(op);
  if (!kInstruction(core, *op)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return Leave(core, op);
}

}  // namespace pagesaw::cpu
