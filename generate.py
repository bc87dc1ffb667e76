"""Writes text with a trained model: python generate.py --workdir=runs/tiny --prompt="The old"."""

from pathlib import Path

from absl import flags

from mmrec_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, final or a step.")
_PROMPT = flags.DEFINE_string("prompt", "The ", "What the text starts with.")
_TOKENS = flags.DEFINE_integer("tokens", 300, "How many tokens to write.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy.", lower_bound=0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")


def main():
    from mmrec_jax.evaluation import restore_params
    from mmrec_jax.generation import generate
    from mmrec_jax.workdir import open_run

    run = open_run(Path(_WORKDIR.value))
    params = restore_params(run, run.checkpoints.resolve(_CHECKPOINT.value))
    tokens = generate(
        run.config.model,
        params,
        run.tokenizer.encode(_PROMPT.value),
        run.tokenizer.vocab_size,
        _TOKENS.value,
        _TEMPERATURE.value,
        _SEED.value,
    )
    print(_PROMPT.value, end="", flush=True)
    for token in tokens:
        print(run.tokenizer.decode([token]), end="", flush=True)
    print()


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
