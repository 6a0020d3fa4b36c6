// A 16550 UART whose line is the VM's console. [ns/16550d] "PC16550D UART with FIFOs"
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string_view>
export module pagesaw.machine.uart;

import pagesaw.machine.console;
import pagesaw.machine.device;

export namespace pagesaw {

class Uart final : public Device {
 public:
  static constexpr std::size_t kInputMaxBytes = 4096;

  // Answers on 8 ports from `first_port`, raises `irq` of `interrupts`, prints to `output`.
  Uart(std::uint16_t first_port, unsigned irq, InterruptSink& interrupts, Console& output);

  // Queues what is sent on the line. False, and nothing queued, if there is no room for all of it.
  // The sender minds RTS: while a guest that has set up the modem control has it off, nothing
  // arrives, so what is typed while a guest boots is not lost in its driver's set-up.
  bool Receive(std::string_view data);

  std::string_view name() const override { return "uart"; }
  std::span<const BusRange> ranges() const override { return ranges_; }
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  std::uint8_t ReadRegister(unsigned offset);
  void WriteRegister(unsigned offset, std::uint8_t value);
  void Transmit(std::uint8_t value);
  bool LineIsOpen() const;
  bool HasInput() const;
  std::uint8_t TakeInput();
  void ClearReceiver();
  std::uint8_t PendingInterrupt() const;
  void UpdateInterrupt();

  const std::array<BusRange, 1> ranges_;
  const unsigned irq_;
  InterruptSink& interrupts_;
  Console& output_;

  std::mutex mutex_;
  std::deque<std::uint8_t> line_;           // sent to the guest, not yet taken
  std::deque<std::uint8_t> loopback_;       // received from the guest's own transmitter
  bool request_to_send_ = true;             // as firmware left it
  bool transmitter_empty_pending_ = false;  // THR became empty, and nobody has been told
  std::uint16_t divisor_ = 1;
  std::uint8_t interrupt_enable_ = 0;
  std::uint8_t fifo_control_ = 0;
  std::uint8_t line_control_ = 3;
  std::uint8_t modem_control_ = 0;
  std::uint8_t scratch_ = 0;
};

}  // namespace pagesaw
