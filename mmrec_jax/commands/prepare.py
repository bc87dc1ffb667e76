"""Tokenizes a corpus ahead of time.

python -m mmrec_jax.commands.prepare --config=configs/tiny.py
"""

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli
from mmrec_jax.config import from_mapping
from mmrec_jax.data.prepare import prepare
from mmrec_jax.data.token_cache import Prepared
from mmrec_jax.errors import UserError
from mmrec_jax.files import cache_root
from mmrec_jax.tables import print_table


def _print_table(prepared: Prepared) -> None:
    names = ("split", "documents", "tokens", "bytes", "bytes per token", "unknown tokens")
    rows = []
    for name, split in prepared.splits.items():
        counts = split.counts
        tokens = max(counts.tokens - counts.documents, 1)  # without those that start documents
        rows.append(
            (
                name,
                f"{counts.documents:,}",
                f"{counts.tokens:,}",
                f"{counts.num_bytes:,}",
                f"{counts.num_bytes / tokens:.3f}",
                f"{counts.unknown / tokens:.4%}",
            )
        )
    print_table(names, rows, framed=True)
    print(f"{prepared.tokenizer.vocab_size:,} token ids")


def main():
    config = from_mapping(flags.FLAGS.config)
    if config.data.source == "recall":
        raise UserError(
            "data.source 'recall' has no corpus to prepare: its texts are generated on the fly"
        )
    print(f"preparing {config.data.source} in {cache_root()}", flush=True)
    _print_table(prepare(config))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file, such as configs/tiny.py.")
    cli.run(main, required=["config"])
