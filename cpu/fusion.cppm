// Superinstructions: an instruction and the one behind it that often follows it are executed by one
// handler, which spares the jump through the second one's op.
module;
#include <cstddef>
#include <span>
export module pagesaw.cpu.fusion;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Replaces the handler of an op by one that executes the op behind it as well, where there is one
// for the two. The ops stay what they are: whatever stops between the two finds the second one in
// its place, with its own handler.
void Fuse(std::span<Op> ops);

}  // namespace pagesaw::cpu
