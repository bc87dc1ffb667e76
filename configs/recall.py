"""Recall of facts after noise (mmrec_jax/data/sources/recall.py), with and without each memory.

    python train.py --config=configs/recall.py
    python eval.py --workdir=runs/recall --suite=recall

The state is of constant size, and texts in training have at most 128 tokens. Variants show what
each part contributes: `--config=configs/recall.py:no_long_term` and so on; see VARIANTS.
"""

from mmrec_jax.config import default_config

VARIANTS = {
    "full": {},
    "no_long_term": {"model.long_term": 0},
    "no_attention": {"model.long_term": 0, "model.short_term": 0, "model.chunk_len": 1},
    "no_shifted_keys": {"model.shifted_keys": False},
    "all_in_sight": {"model.short_term": 128},  # nothing leaves short-term memory in training
    "pairs_4": {"data.recall_pairs": 4},
    "pairs_16": {"data.recall_pairs": 16, "model.long_term": 64, "train.seq_len": 256},
    "pairs_32": {"data.recall_pairs": 32, "model.long_term": 128, "train.seq_len": 256},
}


def get_config(variant="full"):
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = default_config()
    config.name = "recall" if variant == "full" else f"recall_{variant}"

    model = config.model
    model.vocab_size = 192  # V
    model.dim = 64  # D
    model.num_layers = 2  # L
    model.num_heads = 2  # H
    # Facts leave sight early in a text, so that saliency learns of many that they are needed.
    model.chunk_len = 16  # C
    model.short_term = 16  # S
    model.long_term = 32  # M
    model.oldest_age = 8  # A; texts of 128 tokens show ages of at most 6

    data = config.data
    data.source = "recall"
    data.tokenizer = "word"
    data.recall_pairs = 8
    data.recall_steps = 600  # per epoch

    train = config.train
    train.batch_size = 16
    train.seq_len = 128
    train.num_epochs = 5
    train.learning_rate = 1e-3
    train.weight_decay = 0.01
    train.eval_batch_size = 32
    train.checkpoint_every = 400
    train.keep_checkpoints = 1

    for key, value in VARIANTS[variant].items():
        section, name = key.split(".")
        config[section][name] = value
    return config
