"""Prints the texts that a training step has read, those with the highest loss first.

python -m mmrec_jax.training.batch --workdir=runs/tiny --step=120

Their losses are those of the newest checkpoint from before the step, or of the oldest one, if the
run has any, with an empty memory at the beginning of each text.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags

from mmrec_jax.commands import cli
from mmrec_jax.data.batches import training_batches
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.tokenizers import Tokenizer
from mmrec_jax.data.windows import Batch
from mmrec_jax.errors import UserError, printable
from mmrec_jax.learning.evaluate import empty_memory, make_eval_step
from mmrec_jax.model.interface import mmrec
from mmrec_jax.runs.metrics import read_lines
from mmrec_jax.runs.workdir import Run, has_checkpoints, open_run, read_config, read_data
from mmrec_jax.training.beginning import with_order


def read_batch(path: Path, step: int, rewinds: int | None = None) -> tuple[Batch, Tokenizer]:
    """What all processes together have read in a step, counted from 1.

    `rewinds`: how often training had been rewound before; None: as the log says.

    Raises:
        UserError: the run has not come that far, or its text has changed.
    """
    config, lines = read_config(path), list(read_lines(path))
    last = max((line["step"] for line in lines), default=0)
    if not 1 <= step <= last:
        raise UserError(f"--step={step}: the run in {path} has {last:,} steps")
    dataset = load_dataset(config)
    if dataset.fingerprint != read_data(path).get("fingerprint"):
        raise UserError(f"the text of {path} has changed since it was trained")
    if rewinds is None:  # it is logged each time that training starts or goes on
        before = [line for line in lines if line["step"] < step and "rewinds" in line]
        rewinds = before[-1]["rewinds"] if before else 0
    batches = training_batches(dataset.train, with_order(config, rewinds))
    return batches[step - 1], dataset.tokenizer


def losses(run: Run, checkpoint: int, batch: Batch) -> np.ndarray:
    """The mean loss of each text of a batch in nats per token [batch]; 0 without any to predict."""
    memory = empty_memory(mmrec(run.config.model), len(batch.tokens))
    found, _ = make_eval_step(run.config.model)(run.params(checkpoint), batch, memory)
    return np.asarray(jax.device_get(found.loss)).sum(1) / np.maximum(batch.weights.sum(1), 1)


def print_batch(path: Path, step: int, rewinds: int | None, texts: int) -> None:
    """Prints some of the texts of a step, from the one with the highest loss.

    Raises:
        UserError: as in `read_batch`, or a checkpoint cannot be read.
    """
    batch, tokenizer = read_batch(path, step, rewinds)
    order, heads = np.arange(len(batch.tokens)), [""] * len(batch.tokens)
    if has_checkpoints(path):
        run = open_run(path)
        steps = run.checkpoints.steps()
        checkpoint = max((before for before in steps if before < step), default=steps[0])
        of_texts = losses(run, checkpoint, batch)
        order = np.argsort(-of_texts)
        heads = [f", whose loss with checkpoint {checkpoint} is {loss:.4f}" for loss in of_texts]
    for row in order[:texts]:
        print(f"--- text {row + 1} of {len(order)}{heads[row]}")
        print(printable(tokenizer.decode(batch.tokens[row]), keep="\n\t"))


def main():
    given = flags.FLAGS
    print_batch(Path(given.workdir), given.step, given.rewinds, given.texts)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Workdir of the run.")
    flags.DEFINE_integer("step", None, "The training step.", lower_bound=1)
    flags.DEFINE_integer(
        "rewinds", None, "Rewinds of training before that step; default: as logged.", lower_bound=0
    )
    flags.DEFINE_integer("texts", 3, "The number of texts to print.", lower_bound=1)
    cli.run(main, required=["workdir", "step"])
