// A processor with SVM on and a control block that VMRUN accepts, for tests.
module;
#include <cstdint>
export module pagesaw.plugins.svm.test_guest;

export import pagesaw.core.fake_virt_host;
export import pagesaw.plugins.svm.unit;
export import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

class TestGuest {
 public:
  static constexpr std::uint64_t kBlock = 0x1000, kIoMap = 0x4000, kMsrMap = 0x8000;

  TestGuest();

  Vmcb vmcb() { return Vmcb(host_.Memory(Gpa(kBlock), kPageBytes)); }
  template <class T>
  void Set(Field<T> field, std::uint64_t value) {
    vmcb().Set(field, value);
  }
  template <class T>
  T Get(Field<T> field) {
    return vmcb().Get(field);
  }
  // A 64-bit guest that everything is right with.
  void Describe();

  bool Execute(VirtInstruction instruction);
  // VMRUN. Whether the guest runs.
  bool EnterGuest();
  // Meets `event` in the guest: its exit code, or 0 if it is not intercepted (no code of ours is).
  std::uint64_t Meet(const InterceptedEvent& event);

 protected:
  FakeVirtHost host_;
  SvmUnit unit_;
};

}  // namespace pagesaw::svm
