"""Compares MM-Rec with its peers: the same data, batches, tokens, optimizer and parameters.

    python -m benchmarks.peers --config=configs/shakespeare.py --config.data.source=text \
        --config.data.path=tinyshakespeare.txt
    python -m benchmarks.peers ... --models=mmrec,lstm --rates=2e-3 --seeds=1 --steps=20 --far=2000

The models (benchmarks/peers/models.py) have as many parameters as MM-Rec of the config, within 5%.
Those with a window see as many tokens as MM-Rec can read, S + C + M. Each model is trained with
seed 0 at the middle one of --rates and its two neighbours, then at the next ones in the direction
of lower validation loss until the best is known, and with the other seeds at the best.
All runs go through the loop that train.py uses, each in its own workdir: run the same command again
after an interruption, and it goes on from there. Then all models take turns in a measurement of
speed, and tables are printed.

The loss at equal seconds is that of the validation curve at the moment when the fastest model
finishes. The learning rate of a slower model is not yet at its end by then, so this is an upper
bound of what the model would reach if it were trained for that time only.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/shakespeare.py", "Config of MM-Rec, the data and the training."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/peers", "Folder of the runs.")
_MODELS = flags.DEFINE_list("models", [], "Models, separated by commas; all if not given.")
_RATES = flags.DEFINE_list("rates", "5e-4,1e-3,2e-3,4e-3,8e-3", "Peak learning rates to try.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds at the best learning rate.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of each run; 0 for those of the config.")
_EVALUATIONS = flags.DEFINE_integer("evaluations", 8, "Evaluations per run.", lower_bound=1)
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What the tables show.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds of the measurement of speed.")
_NEAR = flags.DEFINE_integer("near", 1_000, "First position of generation, in tokens.")
_FAR = flags.DEFINE_integer("far", 100_000, "Second position, in tokens.")

STEPS_PER_ROUND, TOKENS_PER_ROUND = 5, 100  # in the measurement of speed


def main():
    from benchmarks.peers import models, speed, tables
    from benchmarks.peers.runs import train_model
    from mmrec_jax.data.batches import training_batches
    from mmrec_jax.data.dataset import load_dataset
    from mmrec_jax.errors import UserError
    from mmrec_jax.files import write_text

    names, rates = _MODELS.value or list(models.NAMES), _rates()
    for name in set(names) - set(models.NAMES):
        raise UserError(f"--models has {name!r}; choose from {', '.join(models.NAMES)}")
    config = _config()
    rows = models.build(names, config, window=config.model.seen_tokens)
    tables.print_sizes(rows)

    folder = Path(_WORKDIR.value)
    trained = [train_model(row, folder, rates, _SEEDS.value, _SPLIT.value) for row in rows]
    batches = training_batches(load_dataset(config).train, config)
    positions = (_NEAR.value, _FAR.value)
    training = speed.training_seconds(rows, batches, _ROUNDS.value, STEPS_PER_ROUND)
    generation = speed.generation_seconds(rows, positions, _ROUNDS.value, TOKENS_PER_ROUND)

    steps = max(curve[0][-1] for row in trained for curve in row.curves)
    tables.print_losses(trained, training, steps)
    for kind in ("position", "token", "pair"):
        tables.print_buckets(trained, kind)
    tables.print_carrying(trained)
    tables.print_speeds(rows, training, generation, positions, config.train.step_tokens)
    for row in trained:
        if len(rates) > 1 and row.rate in (min(rates), max(rates)):
            print(f"{row.model.name}: {row.rate:g} is at the edge of --rates; extend them")
    figures = tables.figures(trained, training, generation, steps)
    write_text(folder / "peers.json", json.dumps(figures, indent=2) + "\n")
    picture = folder / "loss_by_distance.png"
    tables.draw_distances(trained, picture, config.model.seen_tokens)
    print(f"all figures: {folder / 'peers.json'}; by distance: {picture}")


def _rates() -> list[float]:
    from mmrec_jax.errors import UserError

    try:
        return sorted({float(rate) for rate in _RATES.value})
    except ValueError as error:
        raise UserError(f"--rates are {','.join(_RATES.value)}; give numbers: {error}") from error


def _config():
    """The config, with a fixed number of steps, evaluations at even intervals, and no early end."""
    from mmrec_jax.config import from_mapping
    from mmrec_jax.errors import UserError

    values = _CONFIG.value.copy_and_resolve_references()
    if _STEPS.value:
        values.train.num_steps, values.train.num_tokens = _STEPS.value, 0
        values.train.warmup_steps = min(values.train.warmup_steps, _STEPS.value // 10)
    steps = from_mapping(values).train.fixed_steps
    if not steps:
        raise UserError("the config trains for epochs; give --steps, so that all runs are equal")
    values.train.eval_every = max(1, steps // _EVALUATIONS.value)
    values.train.patience = 0
    values.train.keep_checkpoints = 1
    return from_mapping(values)


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
