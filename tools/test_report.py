"""Counts test cases of one `bazel test` from its build events and the test.xml files they name.

Usage: test_report.py EVENTS_FILE BAZEL_EXIT_STATUS
"""

import json
import sys
import urllib.parse
import xml.etree.ElementTree

PASSED, FAILED, SKIPPED = range(3)


def count_cases(xml_text):
    """Returns [passed, failed, skipped] of one test.xml."""
    counts = [0, 0, 0]
    for case in xml.etree.ElementTree.fromstring(xml_text).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            counts[FAILED] += 1
        elif case.get("status") == "notrun" or case.find("skipped") is not None:
            counts[SKIPPED] += 1
        else:
            counts[PASSED] += 1
    return counts


def count_result(result, read):
    """Counts one run of one target; `read` gives the text of a URI."""
    ok = result.get("status") in ("PASSED", "FLAKY")
    counts = [0, 0, 0]
    for output in result.get("testActionOutput", []):
        if output.get("name") == "test.xml":
            try:
                counts = count_cases(read(output["uri"]))
            except (OSError, xml.etree.ElementTree.ParseError):
                pass
    if not ok and counts[FAILED] == 0:  # crashed, timed out, or wrote no report
        counts[FAILED] = 1
    if ok and sum(counts) == 0:
        counts[PASSED] = 1
    return counts


def summarize(events, read):
    """Returns [passed, failed, skipped] of a build; a target that did not build is a failure."""
    results, tests, failures = {}, set(), set()
    for event in events:
        key = event.get("id", {})
        if "testResult" in key:
            test = key["testResult"]
            # A later attempt at the same shard and run replaces an earlier one.
            results[test["label"], test.get("run"), test.get("shard")] = event.get("testResult", {})
        elif "targetConfigured" in key:
            if "testSize" in event.get("configured", {}):
                tests.add(key["targetConfigured"]["label"])
            elif "aborted" in event:
                failures.add(key["targetConfigured"]["label"])
        elif "targetCompleted" in key:
            if not event.get("completed", {}).get("success"):
                failures.add(key["targetCompleted"]["label"])
        elif "pattern" in key and "aborted" in event:
            failures.add(str(key["pattern"]))
    totals = [0, 0, 0]
    for result in results.values():
        totals = [a + b for a, b in zip(totals, count_result(result, read))]
    ran = {label for label, _, _ in results}
    totals[FAILED] += len((failures | tests) - ran)
    return totals


def read_uri(uri):
    with open(urllib.parse.unquote(urllib.parse.urlparse(uri).path), encoding="utf-8") as file:
        return file.read()


def main(events_path, bazel_status):
    with open(events_path, encoding="utf-8") as file:
        totals = summarize((json.loads(line) for line in file if line.strip()), read_uri)
    if bazel_status != 0 and totals[FAILED] == 0:
        totals[FAILED] = 1
    line = "%d passed, %d failed" % (totals[PASSED], totals[FAILED])
    if totals[SKIPPED]:
        line += ", %d skipped" % totals[SKIPPED]
    print(line)
    return 1 if totals[FAILED] or bazel_status != 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
