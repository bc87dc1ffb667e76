"""The log of a run: what is dropped when training goes on, and what is read of a long one."""

import json

import pytest

from mmrec_jax.runs.metrics import last_lines, read_metrics
from mmrec_jax.runs.metrics_writer import MetricsWriter

STEPS = [(kind, step) for step in range(1, 301) for kind in ("train", "evaluation")]


@pytest.fixture
def log(tmp_path):
    writer = MetricsWriter(tmp_path, -1)
    writer.write("event", 0, event="started")
    for kind, step in STEPS:
        writer.write(kind, step, loss=1 / step)
    writer.close()
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize(
    "end", ["", '{"kind": "train", "st', '{"kind": "train", "step": 1}', "\n\0\n"]
)
@pytest.mark.parametrize("step", [-1, 0, 1, 150, 299, 300, 1000])
def test_what_was_logged_after_the_checkpoint_is_dropped(log, step, end):
    lines = log.read_text().splitlines(keepends=True)
    with log.open("a") as file:
        file.write(end)  # as a kill may leave it
    MetricsWriter(log.parent, step).close()
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    assert log.read_text() == "".join(kept)


def test_an_empty_log_stays_empty(log):
    log.write_text("")
    MetricsWriter(log.parent, 5).close()
    assert log.read_bytes() == b""


@pytest.mark.parametrize("num_bytes", [1, 100, 1000, 10**6])
def test_the_last_lines_are_those_that_fit(log, num_bytes):
    lines = log.read_text().splitlines(keepends=True)
    complete = [n for n in range(len(lines) + 1) if sum(map(len, lines[n:])) < num_bytes]
    found = [(line["kind"], line["step"]) for line in last_lines(log.parent, num_bytes)]
    assert found == [("event", 0), *STEPS][complete[0] :]
    assert len(read_metrics(log.parent, "train")) == 300
