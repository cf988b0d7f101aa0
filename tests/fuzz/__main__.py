"""Fuzz one of the four for a time. Cases run in forked processes, so that a crash of one is a finding as well."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzz.guard import SECONDS, Finding, Guard
from tests.fuzz.targets import TARGETS, Case

BATCH = 100
METHODS = ("dora", "ia3", "bitfit", "layer-norm", "bottleneck", "full", "prompt", "prefix", "lora-bias")


def cases(make: Case, folder: Path, seed: int, numbers: range, until: float, report: Path) -> None:
    """Run cases one after the other; the report has a line before each and one after."""
    guard = Guard(folder)
    with report.open("a") as out:
        for number in numbers:
            if time.monotonic() > until:
                break
            place = folder / "case"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            out.write(json.dumps({"begun": number}) + "\n")
            out.flush()
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
            use = make(random.Random(f"{seed}-{number}"), place)
            try:
                result = {"outcome": guard.run(use)}
            except Finding as finding:
                cause = finding.__cause__
                result = {"finding": str(finding), "trace": "".join(traceback.format_exception(cause)) if cause else ""}
            faulthandler.cancel_dump_traceback_later()
            out.write(json.dumps({"ended": number, "slowest": guard.slowest, **result}) + "\n")
            out.flush()


def fuzz(
    target: str, bundle: Path, seconds: float, seed: int, folder: Path, first: int = 0, most: int = 1 << 60
) -> int:
    """Run until the time is over; returns the number of findings, which are printed."""
    begun_at, outside = time.monotonic(), folder / "outside"
    outside.mkdir()
    (outside / "secret.bin").write_bytes(b"secret")
    os.environ["FUZZ_OUTSIDE"] = str(outside)
    until, number, done, findings = time.monotonic() + seconds, first, Counter[str](), Counter[str]()
    slowest = 0.0
    while time.monotonic() < until and number < first + most:
        report = folder / "report.jsonl"
        report.unlink(missing_ok=True)
        numbers = range(number, min(number + BATCH, first + most))
        child = os.fork()
        if not child:
            try:
                inside = folder / "inside"
                shutil.rmtree(inside, ignore_errors=True)
                inside.mkdir()
                copy = Path(shutil.copytree(bundle, inside / "base.edgelora"))
                warnings.simplefilter("ignore")
                cases(TARGETS[target](copy), inside, seed, numbers, until, report)
            except BaseException:
                traceback.print_exc()
                os._exit(3)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        begun = [line["begun"] for line in lines if "begun" in line]
        for line in lines:
            slowest = max(slowest, line.get("slowest", 0.0))
            if "outcome" in line:
                done[line["outcome"] or "used"] += 1
            elif "finding" in line:
                findings[line["finding"]] += 1
                if findings[line["finding"]] == 1:
                    print(f"case {line['ended']}: {line['finding']}\n{line['trace']}", flush=True)
        if status:
            findings[f"the process ended with status {status}"] += 1
            print(f"case {begun[-1] if begun else number}: the process ended with status {status}", flush=True)
        if [p.read_bytes() for p in sorted(outside.iterdir())] != [b"secret"]:
            findings["the folder outside was changed"] += 1
            print(f"cases {numbers}: the folder outside was changed", flush=True)
            break
        if not begun:
            print("no case was begun", flush=True)
            return 1
        number = begun[-1] + 1
    seconds = min(seconds, time.monotonic() - begun_at)
    outcomes = ", ".join(f"{name} {count}" for name, count in done.most_common())
    print(
        f"{target}: {sum(done.values()):,} cases in {seconds:.0f} s, seed {seed}: {outcomes}; slowest {slowest:.1f} s"
    )
    print(f"findings: {sum(findings.values())}")
    return sum(findings.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="begin with this one")
    parser.add_argument("--cases", type=int, default=1 << 60, metavar="N", help="so many at most")
    parser.add_argument("--bundle", type=Path, help="a bundle of tests/device/tiny.py (it is made otherwise)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edgelora-fuzz-"))
    try:
        bundle = options.bundle or folder / "tiny.edgelora"
        if options.bundle is None:
            from tests.kills import make_bundle

            make_bundle(bundle, methods=METHODS)
        found = fuzz(options.target, bundle, options.seconds, options.seed, folder, options.first, options.cases)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
