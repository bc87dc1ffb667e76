"""A short storm, with each fault once; `python -m benchmarks.faults` has more."""

import shutil
import subprocess
import sys

import pytest

from benchmarks.faults.commands import COMMANDS
from benchmarks.faults.injection import FAULTS
from small_runs import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="the disk that fails is made by a C compiler")
def test_small_commands_survive_each_fault():
    count = max(len(COMMANDS), len(FAULTS))
    storm = [sys.executable, "-m", "benchmarks.faults", f"--count={count}", "--seed=1"]
    done = subprocess.run(storm, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
