// Devices of a few ports each: the debug exit, the debug console, the keyboard controller's reset
// line, the system control port and the firmware-configuration ports.
module;
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.small_devices;

import pagesaw.machine.console;
import pagesaw.machine.device;

export namespace pagesaw {

// isa-debug-exit: a write to F4h ends the VM with the value written.
class DebugExit final : public Device {
 public:
  explicit DebugExit(SystemControl& system) : system_(system) {}
  std::string_view name() const override { return "debug-exit"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  SystemControl& system_;
};

// Port E9h: bytes written are printed; reads give E9h, by which guests find it.
class DebugConsole final : public Device {
 public:
  explicit DebugConsole(Console& output) : output_(output) {}
  std::string_view name() const override { return "debug-console"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  Console& output_;
};

// The 8042 without a keyboard: status says idle, command FEh resets the machine.
class KeyboardController final : public Device {
 public:
  static constexpr std::uint16_t kCommandPort = 0x64;
  static constexpr std::uint8_t kReset = 0xfe;

  explicit KeyboardController(SystemControl& system) : system_(system) {}
  std::string_view name() const override { return "keyboard-controller"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  SystemControl& system_;
};

// fw_cfg's port interface: a selector at 510h, a byte stream at 511h. Keys that do not exist read
// as zeroes.
class FwCfg final : public Device {
 public:
  FwCfg(std::uint64_t memory_bytes, unsigned cpu_count);
  std::string_view name() const override { return "fw-cfg"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  struct Item {
    std::uint16_t key;
    std::string data;
  };
  const std::string& Selected() const;

  std::vector<Item> items_;
  std::mutex mutex_;
  std::uint16_t key_ = 0;
  std::size_t next_ = 0;
};

// Port 92h: bit 0 resets the machine; bit 1 is the A20 gate, which is always open.
class SystemControlPort final : public Device {
 public:
  explicit SystemControlPort(SystemControl& system) : system_(system) {}
  std::string_view name() const override { return "system-control-port"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  SystemControl& system_;
};

}  // namespace pagesaw
