"""Compares the memory that --dry_run plans for a training step with what the compiler requests.

    python -m benchmarks.plan
    python -m benchmarks.plan --config=configs/mini.py --config.train.seq_len=256

Nothing is executed; the step is only compiled, from shapes.
"""

import time

from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config; by default several.")


def main():
    import jax
    import jax.numpy as jnp
    import optax

    from configs import mini, small, tiny
    from mmrec_jax.config import from_mapping
    from mmrec_jax.data.batches import Batch
    from mmrec_jax.learning.cost import count_memory
    from mmrec_jax.learning.optimizer import make_optimizer
    from mmrec_jax.learning.step import init_train_state, make_train_step

    bfloat16 = tiny.get_config()
    bfloat16.model.dtype = "bfloat16"
    mappings = [size.get_config() for size in (tiny, mini, small)] + [bfloat16]
    print("planned: activations; compiled: temporaries (XLA's memory_analysis); in MB")
    print(f"{'':>8}  {'tokens':>10}  {'dtype':>9}  {'planned':>9}  {'compiled':>9}  ratio")
    for mapping in [_CONFIG.value] if _CONFIG.value else mappings:
        config = from_mapping(mapping)
        shape = config.train.batch_size, config.train.seq_len
        optimizer = make_optimizer(config.train, optax.constant_schedule(0.0))
        state = jax.eval_shape(
            lambda config=config, optimizer=optimizer: init_train_state(
                config, optimizer, jax.random.key(0)
            )
        )
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        weights = jax.ShapeDtypeStruct(shape, jnp.float32)
        batch = Batch(tokens, tokens, tokens, weights, jax.ShapeDtypeStruct(shape[:1], bool))
        start = time.perf_counter()
        planned = count_memory(config).activations / 1e6
        seconds = time.perf_counter() - start
        compiled = make_train_step(config, optimizer).lower(state, batch).compile()
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(
            f"{config.name:>8}  {shape[0]:>2} x {shape[1]:>5,}  {config.model.dtype:>9}  "
            f"{planned:9,.1f}  {temporaries:9,.1f}  {planned / temporaries:5.2f}   "
            f"planned in {seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
