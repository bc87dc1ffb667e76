"""What training shows in a terminal, in a log file, and in a profile."""

import gzip
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from mmrec_jax.training import display
from mmrec_jax.training.display import Display, Means, binned, curve, epoch_table
from mmrec_jax.training.loop import train
from mmrec_jax.training.profiling import STEPS
from small_runs import config

ROW = {
    "epoch": 1, "steps": 126, "first": 8.9526, "last": 1.8682, "mean": 4.755, "min": 1.7982,
    "max": 8.9526, "change %": -79.1, "val loss": 1.6261, "perplexity": 5.084, "accuracy": 0.6049,
    "tokens/s": 6_088.0, "seconds": 10.6,
}  # fmt: skip


@pytest.mark.parametrize("width", [50, 80, 100, 140])
def test_the_table_of_epochs_is_no_wider_than_the_terminal(width):
    console = Console(file=io.StringIO(), width=width)
    console.print(epoch_table([ROW, {**ROW, "epoch": 2}], width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3  # nothing wraps
    for name, value in (("mean", "4.7550"), ("val loss", "1.6261"), ("perplexity", "5.084")):
        assert name in lines[0]
        assert value in lines[1]
    assert ("min" in lines[0].split()) == (width == 140)


def test_a_curve_reaches_its_highest_and_lowest_levels():
    values = [math.exp(-x / 20) for x in range(200)]
    line = curve(binned(values, 40))
    assert len(line) == 40
    assert (line[0], line[-1]) == ("█", "▁")
    assert list(line) == sorted(line, reverse=True)
    assert curve([2.0, 2.0]) == "▁▁"
    assert binned([1.0, 2.0], 40) == [1.0, 2.0]


def test_the_curve_of_a_long_run_takes_little_memory():
    means = Means(most=8)
    for value in range(100):
        means.add(value)
    assert means.values == [float(np.mean(range(x, x + 16))) for x in range(0, 96, 16)]


def test_a_terminal_shows_epochs_curve_and_bar_and_a_log_file_shows_lines(monkeypatch, capsys):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    for console in (terminal, Console(file=io.StringIO())):
        monkeypatch.setattr(display, "Console", lambda console=console: console)
        shown = Display(total_steps=20, first_step=0, log_every=10)
        for step in range(1, 21):
            shown.step(step, 5.0 - 0.1 * step, 1e-3, 0.1, "5,120 tokens/s")
        shown.epoch_row(ROW)
        shown.close()
    for text in ("val loss", "1.6261", "█", "20/20"):
        assert text in screen.getvalue()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("step 10/20  loss 4.0000  rate 1.00e-03  5,120 tokens/s  1 s left")
    assert printed[2].split() == " ".join(ROW).split()
    assert len(printed) == 4


@pytest.mark.slow
def test_a_profile_is_a_trace_and_its_costliest_operations(tmp_path, capsys):
    train(config(train__num_steps=20), tmp_path / "run", profile=True)
    (trace,) = (tmp_path / "run/profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert len(events) > 100
    printed = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(printed) if line.startswith(f"trace of {STEPS} steps"))
    costs = [float(line.split()[0]) for line in printed[start + 2 : start + 12]]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 0
    assert "finished: all 20 steps done" in printed
