"""The runs of the comparison: each model at each learning rate, then more seeds of the best one.

Each run has its own workdir, so what an earlier call trained or evaluated is not repeated, and what
it began is resumed.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.peers.models import Model
from mmrec_jax.config import Config
from mmrec_jax.errors import UserError
from mmrec_jax.files import replacing, write_text
from mmrec_jax.learning.breakdown import Breakdown
from mmrec_jax.learning.evaluate import EvalResult, evaluate, make_eval_step
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.training.loop import train

DIVERGED = "diverged.txt"  # in the workdir of a run that has ended without a finite loss


class Trained(NamedTuple):
    """A model at its best learning rate."""

    model: Model
    tried: dict[float, float]  # by learning rate: the lowest validation loss of seed 0
    fresh: list[EvalResult]  # of each seed, with fresh memory in each window
    carried: list[EvalResult]  # with carried memory; broken down by distance too
    curves: list[tuple[list[int], list[float]]]  # validation losses of each seed, by step

    @property
    def rate(self) -> float:
        """The best learning rate."""
        return min(self.tried, key=self.tried.get)

    def loss_at(self, step: float) -> float:
        """The validation loss after a number of steps, interpolated; the mean over the seeds."""
        return float(np.mean([np.interp(step, *curve) for curve in self.curves]))


def run_config(config: Config, rate: float, seed: int) -> Config:
    """A model's config at a learning rate, whose final value stays in proportion."""
    train = config.train
    final = train.final_learning_rate * rate / train.learning_rate
    changed = dataclasses.replace(train, learning_rate=rate, final_learning_rate=final, seed=seed)
    return dataclasses.replace(config, train=changed)


def try_rates(loss: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    """Tries learning rates until the best one has been compared with its neighbours.

    It begins in the middle and goes towards lower losses, so it finds the best of all rates if the
    loss has one minimum.

    Args:
        loss: what a run at a rate ends with; infinite if it diverges.
        rates: at least one, in ascending order.

    Returns:
        the losses of the rates that were tried.
    """
    tried: dict[float, float] = {}
    here, best = None, (len(rates) - 1) // 2
    while here != best:
        here = best
        for rate in rates[max(here - 1, 0) : here + 2]:
            if rate not in tried:
                tried[rate] = loss(rate)
        best = rates.index(min(tried, key=tried.get))
    return tried


def train_model(
    model: Model, folder: Path, rates: Sequence[float], seeds: int, split: str
) -> Trained:
    """Trains whatever is missing and evaluates the runs at the best learning rate.

    Args:
        model, folder: what to train, and where.
        rates: learning rates to try with seed 0, in ascending order; see `try_rates`.
        seeds: how many seeds to train at the best rate.
        split: what to evaluate on.

    Raises:
        UserError: bad input, or every learning rate diverged.
        Interrupted: after SIGTERM or Ctrl-C, once the state is saved.
    """
    tried = try_rates(lambda rate: _lowest_loss(model, folder, rate, 0), rates)
    best = min(tried, key=tried.get)
    if math.isinf(tried[best]):
        raise UserError(f"{model.name} diverged at every learning rate; give lower --rates")
    for seed in range(1, seeds):
        if math.isinf(_lowest_loss(model, folder, best, seed)):
            raise UserError(
                f"{model.name} diverged at its best learning rate {best:g} with seed {seed}; give "
                "other --rates"
            )
    paths = [workdir(folder, model, best, seed) for seed in range(seeds)]
    return Trained(
        model,
        tried,
        fresh=[_evaluate(model, path, split, carry=False) for path in paths],
        carried=[_evaluate(model, path, split, carry=True) for path in paths],
        curves=[_curve(path) for path in paths],
    )


def workdir(folder: Path, model: Model, rate: float, seed: int) -> Path:
    """The workdir of a run."""
    return folder / f"{model.name}_{rate:g}_{seed}"


def _lowest_loss(model: Model, folder: Path, rate: float, seed: int) -> float:
    """Trains a run to its end; its lowest validation loss, or infinity if it diverged."""
    path = workdir(folder, model, rate, seed)
    if (path / DIVERGED).exists():
        return math.inf
    try:
        train(run_config(model.config, rate, seed), path, model=model.functions)
    except UserError as error:
        if "not finite" not in str(error):
            raise
        write_text(path / DIVERGED, f"{error}\n")
        return math.inf
    return min(_curve(path)[1])


def _curve(path: Path) -> tuple[list[int], list[float]]:
    lines = read_metrics(path, "evaluation")
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def _evaluate(model: Model, path: Path, split: str, carry: bool) -> EvalResult:
    """Evaluates the best checkpoint of a run, or reads what an earlier call found."""
    found = path / f"{split}_{'carried' if carry else 'fresh'}.npz"
    if found.exists():
        with np.load(found) as arrays:
            values = dict(arrays)
        figures = json.loads(str(values.pop("figures")))
        return EvalResult(**figures, breakdown=Breakdown.from_arrays(**values))
    run = open_run(path)
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    like = jax.eval_shape(model.functions.init_params, jax.random.key(0))
    params = checkpoints.restore_params(checkpoints.resolve("best"), like)
    eval_step = make_eval_step(run.config.model, model.functions)
    result = evaluate(
        eval_step, params, run.split(split), run.config, carry, carry, model=model.functions
    )
    breakdown = result.breakdown.to_arrays()
    figures = dataclasses.asdict(dataclasses.replace(result, breakdown=None))
    del figures["breakdown"]
    with replacing(found) as file:
        np.savez_compressed(file, figures=json.dumps(figures), **breakdown)
    return result
