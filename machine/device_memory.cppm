// The guest's memory as devices see it: by physical addresses that a guest chose.
module;
#include <cstddef>
#include <span>
export module pagesaw.machine.device_memory;

import pagesaw.core.address;

export namespace pagesaw {

// For the threads of vCPUs, outside guest code.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  // Copies bytes. False, and nothing is known of what was copied, if some of them are no memory,
  // are read-only memory, or are memory whose attribute forbids it. When Write returns no processor
  // goes on with code that it decoded from the bytes before.
  [[nodiscard]] virtual bool Read(Gpa gpa, std::span<std::byte> bytes) const = 0;
  [[nodiscard]] virtual bool Write(Gpa gpa, std::span<const std::byte> bytes) = 0;
};

}  // namespace pagesaw
