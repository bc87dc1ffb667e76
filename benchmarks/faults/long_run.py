"""A long run of a minute model: what grows with the number of steps.

    python -m benchmarks.faults.long_run                  # 200,000 steps
    python -m benchmarks.faults.long_run --steps=40000

The run is stopped and given again near its beginning and near its end, to time how it resumes. The
table has the process and its files at some steps, the first after a checkpoint: memory in use, open
files, threads, bytes of log and of TensorBoard files per step, and the median time of the last
thousand steps. Near the end, the process takes turns with one of a new run, to compare their speed.
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

_STEPS = flags.DEFINE_integer("steps", 200_000, "Steps.", lower_bound=40_000)
_CHECKPOINT_EVERY = flags.DEFINE_integer("checkpoint_every", 10_000, "Steps.", lower_bound=1)
THOUSAND = 1_000
TURNS, TURN = 50, 200  # number, and steps
LONG = {
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

    def __init__(self, folder: Path, knobs: dict):
        folder.mkdir()
        self.path = folder / "run"
        self._command = [sys.executable, "train.py", *train_flags("tiny", knobs, folder)]

    def start(self) -> float:
        """Starts the command, and returns the seconds to its first step."""
        before, begin = last_step(self.path), time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.wait_for(before + 1)
        return time.perf_counter() - begin

    def wait_for(self, step: int) -> None:
        """Returns when the step is logged, or the command has ended.

        Raises:
            UserError: it has failed.
        """
        while self._process.poll() is None and last_step(self.path) < step:
            time.sleep(0.05)
        if self._process.returncode not in (None, 0, 128 + signal.SIGTERM):
            raise UserError(f"the run has failed: {self._process.stderr.read()[-500:]}")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """Stops the command, once it has saved its state."""
        self.send(signal.SIGTERM)
        self._process.wait()
        self.wait_for(0)

    def look(self) -> "Seen":
        """What can be seen of the process from outside."""
        pid = self._process.pid
        status = Path(f"/proc/{pid}/status").read_text().split()
        return Seen(
            last_step(self.path),
            1024 * int(status[status.index("VmRSS:") + 1]),
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status[status.index("Threads:") + 1]),
            (self.path / "metrics.jsonl").stat().st_size,
            sum(x.stat().st_size for x in (self.path / "tensorboard").iterdir()),
            self.step_seconds(),
        )

    def step_seconds(self, steps: int = THOUSAND) -> float:
        """The median of the last steps."""
        tokens = SMALL["train.batch_size"] * SMALL["train.seq_len"]
        lines = last_lines(self.path, 2**20)
        speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
        return tokens / statistics.median(speeds[-steps:])


def last_step(path: Path) -> int:
    """The last step in the log of a run; 0 if there is none."""
    return max((line["step"] for line in last_lines(path, 2**12)), default=0)


def in_turns(old: Run, young: Run) -> list[tuple[float, float]]:
    """Seconds per step of a process that has run for long, and of a new one.

    The speed of a machine changes, so they take short turns; the other one is halted.
    """
    old.send(signal.SIGSTOP)
    young.start()
    young.wait_for(2 * THOUSAND)
    young.send(signal.SIGSTOP)
    pairs = []
    for _ in range(TURNS):
        pair = []
        for run in (old, young):
            run.send(signal.SIGCONT)
            run.wait_for(last_step(run.path) + TURN)
            run.send(signal.SIGSTOP)
            pair.append(run.step_seconds(TURN))
        pairs.append(tuple(pair))
    old.send(signal.SIGCONT)
    young.send(signal.SIGCONT)
    young.stop()
    return pairs


def main():
    steps, early = _STEPS.value, 2 * THOUSAND
    every = {"train.checkpoint_every": _CHECKPOINT_EVERY.value}
    knobs = SMALL | SAMPLE | LONG | every | {"train.num_steps": steps}
    shares = [int(steps * share) for share in (0.1, 0.25, 0.5, 0.75)]
    with tempfile.TemporaryDirectory() as folder:
        old, young = (Run(Path(folder) / name, knobs) for name in ("old", "young"))
        fresh = old.start()
        old.wait_for(early)
        old.stop()
        resumed, seen = old.start(), []
        first, last = early + every["train.checkpoint_every"] + THOUSAND, steps - 2 * TURNS * TURN
        for step in sorted({first, *(x for x in shares if first < x < last), last}):
            old.wait_for(step)
            seen.append(old.look())
        pairs = in_turns(old, young)
        old.stop()
        at_end = old.start()
        old.wait_for(steps)
        old.stop()
    rows = []
    for x in seen:
        rows.append(
            (
                f"{x.step:,}",
                f"{x.memory / 1e6:,.1f}",
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
    low, middle, high = statistics.quantiles([old / young for old, young in pairs], n=4)
    print(
        f"time per step near the end, in {TURNS} turns with a new run: {middle:.3f} of that of the "
        f"new one (half of the turns: {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    cli.run(main, cached=False)
