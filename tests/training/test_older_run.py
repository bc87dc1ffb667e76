"""A run that older code has begun goes on with the code of today.

older_run.tar.xz has a run of 40 steps whose checkpoint of step 20 alone is left, and the complete
log. If a change of the model makes it useless, so that it is refused with a line, make another one:

    PYTHONPATH=.:tests python tests/training/test_older_run.py
"""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import mmrec_jax
from mmrec_jax.runs.check import check_workdir
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import read_config
from mmrec_jax.training.loop import train
from small_runs import config

ARCHIVE = Path(__file__).with_name("older_run.tar.xz")
PERPLEXITY = 95.125588  # of the text below
KNOBS = {"train__num_steps": 40, "train__keep_checkpoints": 9, "train__carry_memory": True}


@pytest.fixture
def run(tmp_path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def losses(run: Path, kind: str) -> list[float]:
    return [line["loss"] for line in read_metrics(run, kind)]


def test_its_checksums_match(run):
    assert not [verdict for verdict in check_workdir(run) if verdict.problem]


def test_it_goes_on_as_it_did(run):
    """Not to the bit: machines, numbers of cores and versions of JAX differ."""
    before = {kind: losses(run, kind) for kind in ("train", "evaluation")}
    assert train(read_config(run), run)
    events = [(event["event"], event["step"]) for event in read_metrics(run, "event")]
    assert events == [("started", 0), ("resumed", 20), ("finished", 40)]
    for kind, of_kind in before.items():
        np.testing.assert_allclose(losses(run, kind), of_kind, rtol=1e-4)


def test_its_model_reads_as_it_did(run):
    assert perplexity(run) == pytest.approx(PERPLEXITY, rel=1e-4)


def perplexity(run: Path) -> float:
    return mmrec_jax.load(run, "20").perplexity("The old sailor sold a lantern at the market.\n")


def make() -> None:
    folder = Path("older_run")
    train(config(**KNOBS), folder / "run")
    for later in ("31", "40"):
        shutil.rmtree(folder / "run/checkpoints" / later)
    shutil.rmtree(folder / "run/tensorboard")
    print(f"PERPLEXITY = {perplexity(folder / 'run'):.6f}")
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        archive.add(folder / "run", "run")
    shutil.rmtree(folder)


if __name__ == "__main__":
    make()
