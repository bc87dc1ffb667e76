"""Compares the speed of the training step with that of the machine's matmuls.

    python -m benchmarks.train_step                        # tiny: 2 x 256 tokens
    python -m benchmarks.train_step --profile=20           # and the 20 most expensive operations
    MMREC_GIVE_MEMORY_BACK=1 python -m benchmarks.train_step   # without commands/process.py

Training steps and matmuls alternate, and the two are compared within each round, so that drift in
the machine's speed affects both. Model FLOP/s are 6 x parameters x tokens per second: attention,
gates and the optimizer are not counted. The peak is the fastest (by median) of several float32
matmuls, including the model's own.
"""

import tempfile
import time
from collections import defaultdict
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py", "Config to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds of measurement.")
_STEPS = flags.DEFINE_integer("steps", 10, "Training steps per round.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Operations of a trace to list.")

MATMULS = ((1024, 1024, 1024), (2048, 2048, 2048), (512, 128, 5000), (5000, 512, 128))


def main():
    import jax
    import numpy as np

    from mmrec_jax.config import from_mapping
    from mmrec_jax.data.batches import TrainingWindows
    from mmrec_jax.data.dataset import load_dataset
    from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer
    from mmrec_jax.learning.step import init_train_state, make_train_step

    config = from_mapping(_CONFIG.value)
    train = config.train
    windows = TrainingWindows(load_dataset(config).train, train.batch_size, train.seq_len, 0)
    # On the device in advance, as in training.
    batches = [jax.device_put(windows[index]) for index in range(_STEPS.value)]
    optimizer = make_optimizer(train, learning_rate_schedule(train, 100_000))
    state = init_train_state(config, optimizer, jax.random.key(0))
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    start = time.perf_counter()
    step = make_train_step(config, optimizer).lower(state, batches[0]).compile()
    print(f"{config.name}: {parameters:,} parameters, {train.batch_size} x {train.seq_len} tokens")
    print(
        f"compiled in {time.perf_counter() - start:.1f} s, "
        f"{_temporaries(step):.0f} MB of temporaries"
    )

    def steps(state, count):
        for index in range(count):
            state, metrics = step(state, batches[index])
        jax.block_until_ready(metrics)
        return state

    random = np.random.default_rng(0)
    matmul = jax.jit(lambda a, b: a @ b)
    operands = {
        (m, k, n): [
            jax.device_put(random.normal(size=shape).astype("f4")) for shape in ((m, k), (k, n))
        ]
        for m, k, n in MATMULS
    }
    for pair in operands.values():
        jax.block_until_ready(matmul(*pair))
    state = steps(state, _STEPS.value)

    step_times, matmul_times = [], defaultdict(list)
    faults = _page_faults()
    for _ in range(_ROUNDS.value):
        start = time.perf_counter()
        state = steps(state, _STEPS.value)
        step_times.append((time.perf_counter() - start) / _STEPS.value)
        for shape, pair in operands.items():
            start = time.perf_counter()
            for _ in range(5):
                out = matmul(*pair)
            jax.block_until_ready(out)
            matmul_times[shape].append((time.perf_counter() - start) / 5)
    faults = (_page_faults() - faults) / (_ROUNDS.value * _STEPS.value)

    speeds = {  # in each round
        (m, k, n): 2 * m * k * n / np.array(times) for (m, k, n), times in matmul_times.items()
    }
    for (m, k, n), speed in speeds.items():
        print(f"matmul {m} x {k} x {n}: {np.median(speed) / 1e9:.0f} GFLOP/s")
    peak = max(speeds.values(), key=np.median)
    seconds, tokens = np.array(step_times), train.batch_size * train.seq_len
    speed = 6 * parameters * tokens / seconds
    print(
        f"step, median round: {1e3 * np.median(seconds):.1f} ms, "
        f"{tokens / np.median(seconds):,.0f} tokens/s, {np.median(speed) / 1e9:.0f} model "
        f"GFLOP/s = {np.median(speed / peak):.1%} of the fastest matmul in the same round"
    )
    print(f"step, best round: {1e3 * seconds.min():.1f} ms")
    print(f"page faults per step: {faults:,.0f}")
    if _PROFILE.value:
        _print_profile(lambda: steps(state, _STEPS.value), _STEPS.value, _PROFILE.value)


def _temporaries(compiled) -> float:
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes / 1e6 if analysis else float("nan")


def _page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _print_profile(run, steps: int, most: int) -> None:
    """Prints the time by kind of operation, summed over all threads, from a JAX trace."""
    import jax

    from mmrec_jax.training.profiling import most_expensive

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        operations = most_expensive(Path(folder), most)
    print("thread time by operation, ms per step (a loop contains its body):")
    for name, milliseconds in operations:
        print(f"  {milliseconds / steps:7.2f}  {name}")


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
