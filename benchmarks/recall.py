"""What each memory is worth: trains the variants of configs/recall.py and asks for the facts.

    python -m benchmarks.recall                                       # all of it
    python -m benchmarks.recall --seeds=1 --variant=full --variant=no_long_term

As many runs as there are cores go on at once, each on a core of its own. What an earlier call has
done is not done again. Prints a table and draws recall.png beside the runs.
"""

import concurrent.futures
import functools
import json
import os
import queue
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

from configs.recall import VARIANTS

_WORKDIR = flags.DEFINE_string("workdir", "runs/recall_suite", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the variants that should recall everything.")
_VARIANT = flags.DEFINE_multi_enum("variant", list(VARIANTS), list(VARIANTS), "Which to run.")

COMPLETE = ("more_pairs", "full")  # with every seed, and the longest first; ablations with one seed


def main(_):
    from mmrec_jax.recall_suite import RecallResult
    from mmrec_jax.report import draw_recall

    start = time.perf_counter()
    folder = Path(_WORKDIR.value)
    order = [*COMPLETE, *(variant for variant in VARIANTS if variant not in COMPLETE)]
    jobs = [
        (variant, seed)
        for variant in order
        for seed in range(_SEEDS.value if variant in COMPLETE else 1)
        if variant in _VARIANT.value
    ]
    cores = sorted(os.sched_getaffinity(0))
    free = queue.SimpleQueue()
    for core in cores:
        free.put(core)

    def run(job):
        core = free.get()
        try:
            return run_on_core(folder, *job, core)
        finally:
            free.put(core)

    with concurrent.futures.ThreadPoolExecutor(len(cores)) as pool:
        values = list(pool.map(run, jobs))
    results = {job: RecallResult(**result) for job, result in zip(jobs, values, strict=True)}
    print_summary(results)
    of_first_seed = [result for (_, seed), result in results.items() if seed == 0]
    draw_recall(of_first_seed, folder / "recall.png")
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(jobs)} runs in {minutes:.1f} minutes on {len(cores)} cores")


def run_on_core(folder: Path, variant: str, seed: int, core: int) -> dict:
    """Trains and evaluates a run; what its recall.json holds."""
    path = folder / f"{variant}_{seed}"
    start = time.perf_counter()
    config = f"--config=configs/recall.py:{variant}"
    commands = (
        ["train.py", config, f"--config.train.seed={seed}", f"--workdir={path}"],
        ["eval.py", "--suite=recall", f"--workdir={path}"],
    )
    for command in () if (path / "recall.json").exists() else commands:
        subprocess.run(
            [sys.executable, *command],
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=functools.partial(os.sched_setaffinity, 0, {core}),
        )
    print(f"{path}: {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads((path / "recall.json").read_text())


def print_summary(results: dict) -> None:
    """Lowest share of right answers over the seeds, by variant, task and length."""
    from mmrec_jax.data.recall import TASKS, chance

    first = next(iter(results.values()))
    table = Table(title="share of right answers, lowest of the seeds", padding=(0, 0))
    for name in ("variant", "seeds", "bytes", "task"):
        table.add_column(name)
    for multiple in first.multiples:
        table.add_column(f"{multiple:,}x", justify="right")
    for variant in dict.fromkeys(variant for variant, _ in results):
        runs = [result for (name, _), result in results.items() if name == variant]
        name = (variant, f"{len(runs)}", f"{runs[0].state_bytes:,}")
        for task in TASKS:
            shares = zip(*(result.accuracy[task] for result in runs), strict=True)
            table.add_row(*name, task, *(f"{min(share):.1%}" for share in shares))
            name = ("", "", "")
        table.add_section()
    Console().print(table)
    lengths = {result.trained_length for result in results.values()}
    chances = ", ".join(f"{task} {chance(task):.1%}" for task in TASKS)
    print(f"trained on texts of {' or '.join(map(str, sorted(lengths)))} tokens (1x)")
    print(f"chance: {chances}")


if __name__ == "__main__":
    app.run(main)
