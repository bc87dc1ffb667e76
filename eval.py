"""Evaluates a trained model: python eval.py --workdir=runs/tiny"""

from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Workdir of the run; may be repeated with --suite."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, final, or a step.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which split to evaluate.")
_TEXT = flags.DEFINE_string("text", None, "A UTF-8 file to evaluate instead of a split.")
_SUITE = flags.DEFINE_enum(
    "suite", None, ["recall"], "Memory tests to run instead: recall, for runs of configs/recall.py."
)


def main():
    workdirs = [Path(workdir) for workdir in _WORKDIR.value]
    if _SUITE.value:
        from mmrec_jax.report.recall import run_recall_suite

        run_recall_suite(workdirs, _CHECKPOINT.value)
        return
    if len(workdirs) > 1:
        raise UserError("--workdir may be given several times only with --suite")

    from mmrec_jax.report.evaluation import evaluate_run

    text = Path(_TEXT.value) if _TEXT.value else None
    evaluate_run(workdirs[0], _CHECKPOINT.value, _SPLIT.value, text)


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
