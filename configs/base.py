"""base: the fourth rung of the ladder, and the first for an accelerator.

    python train.py --config=configs/base.py --dry_run
    python train.py --config=configs/base.py --config.init_from=runs/small

The corpus is tiny's sample, so that the command runs; a model of this size needs a real corpus
(docs/data.md).
"""

from configs import small


def get_config():
    config = small.get_config()
    config.name = "base"

    config.model.vocab_size = 32_000
    config.model.dim = 1_024
    config.model.num_layers = 12
    config.model.scan_layers = "auto"
    config.model.num_heads = 8
    config.model.dtype = "bfloat16"
    config.model.dropout = 0.0
    config.model.saliency_queries = 256

    # Every device has a part of the parameters.
    config.mesh.data = 1
    config.mesh.fsdp = -1

    config.train.batch_size = 16
    config.train.seq_len = 8_192
    config.train.warmup_steps = 1_000
    config.growth.warmup_steps = 20
    config.train.eval_batch_size = 16
    config.train.checkpoint_every = 1_000
    return config
