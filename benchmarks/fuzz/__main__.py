"""Gives each reader thousands of damaged files: it reads them or refuses them, and does no more.

    python -m benchmarks.fuzz
    python -m benchmarks.fuzz --reader=tokenizer --first=17 --count=1    # repeats one case

A case is a file that a run, a corpus or a session really has, changed at random: bits, pieces, and
values of JSON; its number is the seed. Checksums are left out or made anew, so that the readers
behind them see the damage. A case passes if the reader returns, or raises an error for the user
(`UserError` or `Damaged`), within LONGEST seconds and MEMORY bytes more than before (worker.py),
and opens no file outside of the case's folder, starts no process and connects to nothing. Readers
run in processes of their own, which are started again after a crash.
"""

import collections
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks.fuzz.readers import READERS, Reader
from benchmarks.fuzz.worker import work
from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError
from mmrec_jax.tables import print_table

_READER = flags.DEFINE_multi_enum("reader", list(READERS), list(READERS), "Readers to try.")
_COUNT = flags.DEFINE_integer("count", 2_000, "Cases of a fast reader.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first", 0, "Number of the first case.", lower_bound=0)
_WORKER = flags.DEFINE_string("worker", None, "The folder of the files; only for internal use.")


def main():
    if _WORKER.value:
        (name,) = _READER.value
        work(READERS[name], Path(_WORKER.value), _FIRST.value, _COUNT.value)
        return
    rows, failures = [], []
    for name in _READER.value:
        reader, start = READERS[name], time.perf_counter()
        count = max(1, round(_COUNT.value * reader.share))
        outcomes, failed = _try(name, reader, count)
        seconds = time.perf_counter() - start
        rows.append((name, *(f"{x:,}" for x in (count, *outcomes, len(failed))), f"{seconds:.0f}"))
        failures += failed
        for failure in failed[:5]:
            print(failure, flush=True)
    print_table(("reader", "cases", "read", "refused", "failed", "seconds"), rows)
    if failures:
        raise UserError(f"{len(failures):,} cases failed")


def _try(name: str, reader: Reader, count: int) -> tuple[tuple[int, int], list[str]]:
    """How many cases were read, and refused; and what happened in the others."""
    number, outcomes, failed = _FIRST.value, collections.Counter(), []
    end = number + count
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        made.mkdir()
        reader.prepare(made)
        while number < end:
            files = Path(folder, "files")
            shutil.rmtree(files, ignore_errors=True)
            shutil.copytree(made, files)
            command = [sys.executable, "-m", "benchmarks.fuzz", f"--reader={name}"]
            command += [f"--worker={files}", f"--first={number}", f"--count={end - number}"]
            worker = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = worker.stdout.splitlines()
            for case, line in zip(lines[::2], lines[1::2], strict=False):
                file, outcome = json.loads(line)
                outcomes[outcome] += 1
                if outcome not in ("read", "refused"):
                    failed.append(f"{name} {case} ({file}): {outcome[:300]}")
            if not lines:
                raise UserError(f"the reader {name} cannot be run: {worker.stderr[-300:]}")
            number = int(lines[-1 if len(lines) % 2 else -2]) + 1
            if len(lines) % 2:
                failed.append(f"{name} {number - 1}: ended with {worker.returncode}")
    return (outcomes["read"], outcomes["refused"]), failed


if __name__ == "__main__":
    cli.run(main, cached=False)
