"""Times the training step without each of the fast forms in mmrec_jax/model/ops.py.

    python -m benchmarks.ops                               # tiny: 2 x 256 tokens per step
    python -m benchmarks.ops --config=configs/shakespeare_long.py \
        --config.data.source=text --config.data.path=tinyshakespeare.txt

All variants are compiled in one process and take turns, in a new random order in every round, so
that drift in the machine's speed affects all of them. "fast, again" is a second copy of "fast": the
difference between the two is the noise of the measurement.
"""

import time

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py", "Config to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 25, "Rounds per variant.")
_STEPS = flags.DEFINE_integer("steps", 5, "Training steps per round.")


def main():
    import jax
    import numpy as np

    from mmrec_jax.config import from_mapping
    from mmrec_jax.data.batches import training_batches
    from mmrec_jax.data.dataset import load_dataset
    from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer
    from mmrec_jax.learning.step import init_train_state, make_train_step
    from mmrec_jax.model import ops

    config = from_mapping(_CONFIG.value)
    windows = training_batches(load_dataset(config).train, config)
    batches = [jax.device_put(windows[index]) for index in range(_STEPS.value)]
    optimizer = make_optimizer(config.train, learning_rate_schedule(config.train, 100_000))
    variants = {"fast": (), "fast, again": ()}
    variants |= {f"plain {name}": (name,) for name in ops.OPERATIONS}
    variants["all plain"] = ops.OPERATIONS
    compiled, states, seconds = {}, {}, {name: [] for name in variants}
    for name, plain in variants.items():
        states[name] = init_train_state(config, optimizer, jax.random.key(0))
        with ops.plain(*plain):
            step = make_train_step(config, optimizer)
            compiled[name] = step.lower(states[name], batches[0]).compile()

    def run(name):
        for batch in batches:
            states[name], metrics = compiled[name](states[name], batch)
        jax.block_until_ready(metrics)

    for name in variants:
        run(name)
    random = np.random.default_rng(0)
    for _ in range(_ROUNDS.value):
        for name in random.permutation(list(variants)):
            start = time.perf_counter()
            run(name)
            seconds[name].append((time.perf_counter() - start) / _STEPS.value)
    fast = np.mean([seconds["fast"], seconds["fast, again"]], axis=0)
    print(f"{config.name}: {_ROUNDS.value} rounds of {_STEPS.value} steps, median per step")
    for name, values in seconds.items():
        slower = np.median(np.array(values) / fast) - 1
        print(f"  {name:24} {1e3 * np.median(values):7.1f} ms  {slower:+6.1%}")


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
