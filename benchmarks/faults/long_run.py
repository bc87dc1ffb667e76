"""A long run of a minute model: what grows with the number of steps.

    python -m benchmarks.faults.long_run                  # 200,000 steps
    python -m benchmarks.faults.long_run --steps=20000

The run is stopped and given again near its beginning and near its end, to time how it resumes. The
table has the process and its files at some steps: memory in use, open files, threads, bytes of log
and of TensorBoard files per step, the median time of the last thousand steps, and seconds from the
start of the command to its first step.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from absl import flags

from benchmarks.faults.commands import ROOT, SAMPLE, SMALL, train_flags
from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError
from mmrec_jax.runs.metrics import last_lines
from mmrec_jax.tables import print_table

_STEPS = flags.DEFINE_integer("steps", 200_000, "Steps.", lower_bound=10_000)
THOUSAND = 1_000
LONG = {
    "train.checkpoint_every": 1_000,
    "train.log_every": 1_000,
    "train.eval_every": 1_000,
    "train.patience": 0,
}


class Seen(NamedTuple):
    """A running process at a step."""

    step: int
    memory: int  # bytes
    files: int
    threads: int
    log: int  # bytes
    events: int  # bytes
    step_seconds: float  # median of the last thousand


class Run:
    """A training run in a folder, one process after the other."""

    def __init__(self, folder: Path, steps: int):
        self.path = folder / "run"
        knobs = SMALL | SAMPLE | LONG | {"train.num_steps": steps}
        self._command = [sys.executable, "train.py", *train_flags("tiny", knobs, folder)]

    def until(self, step: int, milestones: list[int]) -> tuple[float, list[Seen]]:
        """Starts the command, and stops it after a step unless that is its last.

        Returns:
            seconds to the first step, and what was seen at the milestones.

        Raises:
            UserError: it has failed.
        """
        seen, before, begin = [], last_step(self.path), time.perf_counter()
        to_first = 0.0
        process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None:
            time.sleep(0.02 if not to_first else 0.2)
            at = last_step(self.path)
            if not to_first and at > before:
                to_first = time.perf_counter() - begin
            while milestones and at >= milestones[0]:
                milestones.pop(0)
                seen.append(look(process.pid, self.path, at))
            if at >= step:
                process.send_signal(signal.SIGTERM)
                process.wait()
        if process.returncode not in (0, 128 + signal.SIGTERM):
            raise UserError(f"the run has failed: {process.stderr.read()[-500:]}")
        return to_first, seen


def look(pid: int, path: Path, step: int) -> Seen:
    """What can be seen of a process from outside."""
    status = Path(f"/proc/{pid}/status").read_text().split()
    seconds = []
    for line in last_lines(path, 2**20):
        if line["kind"] == "train":
            seconds.append(
                SMALL["train.batch_size"] * SMALL["train.seq_len"] / line["tokens_per_second"]
            )
    return Seen(
        step,
        1024 * int(status[status.index("VmRSS:") + 1]),
        len(os.listdir(f"/proc/{pid}/fd")),
        int(status[status.index("Threads:") + 1]),
        (path / "metrics.jsonl").stat().st_size,
        sum(x.stat().st_size for x in (path / "tensorboard").iterdir()),
        statistics.median(seconds[-THOUSAND:]),
    )


def last_step(path: Path) -> int:
    """The last step in the log of a run; 0 if there is none."""
    return max((line["step"] for line in last_lines(path, 2**12)), default=0)


def main():
    steps, early = _STEPS.value, 2 * THOUSAND
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), steps)
        fresh, _ = run.until(early, [])
        shares = [int(steps * share) for share in (0.1, 0.25, 0.5, 0.75)]
        milestones = sorted({early + THOUSAND, *shares, steps - THOUSAND})
        resumed, seen = run.until(steps - THOUSAND, milestones)
        at_end, _ = run.until(steps, [])
    rows = []
    for x in seen:
        rows.append(
            (
                f"{x.step:,}",
                f"{x.memory / 1e6:,.0f}",
                f"{x.files}",
                f"{x.threads}",
                f"{x.log / x.step:.0f}",
                f"{x.events / x.step:.0f}",
                f"{1000 * x.step_seconds:.3f}",
            )
        )
    names = ("step", "MB", "files", "threads", "log B", "events B", "ms per step")
    print_table(names, rows)
    print(
        f"to the first step: {fresh:.1f} s when new, {resumed:.1f} s from step {early:,}, "
        f"{at_end:.1f} s near the end"
    )


if __name__ == "__main__":
    cli.run(main, cached=False)
