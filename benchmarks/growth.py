"""Compares growing mini with training it from scratch: validation loss by FLOPs, on characters.

    python -m benchmarks.growth --text=tinyshakespeare.txt
    python -m benchmarks.growth --text=tinyshakespeare.txt --run=scratch_1e-3 --run=hot

Each run is configs/shakespeare.py with the changes in RUNS. The FLOPs (mmrec_jax/learning/cost.py)
of a grown run include those of all its sources. Runs that an earlier call finished are not
repeated. Prints a table and draws growth.png in the folder of the runs.
"""

from pathlib import Path
from typing import NamedTuple

from absl import flags

from benchmarks.on_cores import run_on_cores
from mmrec_jax.commands import cli
from mmrec_jax.tables import print_table

_TEXT = flags.DEFINE_string("text", None, "A UTF-8 file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/growth", "Folder of the runs.")


class Run(NamedTuple):
    """A run: its changes to configs/shakespeare.py, and the run it grows from."""

    changes: str
    source: str = ""


MINI = "model.dim=256 model.num_layers=6 "
HOT = MINI + "train.learning_rate=1e-3 train.num_steps=675 growth.checkpoint=latest "
RUNS = {
    "tiny": Run(""),
    "tiny_long": Run("train.num_steps=6800"),  # as many FLOPs as a grown mini
    "scratch_2e-3": Run(MINI + "train.learning_rate=2e-3"),
    "scratch_1e-3": Run(MINI + "train.learning_rate=1e-3"),
    "scratch_5e-4": Run(MINI + "train.learning_rate=5e-4"),
    # From a source whose learning rate has fully decayed and has to rise again.
    "annealed_1e-3": Run(MINI + "train.num_steps=860 train.learning_rate=1e-3", "tiny"),
    "annealed_5e-4": Run(MINI + "train.num_steps=860 train.learning_rate=5e-4", "tiny"),
    "annealed_moments": Run(
        MINI + "train.num_steps=860 train.learning_rate=1e-3 growth.moments=grown", "tiny"
    ),
    # From a source whose learning rate is still high: one decay spans both.
    "tiny_hot": Run("train.num_steps=3000 train.final_learning_rate=1e-3"),
    "hot": Run(HOT, "tiny_hot"),
    "hot_moments": Run(HOT + "growth.moments=grown", "tiny_hot"),
    "hot_spread": Run(HOT + "growth.placement=spread", "tiny_hot"),
    "hot_warmup_100": Run(HOT + "growth.warmup_steps=100", "tiny_hot"),
    "hot_noise_0.3": Run(HOT + "growth.noise=0.3", "tiny_hot"),
    "hot_old_rate_0.3": Run(HOT + "growth.old_rate=0.3", "tiny_hot"),
    # Width and depth one after the other, for the same FLOPs.
    "wide": Run(
        HOT + "model.num_layers=4 train.num_steps=300 train.final_learning_rate=6e-4", "tiny_hot"
    ),
    "wide_then_deep": Run(HOT + "train.num_steps=475 train.learning_rate=6e-4", "wide"),
    "deep": Run(
        HOT + "model.dim=128 train.num_steps=300 train.final_learning_rate=6e-4", "tiny_hot"
    ),
    "deep_then_wide": Run(HOT + "train.num_steps=597 train.learning_rate=6e-4", "deep"),
}
SHOWN = ("scratch_1e-3", "tiny_hot", "hot", "tiny_long")  # in the plot

_RUN = flags.DEFINE_multi_enum("run", list(RUNS), list(RUNS), "Runs, with their sources.")


class Curve(NamedTuple):
    """Validation losses of a run and the FLOPs at which they were measured, sources included."""

    flops: list[float]
    losses: list[float]


def main():
    from mmrec_jax.report.drawing import draw
    from mmrec_jax.report.plots import plot_curves

    folder, names = Path(_WORKDIR.value), []
    for name in _RUN.value:
        names += [line for line in reversed(lineage(name)) if line not in names]
    for depth in range(max(len(lineage(name)) for name in names)):
        level = [name for name in names if len(lineage(name)) == depth + 1]
        run_on_cores({name: [command(folder, name)] for name in level})
    curves = {name: read_curve(folder, name) for name in names}
    print_curves(curves)
    shown = {name: curves[name] for name in SHOWN if name in curves}
    if shown:
        label = "training FLOPs, including the sources"
        draw(folder / "growth.png", plot_curves, shown, label)


def lineage(name: str) -> list[str]:
    """A run, its source, the source of its source, and so on."""
    source = RUNS[name].source
    return [name, *(lineage(source) if source else [])]


def command(folder: Path, name: str) -> list[str]:
    """The command that trains a run; it does nothing if the run has finished."""
    run = RUNS[name]
    source = [f"--config.init_from={folder / run.source}"] if run.source else []
    return [
        "train.py",
        "--config=configs/shakespeare.py",
        "--noreport",
        "--config.data.source=text",
        f"--config.data.path={_TEXT.value}",
        "--config.train.eval_every=200",
        *(f"--config.{change}" for change in run.changes.split()),
        *source,
        f"--workdir={folder / name}",
    ]


def read_curve(folder: Path, name: str) -> Curve:
    from mmrec_jax.learning.cost import count_flops
    from mmrec_jax.runs.metrics import read_metrics
    from mmrec_jax.runs.workdir import open_run

    config = open_run(folder / name).config
    step_flops = config.train.step_tokens * count_flops(config).training
    before = sum(read_curve(folder, source).flops[-1] for source in lineage(name)[1:2])
    lines = read_metrics(folder / name, "evaluation")
    return Curve(
        [before + line["step"] * step_flops for line in lines], [line["loss"] for line in lines]
    )


def print_curves(curves: dict[str, Curve]) -> None:
    """Prints losses, and the share of FLOPs at which a run matches the best mini from scratch."""
    fresh = [curve for name, curve in curves.items() if name.startswith("scratch")]
    target = min(fresh, key=lambda curve: min(curve.losses)) if fresh else None
    rows = []
    for name, curve in curves.items():
        share = good_at = ""
        if target is not None:
            share = f"{curve.flops[-1] / target.flops[-1]:.1%}"
            pairs = zip(curve.flops, curve.losses, strict=True)
            as_good = [flops for flops, loss in pairs if loss <= min(target.losses)]
            good_at = f"{as_good[0] / target.flops[-1]:.1%}" if as_good else "never"
        start = f"{curve.losses[0]:.4f}" if RUNS[name].source else ""
        best = f"{min(curve.losses):.4f}"
        rows.append((name, f"{curve.flops[-1]:.3g}", start, best, share, good_at))
    print_table(("run", "FLOPs", "start loss", "best loss", "share", "matched at"), rows)


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
