"""Turns your text into a versioned TensorFlow dataset, written and read without TensorFlow.

    python -m mmrec_jax.commands.tfds_builder --name=my_books --path='books/*.txt'
    python train.py --config=configs/tiny.py --config.data.source=tfds \
        --config.data.tfds_name=my_books

Any other program that reads TFDS can use it, too: `tfds.data_source("my_books", split="train")`.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from mmrec_jax.commands import cli
from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import HELD_OUT, Part, split_pieces
from mmrec_jax.data.encoding import blocks
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.data.sources.tfds import quietly
from mmrec_jax.errors import UserError


class TextCorpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A corpus of text or JSON lines. `make_builder` gives it its name and version.

    An example is a document with its number. A document longer than a block is several examples
    with the same number, in order.
    """

    VERSION = tfds.core.Version("1.0.0")
    data: DataConfig  # where the text is and how it is split

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Text of {self.data.path}.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "document": tfds.features.Scalar(np.int64)}
            ),
            disable_shuffling=True,  # the order of a corpus matters
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        (part,) = open_corpus(self.data).parts
        total = sum(len(piece.text) for piece in part.pieces())
        splits = [name for name, share in part.shares if share]
        return {name: self._generate_examples(part, total, name) for name in splits}

    def _generate_examples(
        self, part: Part, total: int, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pieces = (piece for name, piece in split_pieces(part, total) if name == split)
        document = -1
        for key, (text, begins) in enumerate(itertools.chain.from_iterable(blocks(pieces))):
            document += begins
            yield key, {"text": text, "document": document}


def make_builder(name: str, version: str, data: DataConfig, data_dir: str | None) -> TextCorpus:
    """The builder of a dataset in the folder `data_dir` or, if that is None, the default of TFDS.

    Raises:
        UserError: TFDS does not accept the name or version, or the text does not exist.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(f"--name is {name!r}; it must be snake_case, such as my_books")
    open_corpus(data)
    try:
        values = {"name": name, "VERSION": tfds.core.Version(version), "data": data}
    except ValueError as error:
        raise UserError(f"--version: {error}") from error
    cls = type(TextCorpus)(name, (TextCorpus,), values, skip_registration=True)
    return cls(data_dir=data_dir, file_format="array_record")


def main():
    names = ("source", "path", "field", *(f"{split}_fraction" for split in HELD_OUT))
    data = DataConfig(**{name: getattr(flags.FLAGS, name) for name in names})
    with quietly():
        builder = make_builder(flags.FLAGS.name, flags.FLAGS.version, data, flags.FLAGS.data_dir)
        if builder.is_prepared():
            raise UserError(
                f"{builder.data_path} already exists; choose another --version for another text"
            )
        builder.download_and_prepare()
    for split in builder.info.splits.values():
        print(f"{split.name}: {split.num_examples:,} examples, {split.num_bytes:,} bytes")
    print(f"{builder.info.full_name} is in {builder.data_path}")


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "Name of the dataset, in snake_case.")
    flags.DEFINE_string("version", "1.0.0", "Version of the dataset.")
    flags.DEFINE_string("data_dir", None, "Folder of datasets; by default ~/tensorflow_datasets.")
    flags.DEFINE_enum("source", "text", ["text", "jsonl"], "Format of the files.")
    flags.DEFINE_string("path", None, "A file, a folder or a glob.")
    flags.DEFINE_string("field", "text", "Field of a JSON line with its text.")
    for split in HELD_OUT:
        flags.DEFINE_float(f"{split}_fraction", 0.05, f"Share of characters, {split} split.")
    cli.run(main, required=["name", "path"])
