"""Validation loss of a trained model with larger memories than it was trained with.

python -m benchmarks.larger_memories --workdir=runs/shakespeare_long
"""

import dataclasses
from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def main():
    from mmrec_jax.learning.evaluate import evaluate, make_eval_step
    from mmrec_jax.runs.workdir import open_run

    run = open_run(Path(_WORKDIR.value))
    params = run.params(run.checkpoints.resolve("best"))
    model, split = run.config.model, run.split("validation")
    print("    S     C     M   validation loss, memory carried")
    for short_term, chunk_len, long_term in ((1, 1, 1), (1, 1, 2), (1, 1, 4), (2, 1, 1), (2, 2, 2)):
        larger = dataclasses.replace(
            model,
            short_term=short_term * model.short_term,
            chunk_len=chunk_len * model.chunk_len,
            long_term=long_term * model.long_term,
        )
        config = dataclasses.replace(run.config, model=larger)
        result = evaluate(make_eval_step(larger), params, split, config, carry_memory=True)
        print(
            f"{larger.short_term:5} {larger.chunk_len:5} {larger.long_term:5}   {result.loss:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
