import unittest

import test_report

XML = """<testsuites><testsuite name="Zap">
<testcase name="A" status="run"/><testcase name="B" status="run"><failure message="x"/></testcase>
<testcase name="C" status="notrun"/><testcase name="D" status="run"><skipped message=""/></testcase>
</testsuite></testsuites>"""
PASSING_XML = "<testsuites><testsuite><testcase name='A' status='run'/></testsuite></testsuites>"


def result(label, status, uri="", attempt=1):
    return {
        "id": {"testResult": {"label": label, "run": 1, "shard": 1, "attempt": attempt}},
        "testResult": {"status": status, "testActionOutput": [{"name": "test.xml", "uri": uri}]},
    }


def configured(label):
    return {"id": {"targetConfigured": {"label": label}}, "configured": {"testSize": "SMALL"}}


def completed(label, success):
    return {"id": {"targetCompleted": {"label": label}}, "completed": {"success": True} if success else {}}


def summarize(*events):
    files = {"mixed": XML, "passing": PASSING_XML}

    def read(uri):
        if uri not in files:
            raise OSError(uri)
        return files[uri]

    return test_report.summarize(events, read)


class TestReport(unittest.TestCase):
    def test_counts_cases(self):
        self.assertEqual(summarize(result("//a:t", "FAILED", "mixed")), [1, 1, 2])

    def test_crash_without_report_is_one_failure(self):
        self.assertEqual(summarize(result("//a:t", "FAILED", "gone")), [0, 1, 0])

    def test_timeout_fails_though_its_cases_passed(self):
        self.assertEqual(summarize(result("//a:t", "TIMEOUT", "passing")), [1, 1, 0])

    def test_last_attempt_counts(self):
        events = [result("//a:t", "FAILED", "mixed"), result("//a:t", "PASSED", "passing", attempt=2)]
        self.assertEqual(summarize(*events), [1, 0, 0])

    def test_target_that_did_not_build_fails(self):
        self.assertEqual(summarize(completed("//a:lib", False)), [0, 1, 0])
        self.assertEqual(summarize(configured("//a:t"), completed("//a:t", False)), [0, 1, 0])

    def test_test_without_a_result_fails(self):
        events = [configured("//a:t"), completed("//a:t", True)]
        self.assertEqual(summarize(*events), [0, 1, 0])
        self.assertEqual(summarize(*events, result("//a:t", "PASSED", "passing")), [1, 0, 0])

    def test_broken_package_fails(self):
        self.assertEqual(summarize({"id": {"pattern": {"pattern": ["//..."]}}, "aborted": {}}), [0, 1, 0])


if __name__ == "__main__":
    unittest.main()
