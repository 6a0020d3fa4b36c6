// The x87 state as FNSTENV and FNSAVE store it: 14 or 28 bytes by operand size, in one form for
// protected and one for real and virtual-8086 mode. [intel/vol1] "x87 FPU State Image"
module;
#include <array>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.x87;

import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

constexpr unsigned kRegisterBytes = 10;
constexpr std::uint16_t kExponent = 0x7fff;

bool Wide(const Op& op) { return op.operand_bytes != 2; }
unsigned EnvironmentBytes(const Op& op) { return Wide(op) ? 28 : 14; }
bool RealForm(const Core& core) { return core.real_mode() || core.virtual_8086(); }

// The full tag of physical register `number`.
unsigned Tag(const ExtendedState& state, unsigned number) {
  if ((state.ftw >> number & 1) == 0) return 3;
  const ExtendedState::X87Register& st = state.st[(number - state.top()) & 7];
  const unsigned exponent = st.sign_exponent & kExponent;
  if (exponent == 0 && st.significand == 0) return 1;
  return exponent == 0 || exponent == kExponent || st.significand >> 63 == 0 ? 2 : 0;
}

std::uint16_t FullTags(const ExtendedState& state) {
  unsigned tags = 0;
  for (unsigned i = 0; i < 8; ++i) tags |= Tag(state, i) << (2 * i);
  return static_cast<std::uint16_t>(tags);
}

std::uint8_t ShortTags(unsigned full) {
  unsigned tags = 0;
  for (unsigned i = 0; i < 8; ++i) tags |= (full >> (2 * i) & 3) != 3 ? 1u << i : 0;
  return static_cast<std::uint8_t>(tags);
}

using Image = std::array<std::uint8_t, 28 + 8 * kRegisterBytes>;
// The seven fields, in the wide form; the narrow one has their low halves.
using Fields = std::array<std::uint32_t, 7>;

Fields FieldsOf(const Core& core) {
  const ExtendedState& state = core.extended;
  const auto fip = static_cast<std::uint32_t>(state.fip);
  const auto fdp = static_cast<std::uint32_t>(state.fdp);
  Fields fields = {0xffff'0000u | state.fcw, 0xffff'0000u | state.fsw,
                   0xffff'0000u | FullTags(state)};
  if (RealForm(core)) {
    fields[3] = fip & 0xffff;
    fields[4] = (fip >> 16 << 12) | (state.fop & 0x7ffu);
    fields[5] = fdp & 0xffff;
    fields[6] = fdp >> 16 << 12;
  } else {
    fields[3] = fip;
    fields[4] = std::uint32_t{state.fop} << 16;
    fields[5] = fdp;
    fields[6] = 0xffff'0000;
  }
  return fields;
}

void PutFields(const Fields& fields, const Op& op, std::uint8_t* to) {
  for (unsigned i = 0; i < fields.size(); ++i) {
    std::memcpy(to + i * (Wide(op) ? 4 : 2), &fields[i], Wide(op) ? 4 : 2);
  }
}

Fields GetFields(const Op& op, const std::uint8_t* from) {
  Fields fields = {};
  for (unsigned i = 0; i < fields.size(); ++i) {
    std::memcpy(&fields[i], from + i * (Wide(op) ? 4 : 2), Wide(op) ? 4 : 2);
  }
  return fields;
}

void Take(const Core& core, const Op& op, const Fields& fields, ExtendedState& state) {
  state.fcw = static_cast<std::uint16_t>(fields[0]);
  state.fsw = static_cast<std::uint16_t>(fields[1]);
  state.ftw = ShortTags(fields[2]);
  if (RealForm(core)) {
    state.fip = (fields[3] & 0xffff) | (fields[4] >> 12 << 16);
    state.fdp = (fields[5] & 0xffff) | (fields[6] >> 12 << 16);
    state.fop = fields[4] & 0x7ff;
  } else {
    state.fip = fields[3];
    state.fdp = fields[5];
    if (Wide(op)) state.fop = fields[4] >> 16 & 0x7ff;
  }
  NormalizeX87(state);
}

bool LoadImage(Core& core, const Op& op, unsigned bytes, Image& image) {
  std::uint64_t linear = 0;
  return OperandAddress(core, op, bytes, false, linear) &&
         LoadSlow(core, linear, image.data(), bytes, By::kProgram);
}

bool StoreImage(Core& core, const Op& op, unsigned bytes, const Image& image) {
  std::uint64_t linear = 0;
  return OperandAddress(core, op, bytes, true, linear) &&
         StoreSlow(core, linear, image.data(), bytes, By::kProgram);
}

}  // namespace

bool Fnstenv(Core& core, const Op& op) {
  Image image = {};
  PutFields(FieldsOf(core), op, image.data());
  if (!StoreImage(core, op, EnvironmentBytes(op), image)) return false;
  core.extended.fcw |= 0x3f;
  NormalizeX87(core.extended);
  return true;
}

bool Fnsave(Core& core, const Op& op) {
  Image image = {};
  PutFields(FieldsOf(core), op, image.data());
  std::uint8_t* to = image.data() + EnvironmentBytes(op);
  for (const ExtendedState::X87Register& st : core.extended.st) {
    std::memcpy(to, &st, kRegisterBytes);
    to += kRegisterBytes;
  }
  if (!StoreImage(core, op, EnvironmentBytes(op) + 8 * kRegisterBytes, image)) return false;
  ResetX87(core.extended);
  return true;
}

bool Fldenv(Core& core, const Op& op) {
  Image image = {};
  if (!LoadImage(core, op, EnvironmentBytes(op), image)) return false;
  // Registers are numbered from the top, which may move.
  const ExtendedState old = core.extended;
  ExtendedState& state = core.extended;
  Take(core, op, GetFields(op, image.data()), state);
  for (unsigned i = 0; i < 8; ++i) {
    state.st[(i - state.top()) & 7] = old.st[(i - old.top()) & 7];
  }
  return true;
}

bool Frstor(Core& core, const Op& op) {
  Image image = {};
  const unsigned environment = EnvironmentBytes(op);
  if (!LoadImage(core, op, environment + 8 * kRegisterBytes, image)) return false;
  const std::uint8_t* from = image.data() + environment;
  for (ExtendedState::X87Register& st : core.extended.st) {
    std::memcpy(&st, from, kRegisterBytes);
    from += kRegisterBytes;
  }
  Take(core, op, GetFields(op, image.data()), core.extended);
  return true;
}

}  // namespace pagesaw::cpu
