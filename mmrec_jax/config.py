"""Every knob of a run: its name, type, default, meaning and check.

A config file (`configs/tiny.py`) starts from `default_config()`, a ConfigDict in which a command
line can override any knob; `from_mapping` makes the frozen dataclasses below of it, and the rest of
the code sees only those. `python train.py --help_config` prints this list, and docs/config.md is
made from it.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import ml_collections

from mmrec_jax import knobs
from mmrec_jax.knobs import Section, above, at_least, between, from_to, knob, one_of, require

FILE_SOURCES = ("text", "jsonl", "parquet")
SOURCES = ("sample", *FILE_SOURCES, "python_docs", "tfds", "recall")
TOKENIZERS = ("char", "byte", "bpe", "word")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The shape of the model. Symbols in brackets are those of docs/architecture.md."""

    PREFIX: ClassVar[str] = "model."

    vocab_size: int = knob("[V] Number of token ids; a corpus may use fewer.", check=at_least(1))
    dim: int = knob(
        "[D] Width of the residual stream and of the recurrent state.", check=at_least(1)
    )
    num_layers: int = knob("[L] Number of blocks.", check=at_least(1))
    num_heads: int = knob("[H] Number of attention heads.", check=at_least(1))
    chunk_len: int = knob("[C] Tokens between two consolidations.", check=at_least(1))
    short_term: int = knob(
        "[S] Tokens in sight before the current chunk, a multiple of chunk_len.", check=at_least(0)
    )
    long_term: int = knob(
        "[M] Slots per head for salient older tokens; 0 switches long-term memory off.",
        check=at_least(0),
    )
    oldest_age: int = knob(
        "[A] Chunks outside short-term memory after which a token's saliency fades no more; texts "
        "in training should be longer.",
        16,
        at_least(0),
    )
    dropout: float = knob(
        "Dropout rate on the output of both halves of a block and inside the feed-forward.",
        0.0,
        from_to(0, 1),
    )
    mu: float = knob("Weight of the gated integration in the recurrence.", 0.1, between(0, 1))
    shifted_keys: bool = knob(
        "Whether even heads use the key of the token before, and so find what came after an "
        "earlier occurrence.",
        True,
    )
    saliency_weight: float = knob(
        "Weight of the loss that teaches saliency to predict use.", 0.3, at_least(0)
    )
    saliency_queries: int = knob(
        "Queries per sequence that this loss examines, at most.", 256, at_least(1)
    )
    use_dpg: bool = knob("Whether the decay's logit has a low-rank term (DPG).", False)
    dpg_rank: int = knob("Rank of that term.", 128, at_least(1))
    use_uboo: bool = knob("Whether an auxiliary loss predicts the state (UBOO).", False)
    uboo_weight: float = knob("Weight of that loss.", 0.1, at_least(0))
    dtype: str = knob(
        "Dtype of everything but the parameters, the recurrence and the softmax, which are float32 "
        "or wider.",
        "float32",
        one_of("float32", "bfloat16", "float64"),
    )
    remat: bool = knob(
        "Whether to recompute each block in the backward pass: less memory, more time.", False
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.dim % self.num_heads == 0,
            f"model.dim {self.dim} is not divisible by model.num_heads {self.num_heads}",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.dim / model.num_heads is {self.head_dim}; rotary positions need an even number",
        )
        require(
            self.dim % 4 == 0,
            f"model.dim {self.dim} is not divisible by 4 (the decay MLPs are D/4 wide)",
        )
        require(
            self.short_term % self.chunk_len == 0,
            f"model.short_term {self.short_term} is not a multiple of model.chunk_len "
            f"{self.chunk_len}",
        )

    @property
    def head_dim(self) -> int:
        """[K] Width of a head."""
        return self.dim // self.num_heads

    @property
    def seen_tokens(self) -> int:
        """[S + C + M] The most tokens whose keys and values a head can read."""
        return self.short_term + self.chunk_len + self.long_term


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """How the model is trained."""

    PREFIX: ClassVar[str] = "train."

    seed: int = knob(
        "Seed of the initial parameters, the order of the windows, and dropout.", 0, at_least(0)
    )
    batch_size: int = knob("Sequences per step, in all micro-batches together.", check=at_least(1))
    seq_len: int = knob(
        "[T] Tokens per sequence, a multiple of model.chunk_len.", check=at_least(1)
    )
    num_epochs: int = knob("Epochs to train for.", 1, at_least(1))
    num_steps: int = knob("Steps to train for, instead of num_epochs; 0 for none.", 0, at_least(0))
    num_tokens: int = knob(
        "Tokens to train on, instead of num_epochs or num_steps; 0 for none.", 0, at_least(0)
    )
    optimizer: str = knob(
        "Muon for the kernels of linear maps and Adam for the others, or AdamW for all parameters.",
        "muon",
        one_of("adamw", "muon"),
    )
    learning_rate: float = knob(
        "Peak learning rate of Adam or AdamW, reached after warmup_steps.", check=at_least(0)
    )
    muon_rate: float = knob(
        "Learning rate of Muon, as a multiple of learning_rate.", 10.0, above(0)
    )
    initial_learning_rate: float = knob(
        "Learning rate at the start of the warm-up.", 0.0, at_least(0)
    )
    final_learning_rate: float = knob(
        "Learning rate at the end of the cosine decay, which is the end of training.",
        0.0,
        at_least(0),
    )
    warmup_steps: int = knob("Steps of linear warm-up.", 100, at_least(0))
    weight_decay: float = knob("Weight decay of AdamW, on matrices only.", 0.1, at_least(0))
    b1: float = knob("Decay of AdamW's first moment.", 0.9, from_to(0, 1))
    b2: float = knob("Decay of AdamW's second moment.", 0.95, from_to(0, 1))
    clip_norm: float = knob("Largest global norm of the gradient.", 1.0, above(0))
    carry_memory: bool = knob(
        "Whether each row of the batch reads on from the memory of the step before. No gradient "
        "flows back into that memory.",
        False,
    )
    carry_windows: int = knob(
        "Sequences that a row reads on before it starts elsewhere; 0 for its whole share of the "
        "corpus.",
        0,
        at_least(0),
    )
    accumulate_steps: int = knob(
        "Micro-batches whose gradients are averaged into one step.", 1, at_least(1)
    )
    eval_every: int = knob(
        "Steps between evaluations, besides those after each epoch; 0 for none.", 0, at_least(0)
    )
    eval_batch_size: int = knob("Sequences per step of an evaluation.", 8, at_least(1))
    patience: int = knob(
        "Evaluations in a row without improvement before training stops; 0 for never.",
        0,
        at_least(0),
    )
    min_improvement: float = knob(
        "Nats per token by which an evaluation must be better to count as an improvement.",
        0.0,
        at_least(0),
    )
    checkpoint_every: int = knob("Steps between checkpoints.", 100, at_least(1))
    keep_checkpoints: int = knob("Newest checkpoints to keep, besides the best.", 3, at_least(1))
    log_every: int = knob(
        "Steps between progress lines where there is no terminal.", 10, at_least(1)
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.batch_size % self.accumulate_steps == 0,
            f"train.batch_size {self.batch_size} is not divisible by train.accumulate_steps "
            f"{self.accumulate_steps}",
        )
        require(
            not (self.num_steps and self.num_tokens),
            f"train.num_steps is {self.num_steps} and train.num_tokens is {self.num_tokens}: give "
            "one of them, and 0 for the other",
        )

    @property
    def step_tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.seq_len

    @property
    def fixed_steps(self) -> int:
        """Steps of the whole training where the config sets them; 0 where the epochs do."""
        return self.num_steps or -(-self.num_tokens // self.step_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthConfig(Section):
    """How the model starts where it grows from that of another run (init_from)."""

    PREFIX: ClassVar[str] = "growth."

    checkpoint: str = knob('Checkpoint of that run: "best", "latest", "final" or a step.', "best")
    placement: str = knob(
        "Where new layers go: after all others, or spread between them.",
        "top",
        one_of("top", "spread"),
    )
    moments: str = knob(
        "Adam's moments: fresh, or grown from those of that run.",
        "fresh",
        one_of("fresh", "grown"),
    )
    noise: float = knob(
        "Scale of the new weights, as a multiple of those of a fresh model.", 1.0, above(0)
    )
    old_rate: float = knob(
        "Learning rate of the old weights, as a multiple of that of the new. Where it is not 1, "
        "that run has to stay on disk.",
        1.0,
        at_least(0),
    )
    warmup_steps: int = knob(
        "Steps of linear warm-up, instead of train.warmup_steps.", 20, at_least(0)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section):
    """Everything that defines a run; saved in its workdir."""

    name: str = knob("Name of the run; its workdir is runs/ and this name by default.")
    init_from: str = knob(
        'Workdir of a run whose model this one grows from; "" for a fresh model.', ""
    )
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    growth: GrowthConfig = GrowthConfig()

    def __post_init__(self):
        super().__post_init__()
        if self.init_from:
            train = dataclasses.replace(self.train, warmup_steps=self.growth.warmup_steps)
            object.__setattr__(self, "train", train)
        require(
            self.growth.moments == "fresh" or self.train.optimizer == "adamw",
            f"growth.moments is {self.growth.moments!r} and train.optimizer is "
            f"{self.train.optimizer!r}: only the moments of AdamW can be grown",
        )
        carried = self.train.carry_memory and self.train.carry_windows == 0
        require(
            not (self.data.mixture and carried),
            "train.carry_windows is 0; with data.mixture it must be the number of sequences that a "
            "row reads from one corpus before it continues in another",
        )
        require(
            self.train.seq_len % self.model.chunk_len == 0,
            f"train.seq_len {self.train.seq_len} is not a multiple of model.chunk_len "
            f"{self.model.chunk_len}",
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def default_config() -> ml_collections.ConfigDict:
    """Every knob at its default, for a config file to change; those without one are None."""
    return knobs.to_config_dict(Config)


def from_mapping(mapping: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """The validated config of a ConfigDict, or of a parsed config.json.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type or out of range, or values
            that do not fit together.
    """
    if isinstance(mapping, ml_collections.ConfigDict):
        mapping = mapping.to_dict()
    return knobs.from_mapping(Config, mapping)


def differences(a: Config, b: Config) -> list[str]:
    """'section.key: value in a -> value in b' for every knob that is not equal."""
    flat_a, flat_b = flatten(dataclasses.asdict(a)), flatten(dataclasses.asdict(b))
    return [
        f"{key}: {flat_a[key]!r} -> {flat_b[key]!r}" for key in flat_a if flat_a[key] != flat_b[key]
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys such as "model.dim"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
