import unittest

import vendor_words


class VendorWords(unittest.TestCase):

    def test_structures_are_found_in_identifiers(self):
        for name in ("Vmcs", "kVmcb", "vmcs12", "read_eptp", "EPTP", "EptPointer", "nested_cr3",
                     "nCr3", "kExitQualification", "exit_info_1", "host_save_area", "VmcbCleanBits"):
            self.assertTrue(vendor_words.names_vendor(name), name)

    def test_other_words_are_not(self):
        for name in ("InterceptPort", "kVmclear", "kNpt", "nested_paging", "exit", "ExitReason",
                     "cr3", "qualification", "kept", "accept_pointer"):
            self.assertFalse(vendor_words.names_vendor(name), name)

    def test_comments_and_texts_are_free(self):
        text = '// EPTP\nint a; /* VMCS\n VMCB */ const char* b = "VMCB \\" EPTP";\nint eptp;\n'
        self.assertEqual(vendor_words.check("mmu/a.cc", text),
                         ["mmu/a.cc:4: 'eptp' names a vendor's structure"])

    def test_plugins_and_tests_are_free(self):
        for name in ("plugins/vmx/a.cc", "mmu/a_test.cc", "tests/a.cc"):
            self.assertEqual(vendor_words.check(name, "int vmcs;"), [])


if __name__ == "__main__":
    unittest.main()
