"""Whether the learning rate that is best at D 128 is best at D 512: validation loss by both.

    python -m benchmarks.widths --text=tinyshakespeare.txt
    python -m benchmarks.widths --text=tinyshakespeare.txt --base_dim=0    # without scaled rates

Each run is configs/shakespeare.py with 2 layers and heads of 32 channels, shortened. As many runs
as there are cores are trained in parallel. Runs that an earlier call finished are not repeated.
Prints a table, and for each width the rate at the lowest point of a parabola through the lowest
loss and its neighbours.
"""

from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.on_cores import run_on_cores
from mmrec_jax.commands import cli
from mmrec_jax.tables import print_table

_TEXT = flags.DEFINE_string("text", None, "A UTF-8 file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/widths", "Folder of the runs.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of each run.")
_DIMS = flags.DEFINE_multi_integer("dim", [128, 512], "Widths.")
_OPTIMIZER = flags.DEFINE_enum("optimizer", "muon", ["adamw", "muon"], "Optimizer.")
_BASE_DIM = flags.DEFINE_integer("base_dim", 128, "train.base_dim; 0: no rate is scaled.")
_RATES = flags.DEFINE_list("rates", ["5e-4", "1e-3", "2e-3", "4e-3", "8e-3"], "Learning rates.")


def main():
    from mmrec_jax.runs.metrics import read_metrics

    rates = sorted(_RATES.value, key=float)
    paths = {
        (dim, rate): Path(_WORKDIR.value)
        / f"{_OPTIMIZER.value}_base_{_BASE_DIM.value}_{_STEPS.value}"
        / f"{dim}_{rate}"
        for dim in sorted(_DIMS.value, reverse=True)  # the longest runs first
        for rate in rates
    }
    run_on_cores({str(path): [command(*key, path)] for key, path in paths.items()})
    losses = {key: read_metrics(path, "evaluation")[-1]["loss"] for key, path in paths.items()}
    rows = []
    for dim in sorted(_DIMS.value):
        of_rates = [losses[dim, rate] for rate in rates]
        best = lowest(np.array(rates, float), np.array(of_rates))
        rows.append((f"{dim}", *(f"{loss:.4f}" for loss in of_rates), f"{best:.2e}"))
    title = f"validation loss by D and learning rate ({_OPTIMIZER.value})"
    print_table(("D", *rates, "best rate"), rows, title=title)


def command(dim: int, rate: str, path: Path) -> list[str]:
    """The command that trains a run; it does nothing if the run has finished."""
    changes = {
        "data.source": "text",
        "data.path": _TEXT.value,
        "model.dim": dim,
        "model.num_layers": 2,
        "model.num_heads": dim // 32,
        "train.num_steps": _STEPS.value,
        "train.optimizer": _OPTIMIZER.value,
        "train.base_dim": _BASE_DIM.value,
        "train.learning_rate": rate,
        "train.eval_every": 0,
    }
    flags_of_run = [f"--config.{key}={value}" for key, value in changes.items()]
    return [
        "train.py",
        "--config=configs/shakespeare.py",
        "--noreport",
        *flags_of_run,
        f"--workdir={path}",
    ]


def lowest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate at the lowest point of a parabola, over log rates, around the lowest loss."""
    best = int(np.argmin(losses))
    if best in (0, len(rates) - 1):
        return rates[best]
    around = np.s_[best - 1 : best + 2]
    square, slope, _ = np.polyfit(np.log(rates[around]), losses[around], 2)
    return float(np.exp(-slope / (2 * square)))


if __name__ == "__main__":
    cli.run(main)
