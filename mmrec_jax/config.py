"""Configuration: frozen, validated dataclasses, made in one place from a ConfigDict.

A config file (`configs/tiny.py`) returns an ml_collections ConfigDict, so that a command line can
override any knob; the rest of the code sees only the dataclasses below.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from mmrec_jax.errors import UserError, nearest


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _require_at_least(section: str, config: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= least, f"{section}.{name} is {value}; it must be at least {least}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Symbols in brackets are those of docs/architecture.md."""

    vocab_size: int  # [V]
    dim: int  # [D] width of the residual stream and of the recurrent state
    num_layers: int  # [L]
    num_heads: int  # [H] heads of the attention over short- and long-term memory
    chunk_len: int  # [C] tokens between two consolidations
    short_term: int  # [S] tokens kept before the current chunk; a multiple of chunk_len
    long_term: int  # [M] slots per head for salient older tokens; 0 switches long-term memory off
    dropout: float = 0.0
    mu: float = 0.1  # weight of the gated integration in the core
    shifted_keys: bool = True  # even heads use the key of the token before
    saliency_weight: float = 0.3  # weight of the loss that teaches saliency to predict use
    saliency_queries: int = 256  # queries a sequence that this loss looks at, at most
    use_dpg: bool = False  # low-rank term in the decay logit
    dpg_rank: int = 128
    use_uboo: bool = False  # auxiliary loss that predicts the state
    uboo_weight: float = 0.1
    dtype: str = "float32"  # of everything but the recurrence, the softmax and the parameters
    remat: bool = False  # recompute each block in the backward pass: less memory, more time

    def __post_init__(self):
        _require_at_least(
            "model", self, 1, "vocab_size", "dim", "num_layers", "num_heads", "chunk_len",
            "saliency_queries", "dpg_rank",
        )  # fmt: skip
        _require_at_least(
            "model", self, 0, "short_term", "long_term", "saliency_weight", "uboo_weight"
        )
        _require(
            self.dim % self.num_heads == 0,
            f"model.dim {self.dim} is not divisible by model.num_heads {self.num_heads}",
        )
        _require(
            self.head_dim % 2 == 0,
            f"model.dim / model.num_heads is {self.head_dim}; rotary positions need an even number",
        )
        _require(
            self.dim % 4 == 0,
            f"model.dim {self.dim} is not divisible by 4 (decay MLPs are D/4 wide)",
        )
        _require(
            self.short_term % self.chunk_len == 0,
            f"model.short_term {self.short_term} is not a multiple of model.chunk_len "
            f"{self.chunk_len}",
        )
        _require(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; it must be in [0, 1)")
        _require(0 < self.mu < 1, f"model.mu is {self.mu}; it must be between 0 and 1")
        _require_choice("model.dtype", self.dtype, ("float32", "bfloat16", "float64"))

    @property
    def head_dim(self) -> int:
        """[K] width of a head."""
        return self.dim // self.num_heads


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is split."""

    source: str  # "sample", "text", "jsonl", "python_docs", "tfds" (data/corpora.py) or "recall"
    path: str = ""  # for "text" and "jsonl": a file, a folder, or a glob such as "books/*.txt"
    field: str = "text"  # for "jsonl" and "tfds": where in each document the text is
    tfds_name: str = ""  # for "tfds": such as "c4/en" or "my_corpus:1.0.0"
    tfds_dir: str = ""  # for "tfds": the folder of datasets; "": TFDS's own choice
    tfds_split: str = ""  # for "tfds": what to train on, such as "train[:10%]"; "": "train"
    tokenizer: str = "char"  # "byte", "bpe", a path to a tokenizer.json; "word" for "recall"
    # Of the characters, contiguous, at the end of the corpus: where it has no splits of its own.
    validation_fraction: float = 0.05  # before the test split
    test_fraction: float = 0.05
    sample_seed: int = 0  # for "sample" and "recall"
    sample_chars: int = 64_600  # for "sample": least number of characters of the training split
    recall_pairs: int = 8  # for "recall": keys with a value that a text asks for
    recall_fewest: int = 0  # for "recall": such pairs of a training text; 0: recall_pairs in each
    recall_steps: int = 100  # for "recall": steps an epoch

    def __post_init__(self):
        sources = ("sample", "text", "jsonl", "python_docs", "tfds", "recall")
        _require_choice("data.source", self.source, sources)
        if not self.tokenizer.endswith(".json"):
            kinds = ("char", "byte", "bpe", "word", "or a path that ends in .json")
            _require_choice("data.tokenizer", self.tokenizer, kinds)
        _require(
            (self.tokenizer == "word") == (self.source == "recall"),
            f"data.tokenizer is {self.tokenizer!r}, data.source {self.source!r}: 'word' and "
            "'recall' go together",
        )
        _require(
            self.source not in ("text", "jsonl") or self.path != "",
            f"data.source is {self.source!r} but data.path is empty; give a file, a folder or a "
            "glob, such as --config.data.path='books/*.txt'",
        )
        _require(
            self.source != "tfds" or self.tfds_name != "",
            "data.source is 'tfds' but data.tfds_name is empty; give the name of a dataset, such "
            "as --config.data.tfds_name=c4/en",
        )
        for name, least in (("validation_fraction", 1e-9), ("test_fraction", 0)):
            value = getattr(self, name)
            _require(least <= value < 0.5, f"data.{name} is {value}; it must be between 0 and 0.5")
        _require_at_least("data", self, 1, "sample_chars", "recall_pairs", "recall_steps")
        _require(
            0 <= self.recall_fewest <= self.recall_pairs,
            f"data.recall_fewest is {self.recall_fewest}; it must be between 0 and "
            f"data.recall_pairs, {self.recall_pairs}",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    seed: int
    batch_size: int  # sequences a step, all accumulated micro-batches together
    seq_len: int  # [T] tokens a sequence; a multiple of model.chunk_len
    num_epochs: int
    learning_rate: float  # peak, reached after warmup_steps
    initial_learning_rate: float  # at the start of the warm-up
    final_learning_rate: float  # at the end of the cosine decay, which is the end of training
    warmup_steps: int
    weight_decay: float  # on matrices only
    b1: float
    b2: float
    clip_norm: float  # largest global norm of the gradient
    num_steps: int = 0  # steps in all, instead of num_epochs
    num_tokens: int = 0  # tokens in all, instead of num_epochs or num_steps
    carry_memory: bool = False  # sequences go on from those of the step before, without gradient
    carry_windows: int = 0  # sequences a lane reads on before it starts elsewhere; 0: to its end
    accumulate_steps: int = 1  # micro-batches whose gradients are averaged into one step
    eval_every: int = 0  # steps between evaluations besides those after each epoch; 0 for none
    eval_batch_size: int = 8
    patience: int = 0  # evaluations without improvement before training stops; 0 for never
    min_improvement: float = 0.0  # nats a token; what improves by less has not, for patience
    checkpoint_every: int = 100
    keep_checkpoints: int = 3  # newest ones kept, besides the best
    log_every: int = 10  # steps between two progress lines where there is no terminal

    def __post_init__(self):
        _require_at_least(
            "train", self, 1, "batch_size", "seq_len", "num_epochs", "accumulate_steps",
            "eval_batch_size", "checkpoint_every", "keep_checkpoints", "log_every",
        )  # fmt: skip
        _require_at_least(
            "train", self, 0, "seed", "warmup_steps", "weight_decay", "learning_rate",
            "initial_learning_rate", "final_learning_rate", "eval_every", "patience",
            "carry_windows", "num_steps", "num_tokens", "min_improvement",
        )  # fmt: skip
        _require(self.clip_norm > 0, f"train.clip_norm is {self.clip_norm}; it must be above 0")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"train.{name} is {value}; it must be in [0, 1)")
        _require(
            self.batch_size % self.accumulate_steps == 0,
            f"train.batch_size {self.batch_size} is not divisible by train.accumulate_steps "
            f"{self.accumulate_steps}",
        )
        _require(
            not (self.num_steps and self.num_tokens),
            f"train.num_steps is {self.num_steps} and train.num_tokens {self.num_tokens}: give one "
            "of them, and 0 for the other",
        )

    @property
    def step_tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.seq_len

    @property
    def fixed_steps(self) -> int:
        """Steps in all, where the config says it; 0 where the corpus does, by epochs."""
        return self.num_steps or -(-self.num_tokens // self.step_tokens)


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
    """How a run starts from the model of another one (Config.init_from)."""

    checkpoint: str = "best"  # of that run: best, latest, final or a step
    placement: str = "top"  # new layers: after all others ("top") or between them ("spread")
    moments: str = "fresh"  # Adam's: "fresh", or those of that run ("grown")
    noise: float = 1.0  # new weights start as in a fresh model, times this
    # Learning rate of what the source had, as a share of that of the new; where it is not 1, the
    # source has to stay.
    old_rate: float = 1.0
    warmup_steps: int = 20  # instead of train.warmup_steps

    def __post_init__(self):
        _require_choice("growth.placement", self.placement, ("top", "spread"))
        _require_choice("growth.moments", self.moments, ("fresh", "grown"))
        _require_at_least("growth", self, 0, "warmup_steps", "old_rate")
        _require(
            self.noise > 0,
            f"growth.noise is {self.noise}; it must be above 0, or new weights could not learn",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run needs, saved in its workdir."""

    name: str  # the default workdir is runs/<name>
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    init_from: str = ""  # the workdir of a run whose model this one grows from; "": starts fresh
    growth: GrowthConfig = GrowthConfig()

    def __post_init__(self):
        if self.init_from:
            train = dataclasses.replace(self.train, warmup_steps=self.growth.warmup_steps)
            object.__setattr__(self, "train", train)
        _require(
            self.train.seq_len % self.model.chunk_len == 0,
            f"train.seq_len {self.train.seq_len} is not a multiple of model.chunk_len "
            f"{self.model.chunk_len}",
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def from_mapping(mapping: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """The validated config of a ConfigDict, or of a parsed config.json.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type or out of range, or values
            that do not fit together.
    """
    if isinstance(mapping, ml_collections.ConfigDict):
        mapping = mapping.to_dict()
    return _build(Config, mapping, "")


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


def _build(cls: type, mapping: Mapping[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in mapping:
        _require(key in fields, f"unknown config key {prefix}{key}{nearest(key, list(fields))}")
    values = {}
    for name, field in fields.items():
        if name not in mapping:
            has_default = field.default is not dataclasses.MISSING
            _require(has_default, f"config key {prefix}{name} is missing")
            continue
        value = mapping[name]
        if dataclasses.is_dataclass(field.type):
            _require(isinstance(value, Mapping), f"config key {prefix}{name} must be a section")
            values[name] = _build(field.type, value, f"{prefix}{name}.")
        else:
            values[name] = _convert(f"{prefix}{name}", value, field.type)
    return cls(**values)


def _convert(key: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    _require(type(value) is kind, f"config key {key} is {value!r}; it must be {_KIND_NAMES[kind]}")
    return value


_KIND_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
