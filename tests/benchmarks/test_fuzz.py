"""Damaged files of every kind are read or refused, and nothing else happens."""

import subprocess
import sys

import pytest

from benchmarks.fuzz.readers import READERS
from small_runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_of_damaged_files(reader):
    command = [sys.executable, "-m", "benchmarks.fuzz", f"--reader={reader}", "--count=1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
