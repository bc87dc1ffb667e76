"""A short storm, with each fault once, and runs that are long or go on elsewhere."""

import re
import shutil
import subprocess
import sys

import pytest

from benchmarks.faults.commands import COMMANDS
from benchmarks.faults.injection import FAULTS
from small_runs import ROOT

pytestmark = pytest.mark.slow


def printed(module: str, *flags: str) -> str:
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("cc"), reason="the disk that fails is made by a C compiler")
def test_small_commands_survive_each_fault():
    count = max(len(COMMANDS), len(FAULTS))
    printed("benchmarks.faults", f"--count={count}", "--seed=1")


def test_a_long_run_does_not_grow():
    output = printed("benchmarks.faults.long_run", "--steps=40000")
    rows = re.findall(r"^ +([\d,]+) +([\d.]+) +(\d+) +(\d+) ", output, re.MULTILINE)
    memory = [float(row[1]) for row in rows]
    assert len(rows) >= 2
    assert memory[-1] < 1.1 * memory[0]


def test_a_run_that_goes_on_elsewhere_has_nearly_the_same_losses():
    difference = re.search(r"differ by (\S+) nats", printed("benchmarks.faults.elsewhere"))
    assert float(difference[1]) < 1e-5
