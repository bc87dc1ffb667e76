"""The runs of the comparison of MM-Rec with its peers, and the command."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.peers import runs, speed
from benchmarks.peers.models import our_model
from mmrec_jax.errors import UserError
from small_runs import ROOT, config, environment


def test_the_final_learning_rate_stays_in_proportion():
    cfg = config(train__learning_rate=2e-3, train__final_learning_rate=1e-4)
    train = runs.run_config(cfg, 4e-3, 5).train
    assert (train.learning_rate, train.seed) == (4e-3, 5)
    assert train.final_learning_rate == pytest.approx(2e-4)


def test_the_loss_between_two_evaluations_is_interpolated():
    curves = [([10, 20], [3.0, 2.0]), ([10, 20], [5.0, 3.0])]
    trained = runs.Trained(None, {1e-3: 2.0, 2e-3: 1.5}, [], [], curves)
    assert trained.rate == 2e-3
    assert trained.loss_at(15) == pytest.approx((2.5 + 4.0) / 2)
    assert trained.loss_at(1) == pytest.approx(4.0)


@pytest.fixture
def pretended(monkeypatch):
    """Runs end at |rate - 2e-3| + seed, and diverge above 3e-3; returns the list of calls."""
    calls = []

    def train(cfg, path, model):
        rate, seed = cfg.train.learning_rate, cfg.train.seed
        calls.append((rate, seed))
        path.mkdir(parents=True, exist_ok=True)
        if rate > 3e-3:
            raise UserError("the loss of step 1 is not finite; ...")
        lines = [(5, 9.0), (10, abs(rate - 2e-3) + seed)]
        text = (json.dumps({"kind": "evaluation", "step": s, "loss": x}) for s, x in lines)
        (path / "metrics.jsonl").write_text("\n".join(text))

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "_evaluate", lambda model, path, split, carry: (path.name, carry))
    return calls


def test_more_seeds_are_trained_at_the_best_rate_alone(pretended, tmp_path):
    model = our_model("mmrec", config())
    for expected in ([1e-3, 2e-3, 4e-3], [1e-3, 2e-3]):  # what diverged is not repeated
        trained = runs.train_model(model, tmp_path, [1e-3, 2e-3, 4e-3], 3, "validation")
        assert pretended == [(rate, 0) for rate in expected] + [(2e-3, 1), (2e-3, 2)]
        pretended.clear()
    assert trained.rate == 2e-3
    assert math.isinf(trained.tried[4e-3])
    assert trained.fresh == [(f"mmrec_0.002_{seed}", False) for seed in range(3)]
    assert trained.carried == [(f"mmrec_0.002_{seed}", True) for seed in range(3)]


@pytest.mark.parametrize(
    ("best", "expected"),
    [(4, [2, 4, 8]), (16, [2, 4, 8, 16]), (8, [2, 4, 8, 16]), (1, [2, 4, 8, 1]), (2, [2, 4, 8, 1])],
)
def test_rates_are_tried_until_the_best_lies_between_two_others(best, expected):
    calls = []

    def loss(rate):
        calls.append(rate)
        return abs(rate - best)

    tried = runs.try_rates(loss, [1, 2, 4, 8, 16])
    assert calls == expected
    assert min(tried, key=tried.get) == best


def test_a_search_that_begins_where_runs_diverge_finds_the_rate_that_does_not():
    tried = runs.try_rates(lambda rate: math.inf if rate > 1 else 1.0, [1, 2, 4, 8, 16])
    assert min(tried, key=tried.get) == 1


def test_a_model_that_diverges_everywhere_is_an_error(pretended, tmp_path):
    with pytest.raises(UserError, match="diverged at every learning rate"):
        runs.train_model(our_model("mmrec", config()), tmp_path, [5e-3], 1, "validation")


def test_programs_take_turns():
    order = []
    programs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = speed.alternate(programs, rounds=2)
    assert order == list("ababab")
    assert set(seconds) == {"a", "b"}
    assert np.all(np.array(list(seconds.values())) >= 0)


@pytest.mark.slow
def test_the_command_compares_and_goes_on_where_it_was(tmp_path):
    command = (
        sys.executable,
        "-m",
        "benchmarks.peers",
        "--config=configs/shakespeare.py",
        "--config.data.source=sample",
        "--config.model.dim=64",
        "--config.model.num_layers=2",
        "--models=mmrec,mmrec_wide,sliding,deltanet",
        "--rates=1e-3,2e-3",
        "--seeds=1",
        "--steps=8",
        "--near=64",
        "--far=256",
        "--rounds=1",
        f"--workdir={tmp_path / 'peers'}",
    )
    options = {"env": environment(), "cwd": ROOT, "capture_output": True, "text": True}
    subprocess.run(command, **options, check=True)
    figures = json.loads((tmp_path / "peers/peers.json").read_text())
    assert list(figures) == ["mmrec", "mmrec_wide", "sliding", "deltanet"]
    for row in figures.values():
        assert abs(row["parameters"] / figures["mmrec"]["parameters"] - 1) < 0.05
        assert 1 < row["fresh"][0] < math.log(128) + 1
    again = subprocess.run(command, **options, check=True)
    assert again.stdout.count("nothing to do") == 8
    repeated = json.loads((tmp_path / "peers/peers.json").read_text())
    assert repeated["sliding"]["carried"] == figures["sliding"]["carried"]
