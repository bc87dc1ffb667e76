"""A storm: hits small commands with faults at random moments, and gives them again.

    python -m benchmarks.faults --count=300 --seed=0
    python -m benchmarks.faults --seed=0 --case=17 --folder=storm    # repeats one, and keeps it

A case passes if the command ends well or with one line, and the same command, given again, ends
with the bits of an undisturbed one, or says what is lost. Each case has a folder of its own with a
workdir and a cache, in which there are compiled programs, but no corpus. It needs Linux and cc.
"""

import collections
import concurrent.futures
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks.faults.commands import COMMANDS
from benchmarks.faults.injection import FAULTS
from benchmarks.faults.storm import OUTCOMES, Storm
from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError
from mmrec_jax.tables import print_table

_COUNT = flags.DEFINE_integer("count", 300, "Number of cases.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all cases.")
_CASE = flags.DEFINE_multi_integer("case", [], "Repeats only this one; may be repeated.")
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count(), "Cases at a time.", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", None, "Where cases that fail are kept.")


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's "&" turns off
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(_FOLDER.value or temporary)
        root.mkdir(parents=True, exist_ok=True)
        numbers = _CASE.value or range(_COUNT.value)
        storm, begin = Storm(root, _SEED.value, numbers), time.perf_counter()
        cases = []
        with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
            for case in pool.map(storm.case, numbers):
                cases.append(case)
                if len(cases) % 10 == 0:
                    print(f"{len(cases):,} of {len(numbers):,} cases", file=sys.stderr, flush=True)
                if case.problem:
                    print(
                        f"case {case.number}, {case.command}, {case.fault}: {case.problem}\n"
                        f"  python -m benchmarks.faults --seed={_SEED.value} --case={case.number}",
                        flush=True,
                    )
        minutes = (time.perf_counter() - begin) / 60
    _print("fault", list(FAULTS), [(case.fault, case.outcome) for case in cases])
    _print("command", list(COMMANDS), [(case.command, case.outcome) for case in cases])
    print(f"seed {_SEED.value}, {minutes:.0f} minutes")
    if failed := [case for case in cases if case.problem]:
        raise UserError(f"{len(failed):,} of {len(cases):,} cases failed")


def _print(head: str, names: list[str], cases: list[tuple[str, str]]) -> None:
    counts = collections.Counter(cases)
    rows = []
    for name in names:
        row = [counts[name, outcome] for outcome in OUTCOMES]
        if any(row):
            rows.append((name, *(f"{x:,}" for x in (sum(row), *row))))
    total = [sum(outcome == x for _, x in cases) for outcome in OUTCOMES]
    rows += [(), ("", *(f"{x:,}" for x in (len(cases), *total)))]
    print_table((head, "cases", *OUTCOMES), rows, wide=True)


if __name__ == "__main__":
    cli.run(main, cached=False)
