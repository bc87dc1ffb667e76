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

    from configs import mini, small, tiny
    from mmrec_jax.config import from_mapping
    from mmrec_jax.learning.compiled import compile_step
    from mmrec_jax.learning.cost import count_memory
    from mmrec_jax.learning.sharding import make_mesh

    bfloat16 = tiny.get_config()
    bfloat16.model.dtype = "bfloat16"
    mappings = [size.get_config() for size in (tiny, mini, small)] + [bfloat16]
    print("planned: activations; compiled: temporaries (XLA's memory_analysis); in MB")
    print(f"{'':>8}  {'tokens':>10}  {'dtype':>9}  {'planned':>9}  {'compiled':>9}  ratio")
    for mapping in [_CONFIG.value] if _CONFIG.value else mappings:
        config = from_mapping(mapping)
        shape = config.train.batch_size, config.train.seq_len
        start = time.perf_counter()
        planned = count_memory(config).activations / 1e6
        seconds = time.perf_counter() - start
        compiled = compile_step(config, make_mesh(config, jax.devices()[:1]))
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(
            f"{config.name:>8}  {shape[0]:>2} x {shape[1]:>5,}  {config.model.dtype:>9}  "
            f"{planned:9,.1f}  {temporaries:9,.1f}  {planned / temporaries:5.2f}   "
            f"planned in {seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
