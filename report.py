"""Writes report.html: python report.py --workdir=runs/tiny

Compares several runs: python report.py --workdir=runs/a --workdir=runs/b
"""

from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Workdir of a run; may be repeated to compare several runs."
)
_OUTPUT = flags.DEFINE_string(
    "output", "runs/comparison/report.html", "Path of the comparison page."
)
_MODEL = flags.DEFINE_bool("model", True, "Show the best checkpoint: samples, memory, losses.")


def main():
    from mmrec_jax.report.page import write_comparison, write_report

    paths = [Path(workdir) for workdir in _WORKDIR.value]
    if len(paths) == 1:
        page = write_report(paths[0], _MODEL.value)
    else:
        page = write_comparison(paths, Path(_OUTPUT.value))
    print(f"wrote {page}")


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
