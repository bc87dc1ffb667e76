"""Small runs for the tests of training: commands as a user types them, and their results."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.faults.commands import SMALL_MODEL
from mmrec_jax.config import Config, from_mapping
from mmrec_jax.runs.workdir import open_run

ROOT = Path(__file__).parent.parent

SMALL = SMALL_MODEL | {
    "data.sample_chars": 2000,
    "train.seq_len": 32,
    "train.warmup_steps": 5,
    "train.checkpoint_every": 20,
    "train.num_epochs": 2,
    "mesh.data": 1,
}


def config(**overrides) -> Config:
    """The tiny config made small; `train__patience=1` overrides train.patience."""
    from configs import tiny

    mapping = tiny.get_config()
    for key, value in {**SMALL, **{k.replace("__", "."): v for k, v in overrides.items()}}.items():
        section, name = key.split(".")
        mapping[section][name] = value
    return from_mapping(mapping)


def command(script: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *flags]


def train_flags(workdir: Path, **overrides) -> list[str]:
    knobs = {**SMALL, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return [
        f"--config={ROOT / 'configs/tiny.py'}",
        f"--workdir={workdir}",
        "--noreport",
        *(f"--config.{key}={value}" for key, value in knobs.items()),
    ]


def environment() -> dict[str, str]:
    """That of the tests, whose compiled programs the command shares (conftest.py)."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def run(script: str, *flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(script, *flags),
        env=environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_error_line(result: subprocess.CompletedProcess) -> str:
    """The error line of a failed command, which must not print a traceback."""
    assert result.returncode != 0
    (line,) = without_waiting(result.stderr).splitlines()
    assert line.startswith("error: "), result.stderr
    assert "Traceback" not in result.stdout
    return line


def without_waiting(stderr: str) -> str:
    """What a command has printed besides what it was waiting for, which only slow machines show."""
    return re.sub("^(reading|evaluating|preparing|writing) .*\n", "", stderr, flags=re.MULTILINE)


def final_params(workdir: Path) -> list[np.ndarray]:
    opened = open_run(workdir)
    params = opened.params(opened.checkpoints.resolve("final"))
    return [np.asarray(x) for x in jax.tree.leaves(params)]
