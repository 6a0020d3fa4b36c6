// Where the interrupt lines of a PC's devices go: to the PICs and to the I/O APIC at once.
module;
export module pagesaw.machine.interrupt_router;

import pagesaw.machine.device;
import pagesaw.machine.io_apic;
import pagesaw.machine.pic;

export namespace pagesaw {

class InterruptRouter final : public InterruptSink {
 public:
  // Both outlive the router.
  InterruptRouter(Pic& pic, IoApic& io_apic) : pic_(pic), io_apic_(io_apic) {}

  // `irq` 0 to 15 as on the PICs; above, pins of the I/O APIC alone. IRQ 0 is pin 2, as on every PC
  // since there are I/O APICs; the MADT says so.
  void SetIrq(unsigned irq, bool level) override {
    if (irq < 16 && irq != 2) pic_.SetIrq(irq, level);
    io_apic_.SetPin(irq == 0 ? 2 : irq, level);
  }

 private:
  Pic& pic_;
  IoApic& io_apic_;
};

}  // namespace pagesaw
