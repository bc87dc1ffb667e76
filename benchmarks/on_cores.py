"""Runs as many commands in parallel as there are cores, each on its own core."""

import concurrent.futures
import functools
import os
import queue
import subprocess
import sys
import time

Command = list[str]  # a script and its flags


def run_on_cores(jobs: dict[str, list[Command]]) -> None:
    """Runs jobs in parallel, the commands of a job in order; prints how long each job took.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    free = queue.SimpleQueue()
    cores = sorted(os.sched_getaffinity(0))
    for core in cores:
        free.put(core)

    def run(name: str) -> None:
        core, start = free.get(), time.perf_counter()
        try:
            for command in jobs[name]:
                subprocess.run(
                    [sys.executable, *command],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    preexec_fn=functools.partial(os.sched_setaffinity, 0, {core}),
                )
        finally:
            free.put(core)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)

    with concurrent.futures.ThreadPoolExecutor(len(cores)) as pool:
        list(pool.map(run, jobs))
