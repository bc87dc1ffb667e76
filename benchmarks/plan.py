"""Compares what --dry_run plans for a training step with what the compiler finds.

    python -m benchmarks.plan
    python -m benchmarks.plan --config=configs/mini.py --config.train.seq_len=256
    python -m benchmarks.plan --topology=v5p:2x2x1         # for a TPU, by its own compiler

Nothing is executed; the step is only compiled, from shapes. With --topology, the configs are tiny
and one layer of mmrec_7b. The compiler's FLOPs (XLA's cost_analysis) include elementwise operations
and count what a loop over time does only once.
"""

import time

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config; by default several.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Compile for a TPU of this slice, with libtpu.")


def main():
    import jax

    from mmrec_jax.config import from_mapping
    from mmrec_jax.learning.compiled import compile_step, topology
    from mmrec_jax.learning.cost import count_flops, count_memory
    from mmrec_jax.learning.sharding import make_mesh

    devices = topology(_TOPOLOGY.value) if _TOPOLOGY.value else jax.devices()
    print("MB: planned activations; temporaries (XLA's memory_analysis)")
    print("GFLOPs per step: planned; compiled (XLA's cost_analysis)")
    columns = "MB", "compiled", "ratio", "GFLOPs", "compiled", "ratio"
    print(f"{'':>8}  {'tokens':>11}  {'dtype':>8}  " + "  ".join(f"{x:>9}" for x in columns))
    for mapping in [_CONFIG.value] if _CONFIG.value else _default_configs():
        config = from_mapping(mapping)
        train = config.train
        start = time.perf_counter()
        compiled = compile_step(config, make_mesh(config, devices[:1]))
        seconds = time.perf_counter() - start
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        pairs = (
            (count_memory(config).activations / 1e6, temporaries / 1e6),
            (count_flops(config).training * train.step_tokens / 1e9, _flops(compiled) / 1e9),
        )
        figures = [
            f"{planned:9,.1f}  {found:9,.1f}  {planned / found:9.2f}" for planned, found in pairs
        ]
        print(
            f"{config.name:>8}  {train.batch_size:>3} x {train.seq_len:>5,}  "
            f"{config.model.dtype:>8}  " + "  ".join(figures) + f"   compiled in {seconds:.0f} s",
            flush=True,
        )


def _default_configs():
    from configs import mini, mmrec_7b, small, tiny

    if _TOPOLOGY.value:
        layer = mmrec_7b.get_config()
        layer.model.num_layers = 1
        layer.train.batch_size = 16
        return [tiny.get_config(), layer]
    bfloat16 = tiny.get_config()
    bfloat16.model.dtype = "bfloat16"
    return [*(size.get_config() for size in (tiny, mini, small)), bfloat16]


def _flops(compiled) -> float:
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


if __name__ == "__main__":
    cli.run(main, cached=False)
