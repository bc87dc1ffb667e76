"""The knobs of the corpus."""

import dataclasses
import re
from typing import ClassVar

from mmrec_jax.knobs import Section, at_least, between, from_to, knob, one_of, require

# Ids that a tokenizer needs: two that stand for no text; 256 bytes, or an unknown character and
# one that is known.
LEAST_VOCAB = {"char": 4, "byte": 258, "bpe": 258}
FILE_SOURCES = ("text", "jsonl", "parquet")
SOURCES = ("sample", *FILE_SOURCES, "python_docs", "tfds", "recall")
TOKENIZERS = ("char", "byte", "bpe", "word")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Where the text comes from, how it is split, and how it becomes tokens."""

    PREFIX: ClassVar[str] = "data."

    source: str = knob(
        'Kind of corpus: generated sentences ("sample"), files ("text", "jsonl", "parquet"), '
        'Python\'s documentation, a TensorFlow dataset ("tfds"), or the recall tasks.',
        check=one_of(*SOURCES),
    )
    path: str = knob(
        'For "text", "jsonl" and "parquet": a file, a folder, a glob such as "books/*.txt", or a '
        "tar archive, which is read as a folder.",
        "",
    )
    mixture: str = knob(
        "Several such paths instead of data.path, each after its share of the training windows: "
        '"0.7 books/*.txt, 0.3 code.tar".',
        "",
    )
    validation_path: str = knob(
        "Path of separate files for the validation split; no fraction of the other files is then "
        "held out for it.",
        "",
    )
    test_path: str = knob("Path of separate files for the test split, likewise.", "")
    files: str = knob('Names of the files to read from it, such as "*.c,*.h"; "" for all.', "")
    exclude: str = knob(
        'Files and folders to leave out, such as "site-packages,test/bad*.py": a pattern with a '
        '"/" is that of a path relative to data.path, any other that of a name.',
        "",
    )
    min_file_bytes: int = knob("Size of the smallest files to read.", 0, at_least(0))
    join: str = knob(
        'For "text": what a document is, a file or all files of a folder in the order of their '
        "names.",
        "file",
        one_of("file", "folder"),
    )
    shuffle_documents: bool = knob(
        "Whether documents are in an order drawn from their names, so that the splits at the end "
        "are a fair sample, instead of the order of their names.",
        False,
    )
    field: str = knob(
        'For "jsonl", "parquet" and "tfds": the field of a document with its text.', "text"
    )
    tfds_name: str = knob('For "tfds": the dataset, such as "c4/en" or "my_corpus:1.0.0".', "")
    tfds_dir: str = knob('For "tfds": the folder of datasets; "" leaves the choice to TFDS.', "")
    tfds_split: str = knob(
        'For "tfds": what to train on, such as "train[:10%]"; "" is "train".', ""
    )
    tokenizer: str = knob(
        '"char", "byte", "bpe", the path of a tokenizer.json, or "word" for "recall".', "char"
    )
    validation_fraction: float = knob(
        "Share of the characters held out for validation, before the test split, where the corpus "
        "has no splits of its own.",
        0.05,
        between(0, 0.5),
    )
    test_fraction: float = knob(
        "Share of the characters held out for the test, at the end of the corpus.",
        0.05,
        from_to(0, 0.5),
    )
    count_line_ends: bool = knob(
        "Whether the perplexity per word counts a line end as a word of its own, as the figures "
        "published for WikiText do.",
        False,
    )
    sample_seed: int = knob('For "sample" and "recall": seed of the generated text.', 0)
    sample_chars: int = knob(
        'For "sample": characters of the training split, at least.', 64_600, at_least(1)
    )
    recall_pairs: int = knob(
        'For "recall": keys with a value that a text asks for.', 8, at_least(1)
    )
    recall_fewest: int = knob(
        'For "recall": the fewest such pairs in a training text; 0 puts recall_pairs in each.',
        0,
        at_least(0),
    )
    recall_steps: int = knob('For "recall": steps per epoch.', 100, at_least(1))

    def __post_init__(self):
        super().__post_init__()
        require(
            self.tokenizer in TOKENIZERS or self.tokenizer.endswith(".json"),
            f"data.tokenizer is {self.tokenizer!r}; it must be one of {', '.join(TOKENIZERS)}, or "
            "a path that ends in .json",
        )
        require(
            (self.tokenizer == "word") == (self.source == "recall"),
            f"data.tokenizer is {self.tokenizer!r} and data.source is {self.source!r}: 'word' and "
            "'recall' go together",
        )
        of_files = self.source in FILE_SOURCES
        require(
            not of_files or self.path != "" or self.mixture != "",
            f"data.source is {self.source!r} but data.path is empty; give a file, a folder or a "
            "glob, such as --config.data.path='books/*.txt'",
        )
        require(
            not (of_files and self.path and self.mixture),
            f"data.path is {self.path!r} and data.mixture is {self.mixture!r}: give one of them",
        )
        for name in ("mixture", "validation_path", "test_path"):
            require(
                of_files or not getattr(self, name),
                f"data.{name} is {getattr(self, name)!r} but data.source is {self.source!r}; it "
                f"needs one of {', '.join(FILE_SOURCES)}",
            )
        for weight, path in self.components if self.mixture else ():
            require(
                weight > 0 and path != "",
                f"data.mixture is {self.mixture!r}; it must be weights above 0, each before a "
                "path, such as '0.7 books/*.txt, 0.3 code.tar'",
            )
        require(
            self.source != "tfds" or self.tfds_name != "",
            "data.source is 'tfds' but data.tfds_name is empty; give the name of a dataset, such "
            "as --config.data.tfds_name=c4/en",
        )
        require(
            self.recall_fewest <= self.recall_pairs,
            f"data.recall_fewest is {self.recall_fewest}; it must be at most data.recall_pairs, "
            f"{self.recall_pairs}",
        )

    @property
    def components(self) -> tuple[tuple[float, str], ...]:
        """Weight and path of each corpus of the mixture, or of `path` alone.

        What is not a weight is 0.
        """
        if not self.mixture:
            return ((1.0, self.path),)
        components = []
        for item in self.mixture.split(","):
            weight, _, path = item.strip().partition(" ")
            number = re.fullmatch(r"\d*\.?\d+", weight)
            components.append((float(weight) if number else 0.0, path.strip()))
        return tuple(components)
