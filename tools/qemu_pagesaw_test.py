import importlib.machinery
import importlib.util
import os
import unittest

LOADER = importlib.machinery.SourceFileLoader("qemu_pagesaw", "tools/qemu-pagesaw")
SPEC = importlib.util.spec_from_loader("qemu_pagesaw", LOADER)
qemu_pagesaw = importlib.util.module_from_spec(SPEC)
LOADER.exec_module(qemu_pagesaw)

# What the suite's own runner passes in any case.
RUNNER = ("--no-reboot -nodefaults -global kvm-pit.lost_tick_policy=discard -device pc-testdev "
          "-device isa-debug-exit,iobase=0xf4,iosize=0x4 -display none -serial stdio "
          "-device pci-testdev -machine accel=tcg -kernel x.flat -smp 2").split()


def command(*arguments):
    return qemu_pagesaw.Request(arguments).command("x.flat", "/none")


class QemuPagesawTest(unittest.TestCase):
    def setUp(self):
        os.environ.pop("PAGESAW_VENDOR", None)

    def refusal(self, *arguments):
        with self.assertRaises(qemu_pagesaw.Refusal) as context:
            qemu_pagesaw.Request(arguments)
        return str(context.exception)

    def test_takes_what_the_runner_passes(self):
        got = command(*RUNNER, "-append", "a b", "-initrd", "env", "-m", "2g")
        self.assertIn("--cpus=2", got)
        self.assertIn("--cmdline=a b", got)
        self.assertIn("--initrd=env", got)
        self.assertIn("--memory=%d" % (2 << 30), got)

    def test_models_choose_the_vendor(self):
        for model, vendor in (("max", "intel"), ("qemu64", "intel"), ("max,+svm", "amd"),
                              ("max,vendor=AuthenticAMD", "amd"),
                              ("qemu64,vendor=GenuineIntel", "intel"), ("max,+vmx", "intel")):
            self.assertIn("--vendor=" + vendor, command("-cpu", model), model)

    def test_names_the_model(self):
        for model, ours in (("max", "max"), ("qemu64", "max"), ("Skylake-Server", "skylake-server"),
                            ("IvyBridge,phys-bits=36", "ivy-bridge"), ("EPYC-Milan", "epyc-milan")):
            self.assertIn("--cpu=" + ours, command("-cpu", model), model)
        self.assertIn("Haswell is a model of vendor intel",
                      self.refusal("-cpu", "Haswell,vendor=AuthenticAMD"))

    def test_environment_chooses_where_the_model_does_not(self):
        os.environ["PAGESAW_VENDOR"] = "amd"
        self.assertIn("--vendor=amd", command("-cpu", "max"))
        self.assertIn("--vendor=amd", command("-cpu", "qemu64"))
        self.assertIn("--vendor=intel", command("-cpu", "IvyBridge"))

    def test_translates_feature_names(self):
        got = command("-cpu", "max,+tsc-deadline,-x2apic,pcid=off,host-phys-bits")
        self.assertIn("--cpu_features=+tsc_deadline_timer,-x2apic,-pcid", got)
        got = command("-cpu", "max,+vmx,-vmx-mbec,-vmx-ept")
        self.assertIn("--cpu_features=+vmx,-ept_mode_based_exec,-ept", got)

    def test_takes_away_what_is_not_there(self):
        self.assertIn("--cpu_features=+svm,-rdtscp", command("-cpu", "max,+svm,-rdtscp,-skinit"))
        self.assertIn("--cpu_features=+skinit", command("-cpu", "max,+skinit"))

    def test_passes_the_width_of_addresses_on(self):
        got = command("-cpu", "max,phys-bits=36,host-phys-bits=off")
        self.assertIn("--cpu_features=maxphyaddr=36", got)

    def test_names_what_it_does_not_know(self):
        self.assertIn("--bogus", self.refusal("--bogus"))
        self.assertIn("edu", self.refusal("-device", "edu"))
        self.assertIn("vmport=on", self.refusal("-machine", "vmport=on"))
        self.assertIn("Z80", self.refusal("-cpu", "Z80"))
        self.assertIn("12x", self.refusal("-m", "12x"))
        self.assertIn("iobase", self.refusal("-device", "isa-debug-exit,iobase=0x501"))
        self.assertIn("requires", self.refusal("-kernel"))

    def test_says_how_many_cpus_there_can_be_at_most(self):
        self.assertRegex(self.refusal("-smp", "65"), r"SMP CPUs.* \(64\)$")


if __name__ == "__main__":
    unittest.main()
