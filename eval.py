"""Evaluates a trained model: python eval.py --workdir=runs/tiny"""

from pathlib import Path

from absl import flags

from mmrec_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, final or a step.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which split to evaluate.")
_TEXT = flags.DEFINE_string("text", None, "A UTF-8 file to evaluate instead of a split.")


def main():
    from mmrec_jax.evaluation import evaluate_run

    text = Path(_TEXT.value) if _TEXT.value else None
    evaluate_run(Path(_WORKDIR.value), _CHECKPOINT.value, _SPLIT.value, text)


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
