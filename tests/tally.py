#!/usr/bin/env python3
"""Counts the single cases in meson's testlog.json: prints "passed failed skipped".

cmocka writes a line a case; under mpirun every rank writes its own, so a case counts once and fails if it failed on any
rank. A test that writes no such line counts as one case. A program that fails without naming a failed case (a crash, a
time-out) is a failed case of its own.
"""
import json
import re
import sys

CASE = re.compile(r"\[ +(OK|FAILED|SKIPPED) +\] (\S+)\s*$", re.M)


def count(test):
    cases = {}
    for outcome, name in CASE.findall(test.get("stdout", "") + "\n" + test.get("stderr", "")):
        if outcome == "FAILED" or cases.get(name) != "FAILED":
            cases[name] = outcome
    outcomes = list(cases.values()) or ["OK" if test["result"] == "OK" else "SKIPPED" if test["result"] == "SKIP" else "FAILED"]
    if test["result"] not in ("OK", "SKIP", "EXPECTEDFAIL") and "FAILED" not in outcomes:
        outcomes.append("FAILED")
    return [outcomes.count(kind) for kind in ("OK", "FAILED", "SKIPPED")]


def main():
    totals = [0, 0, 0]
    try:
        with open(sys.argv[1], encoding="utf-8") as log:
            for line in log:
                totals = [a + b for a, b in zip(totals, count(json.loads(line)))]
    except OSError as error:
        print(f"tally.py: {error}", file=sys.stderr)  # no log at all: the tests did not run
        totals[1] += 1
    print(*totals)
    sys.exit(totals[1] > 0)


if __name__ == "__main__":
    main()
