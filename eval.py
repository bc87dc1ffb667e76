"""Evaluates a trained model: python eval.py --workdir=runs/tiny

Compares several runs: python eval.py --workdir=runs/a --workdir=runs/b
"""

from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Workdir of a run; may be repeated to compare several runs."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, final, or a step.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which split to evaluate.")
_TEXT = flags.DEFINE_string("text", None, "A UTF-8 file to evaluate instead of a split.")
_OUTPUT = flags.DEFINE_string(
    "output", "runs/comparison", "Folder for the results of a comparison."
)
_SUITE = flags.DEFINE_enum(
    "suite", None, ["recall"], "Memory tests to run instead: recall, for runs of configs/recall.py."
)


def main():
    workdirs = [Path(workdir) for workdir in _WORKDIR.value]
    if _SUITE.value:
        from mmrec_jax.report.recall import run_recall_suite

        run_recall_suite(workdirs, _CHECKPOINT.value)
        return
    text = Path(_TEXT.value) if _TEXT.value else None
    if len(workdirs) == 1:
        from mmrec_jax.report.evaluation import evaluate_run

        evaluate_run(workdirs[0], _CHECKPOINT.value, _SPLIT.value, text)
    else:
        from mmrec_jax.report.loss_comparison import compare_losses

        output = Path(_OUTPUT.value)
        compare_losses(workdirs, _CHECKPOINT.value, _SPLIT.value, text, output)


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
