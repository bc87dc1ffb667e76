"""Measures what each memory contributes to recall: trains the variants of configs/recall.py.

    python -m benchmarks.recall                                       # all variants
    python -m benchmarks.recall --seeds=1 --variant=full --variant=no_long_term

As many runs as there are cores are trained in parallel, each on its own core. Runs that an earlier
call finished are not repeated. Prints a table and draws recall.png in the folder of the runs.
"""

import json
import os
import time
from pathlib import Path

from absl import flags

from benchmarks.on_cores import run_on_cores
from configs.recall import VARIANTS
from mmrec_jax.commands import cli
from mmrec_jax.tables import print_table

_WORKDIR = flags.DEFINE_string("workdir", "runs/recall_suite", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Seeds of each variant that should recall everything.")
_VARIANT = flags.DEFINE_multi_enum("variant", list(VARIANTS), list(VARIANTS), "Variants to train.")

# With all seeds, the longest runs first; the other variants have one seed.
COMPLETE = ("pairs_32", "pairs_16", "full", "pairs_4")


def main():
    from mmrec_jax.report.drawing import draw
    from mmrec_jax.report.plots import plot_recall
    from mmrec_jax.report.recall import RecallResult

    start = time.perf_counter()
    folder = Path(_WORKDIR.value)
    order = [*COMPLETE, *(variant for variant in VARIANTS if variant not in COMPLETE)]
    jobs = [
        (variant, seed)
        for variant in order
        for seed in range(_SEEDS.value if variant in COMPLETE else 1)
        if variant in _VARIANT.value
    ]
    commands = {}
    for variant, seed in jobs:
        path = folder / f"{variant}_{seed}"
        if not (path / "recall.json").exists():
            config = f"--config=configs/recall.py:{variant}"
            commands[str(path)] = [
                [
                    "train.py",
                    "--noreport",
                    config,
                    f"--config.train.seed={seed}",
                    f"--workdir={path}",
                ],
                ["eval.py", "--suite=recall", f"--workdir={path}"],
            ]
    run_on_cores(commands)
    results = {
        job: RecallResult(**json.loads((folder / "{}_{}".format(*job) / "recall.json").read_text()))
        for job in jobs
    }
    print_summary(results)
    of_first_seed = [result for (_, seed), result in results.items() if seed == 0]
    draw(folder / "recall.png", plot_recall, of_first_seed)
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(jobs)} runs in {minutes:.1f} minutes on {os.cpu_count()} cores")


def print_summary(results: dict) -> None:
    """Prints the lowest accuracy over the seeds, by variant, task and length."""
    from mmrec_jax.data.sources.recall import TASKS, chance

    first = next(iter(results.values()))
    names = ["variant", "seeds", "bytes", "task", *(f"{x:,}x" for x in first.multiples)]
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in results):
        runs = [result for (name, _), result in results.items() if name == variant]
        name = (variant, f"{len(runs)}", f"{runs[0].state_bytes:,}")
        for task in TASKS:
            shares = zip(*(result.accuracy[task] for result in runs), strict=True)
            rows.append((*name, task, *(f"{min(share):.1%}" for share in shares)))
            name = ("", "", "")
        rows.append(())
    title = "recall accuracy, lowest over the seeds"
    print_table(names, rows, texts=4, framed=True, title=title, padding=(0, 0))
    lengths = {result.trained_length for result in results.values()}
    chances = ", ".join(f"{task} {chance(task):.1%}" for task in TASKS)
    print(f"trained on texts of {' or '.join(map(str, sorted(lengths)))} tokens (1x)")
    print(f"chance: {chances}")


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
