"""How far the losses differ when a run goes on elsewhere: on other cores, or with other libraries.

    python -m benchmarks.faults.elsewhere                                  # on one core
    python -m benchmarks.faults.elsewhere --python=other/bin/python        # in another environment

It trains tiny for 30 steps, resumes a copy of that run from step 10, and compares.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from benchmarks.faults.commands import ROOT, train_flags
from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError
from mmrec_jax.runs.metrics import read_metrics

_PYTHON = flags.DEFINE_string("python", None, "Resumes with this; the default is one core.")
RESUMED, STEPS = 10, 30
KNOBS = {"train.num_steps": STEPS, "train.warmup_steps": 5, "train.checkpoint_every": RESUMED}


def train(folder: Path, *python: str) -> list[float]:
    """The losses of all steps.

    Raises:
        UserError: it has failed.
    """
    command = [*python, "train.py", *train_flags("tiny", KNOBS, folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} has failed: {done.stderr[-500:]}")
    return [line["loss"] for line in read_metrics(folder / "run", "train")]


def main():
    elsewhere = [_PYTHON.value] if _PYTHON.value else ["taskset", "-c", "0", sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "here", Path(folder) / "there"
        losses = train(here, sys.executable)
        shutil.copytree(here, there)
        for checkpoint in (there / "run/checkpoints").glob("[0-9]*"):
            if int(checkpoint.name) > RESUMED:
                shutil.rmtree(checkpoint)
        others = train(there, *elsewhere)
    furthest = max(abs(x - y) for x, y in zip(losses, others, strict=True))
    print(f"resumed at step {RESUMED} by {' '.join(elsewhere)}:")
    print(f"the losses up to step {STEPS} differ by {furthest:.1e} nats at most")


if __name__ == "__main__":
    cli.run(main, cached=False)
