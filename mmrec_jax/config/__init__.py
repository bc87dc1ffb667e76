"""Every knob of a run: its name, type, default, meaning and check.

A config file (`configs/tiny.py`) starts from `default_config()`, a ConfigDict in which a command
line can override any knob; `from_mapping` makes the frozen dataclasses below of it, and the rest of
the code sees only those. `python train.py --help_config` prints this list, and docs/config.md is
made from it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from mmrec_jax import checksums, knobs
from mmrec_jax.config.data import FILE_SOURCES, LEAST_VOCAB, DataConfig
from mmrec_jax.config.model import ModelConfig
from mmrec_jax.config.training import GrowthConfig, MeshConfig, TrainConfig
from mmrec_jax.knobs import Section, knob, require

# Part of config.json. It is raised when the same parameters would keep or read other tokens in
# long-term memory, so that runs from before are refused.
MEMORY_VERSION = 6

__all__ = [
    "FILE_SOURCES",
    "MEMORY_VERSION",
    "Config",
    "DataConfig",
    "GrowthConfig",
    "MeshConfig",
    "ModelConfig",
    "TrainConfig",
    "default_config",
    "differences",
    "flatten",
    "from_mapping",
]


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
    growth: GrowthConfig = GrowthConfig()  # noqa: RUF009 (it is frozen)
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009

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
        vocab_size, least = self.model.vocab_size, LEAST_VOCAB.get(self.data.tokenizer, 0)
        require(
            vocab_size >= least,
            f"model.vocab_size is {vocab_size}; data.tokenizer {self.data.tokenizer!r} needs at "
            f"least {least}",
        )
        require(
            self.train.seq_len % self.model.chunk_len == 0,
            f"train.seq_len {self.train.seq_len} is not a multiple of model.chunk_len "
            f"{self.model.chunk_len}",
        )

    @property
    def trains_saliency(self) -> bool:
        """Whether a sequence has tokens that leave short-term memory: of these, saliency learns."""
        return self.train.seq_len > self.model.short_term + self.model.chunk_len

    def to_json(self) -> str:
        """The text of config.json."""
        values = {"memory_version": MEMORY_VERSION, **dataclasses.asdict(self)}
        return checksums.sealed(values, indent=2)


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
    mapping = {key: value for key, value in mapping.items() if key != "memory_version"}
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
