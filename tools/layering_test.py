import unittest

import layering

GRAPH = """digraph mygraph {
  node [shape=box];
  "//cpu:cpu" -> "//core:address"
  "//core:address" -> "//mmu:walker"
}
"""


class LayeringTest(unittest.TestCase):
    def refused(self, source, target):
        return bool(layering.check([(source, target)]))

    def test_upward_edge_of_a_graph_is_refused(self):
        refused = layering.check(layering.parse(GRAPH.splitlines()))
        self.assertEqual(len(refused), 1)
        self.assertIn("//core:address -> //mmu:walker", refused[0])

    def test_every_upward_pair_is_refused_and_every_downward_one_is_not(self):
        for low, row in enumerate(layering.LAYERS):
            for upper_row in layering.LAYERS[low + 1:]:
                for below in row:
                    for above in upper_row:
                        self.assertTrue(self.refused("//%s:a" % below, "//%s:b" % above))
                        self.assertTrue(self.refused("//%s:a_test" % below, "//%s/sub:b" % above))
                        self.assertFalse(self.refused("//%s:a" % above, "//%s:b" % below))

    def test_plugins_do_not_see_one_another(self):
        self.assertTrue(self.refused("//plugins/vmx:ept", "//plugins/svm:npt"))
        self.assertTrue(self.refused("//plugins/mbec:mbec", "//plugins/vmx:ept"))
        self.assertFalse(self.refused("//plugins/vmx:ept_test", "//plugins/vmx:ept"))

    def test_core_uses_std_alone(self):
        self.assertTrue(self.refused("//core:address", "//third_party:absl_status"))
        self.assertFalse(self.refused("//core:address_test", "//third_party:gtest_main"))
        self.assertFalse(self.refused("//mmu:walker", "//third_party:absl_status"))

    def test_only_control_uses_rpc(self):
        for library in ("grpc", "grpc++", "protobuf"):
            self.assertTrue(self.refused("//machine:vm", "//third_party:" + library))
            self.assertFalse(self.refused("//control:pagesawd", "//third_party:" + library))

    def test_layers_do_not_see_tests_or_tools(self):
        self.assertTrue(self.refused("//mmu:walker", "//tests:helpers"))
        self.assertTrue(self.refused("//machine:vm", "//guests:hello"))
        self.assertFalse(self.refused("//machine:vm_test", "//guests:hello"))
        self.assertFalse(self.refused("//tests:spans_all", "//control:pagesawd"))

    def test_package_default_target_and_foreign_labels(self):
        self.assertTrue(self.refused("//core", "//mmu"))
        self.assertFalse(self.refused("//core:a", "@bazel_tools//tools/cpp:toolchain"))


if __name__ == "__main__":
    unittest.main()
