"""The tables and figures of the comparison."""

import functools
import operator
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.peers.models import Model
from benchmarks.peers.runs import Trained
from mmrec_jax.learning.breakdown import Breakdown, Bucket
from mmrec_jax.learning.evaluate import EvalResult
from mmrec_jax.report.drawing import draw
from mmrec_jax.report.evaluation import TABLES
from mmrec_jax.report.plots import plot_distances
from mmrec_jax.tables import print_table


def print_sizes(models: Sequence[Model]) -> None:
    """Prints what was chosen so that all models have as many parameters."""
    rows = [(model.name, model.sizes, f"{model.parameters:,}") for model in models]
    print_table(("model", "sizes", "parameters"), rows, texts=2)


def print_losses(trained: Sequence[Trained], training: dict[str, float], steps: int) -> None:
    """Prints the losses at equal tokens and at equal seconds, best first."""
    budget = seconds_of_fastest(training, steps)
    rows = [
        (
            row.model.name,
            f"{row.model.parameters:,}",
            f"{row.rate:g}",
            f"{len(row.fresh)}",
            *_mean_and_range(row.fresh),
            *_mean_and_range(row.carried),
            f"{row.loss_at(budget / training[row.model.name]):.4f}",
        )
        for row in sorted(trained, key=lambda row: np.mean(_losses(row.carried)))
    ]
    names = ("model", "parameters", "rate", "seeds", "fresh windows", "from, to")
    names += ("carried memory", "from, to", "at equal seconds")
    print_table(names, rows, wide=True, title="loss (nats per token), mean over the seeds")
    fastest = min(training, key=training.get)
    print(f"equal seconds: validation loss after {budget:.0f} s, when {fastest} has finished")


def print_buckets(trained: Sequence[Trained], kind: str) -> None:
    """Prints the loss with carried memory by 'position', or by 'token' or 'pair' distance.

    A second table shows how much lower or higher the first model's is than that of each other one.
    """
    title, head = TABLES[kind]
    sums = {row.model.name: _over_seeds(row.carried) for row in trained}
    _print_columns(
        f"{title}, memory carried",
        head,
        {name: of.buckets(kind) for name, of in sums.items()},
        differences=False,
    )
    (first, of_first), *others = sums.items()
    if others:
        _print_columns(
            f"{title}: {first} minus the others, with intervals of 95% over documents",
            head,
            {name: of_first.buckets(kind, minus=of) for name, of in others},
        )


def draw_distances(trained: Sequence[Trained], path: Path, reach: int) -> None:
    """Draws the loss with carried memory by distance; the first model can read `reach` tokens."""
    curves = {row.model.name: _over_seeds(row.carried) for row in trained}
    draw(path, plot_distances, curves, {next(iter(curves)): reach})


def print_carrying(trained: Sequence[Trained]) -> None:
    """Prints what carrying memory changes at each position."""
    title, head = TABLES["position"]
    differences = {
        row.model.name: _over_seeds(row.carried).buckets("position", minus=_over_seeds(row.fresh))
        for row in trained
    }
    _print_columns(f"{title}: memory carried minus fresh windows", head, differences)


def _over_seeds(results: Sequence[EvalResult]) -> Breakdown:
    return functools.reduce(operator.add, (result.breakdown for result in results))


def _print_columns(
    title: str, head: str, columns: dict[str, list[Bucket]], differences: bool = True
) -> None:
    """Prints a column of buckets per model; differences have a sign and an interval."""
    rows = []
    for buckets in zip(*columns.values(), strict=True):
        cells = [
            f"{bucket.loss:+.4f} {_range(bucket.interval)}" if differences else f"{bucket.loss:.4f}"
            for bucket in buckets
        ]
        rows.append((buckets[0].name, *cells))
    print_table((head, *columns), rows, wide=True, title=title)


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else "({:+.3f}, {:+.3f})".format(*interval)


def print_speeds(
    models: Sequence[Model],
    training: dict[str, float],
    generation: dict[tuple[str, int], float],
    positions: Sequence[int],
    step_tokens: int,
) -> None:
    """Prints tokens per second of training and generation, and the bytes of state per text."""
    rows = [
        (
            model.name,
            f"{1e3 * training[model.name]:.1f}",
            f"{step_tokens / training[model.name]:,.0f}",
            *(f"{1 / generation[model.name, position]:,.0f}" for position in positions),
            *(f"{state_bytes(model, position):,}" for position in positions),
        )
        for model in models
    ]
    names = ["model", "ms per step", "training"]
    names += [f"writing at {position:,}" for position in positions]
    names += [f"state bytes at {position:,}" for position in positions]
    print_table(names, rows, wide=True, title="tokens per second")


def figures(
    trained: Sequence[Trained],
    training: dict[str, float],
    generation: dict[tuple[str, int], float],
    steps: int,
) -> dict:
    """All figures, to be saved as JSON."""
    budget = seconds_of_fastest(training, steps)
    return {
        row.model.name: {
            "sizes": row.model.sizes,
            "parameters": row.model.parameters,
            "tried": {f"{rate:g}": loss for rate, loss in row.tried.items()},
            "fresh": _losses(row.fresh),
            "carried": _losses(row.carried),
            "at_equal_seconds": row.loss_at(budget / training[row.model.name]),
            "seconds_per_step": training[row.model.name],
            "seconds_per_token_written": {
                position: seconds
                for (name, position), seconds in generation.items()
                if name == row.model.name
            },
            "curves": row.curves,
        }
        for row in trained
    }


def seconds_of_fastest(training: dict[str, float], steps: int) -> float:
    """Seconds that the fastest model trains for."""
    return steps * min(training.values())


def state_bytes(model: Model, position: int) -> int:
    """Bytes of the state of one text after so many tokens."""
    state = jax.eval_shape(lambda: model.start(position))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _losses(results: Sequence[EvalResult]) -> list[float]:
    return [result.loss for result in results]


def _mean_and_range(results: Sequence[EvalResult]) -> tuple[str, str]:
    losses = _losses(results)
    return f"{np.mean(losses):.4f}", f"{min(losses):.4f}, {max(losses):.4f}"
