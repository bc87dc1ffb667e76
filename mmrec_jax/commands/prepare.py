"""Tokenizes a corpus ahead of time.

python -m mmrec_jax.commands.prepare --config=configs/tiny.py
"""

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from mmrec_jax.commands import cli
from mmrec_jax.config import from_mapping
from mmrec_jax.data.prepare import prepare
from mmrec_jax.data.token_cache import Prepared, cache_root
from mmrec_jax.errors import UserError


def _print_table(prepared: Prepared) -> None:
    table = Table()
    columns = ("split", "documents", "tokens", "bytes", "bytes per token", "unknown tokens")
    for column in columns:
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in prepared.splits.items():
        counts = split.counts
        tokens = max(counts.tokens - counts.documents, 1)  # without those that start documents
        table.add_row(
            name,
            f"{counts.documents:,}",
            f"{counts.tokens:,}",
            f"{counts.num_bytes:,}",
            f"{counts.num_bytes / tokens:.3f}",
            f"{counts.unknown / tokens:.4%}",
        )
    Console().print(table)
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
