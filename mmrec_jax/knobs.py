"""How a config is declared: a knob has a type, a default, a meaning and a check, in one place.

`config/` declares the knobs. From there come the ConfigDict that a config file starts with, the
validated dataclasses that the code reads, and what `train.py --help_config` prints.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import ml_collections
from ml_collections import config_dict

from mmrec_jax.errors import UserError, nearest


class Check(NamedTuple):
    """What a value of a knob must be."""

    holds: Callable[[Any], bool]
    wanted: str  # completes "it must be ..."


def at_least(least: float) -> Check:
    return Check(lambda x: x >= least, f"at least {least}")


def above(bound: float) -> Check:
    return Check(lambda x: x > bound, f"above {bound}")


def between(low: float, high: float) -> Check:
    return Check(lambda x: low < x < high, f"above {low} and below {high}")


def from_to(low: float, high: float) -> Check:
    return Check(lambda x: low <= x < high, f"at least {low} and below {high}")


def one_of(*choices: str) -> Check:
    return Check(lambda x: x in choices, f"one of {', '.join(choices)}")


def knob(meaning: str, default: Any = dataclasses.MISSING, check: Check | None = None) -> Any:
    """A field of a `Section`. Without a default, every config has to give a value."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "check": check})


def require(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of knobs, checked when it is created."""

    PREFIX: ClassVar[str] = ""  # of its keys, such as "model."

    def __post_init__(self):
        """Raises UserError where a knob is out of range."""
        for field in dataclasses.fields(self):
            check, value = field.metadata.get("check"), getattr(self, field.name)
            if check is not None:
                key = f"{self.PREFIX}{field.name}"
                require(check.holds(value), f"{key} is {value!r}; it must be {check.wanted}")


def to_config_dict(section: type[Section]) -> ml_collections.ConfigDict:
    """A ConfigDict of every knob at its default; those without one are placeholders of None."""
    values = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            values[field.name] = to_config_dict(field.type)
        elif field.default is dataclasses.MISSING:
            values[field.name] = config_dict.placeholder(field.type)
        else:
            values[field.name] = field.default
    return ml_collections.ConfigDict(values)


def from_mapping(section: type[Section], mapping: Mapping[str, Any], prefix: str = "") -> Any:
    """The validated section of a mapping with the same keys.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type or out of range, or values
            that do not fit together.
    """
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key in mapping:
        if key not in fields:
            raise UserError(f"unknown config key {prefix}{key}{nearest(key, list(fields))}")
    values = {}
    for name, field in fields.items():
        value, is_required = mapping.get(name), field.default is dataclasses.MISSING
        if dataclasses.is_dataclass(field.type) and name in mapping:
            require(isinstance(value, Mapping), f"config key {prefix}{name} must be a section")
            values[name] = from_mapping(field.type, value, f"{prefix}{name}.")
        elif name in mapping and not (is_required and value is None):
            values[name] = _convert(f"{prefix}{name}", value, field.type)
        else:
            require(not is_required, f"config key {prefix}{name} is missing")
    return section(**values)


def sections(config: type[Section]) -> Iterator[type[Section]]:
    """The class of a config and those of the sections in it, in order of declaration."""
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.type):
            yield from sections(field.type)


def describe(section: type[Section]) -> Iterator[str]:
    """The key, default, type and meaning of every knob of a section, as text in Markdown."""
    for field in dataclasses.fields(section):
        if "meaning" in field.metadata:
            default, check = field.default, field.metadata["check"]
            quoted = f'"{default}"' if isinstance(default, str) else f"{default}"
            value = "" if default is dataclasses.MISSING else f" = {quoted}"
            kind = f"{KINDS[field.type]}{f', {check.wanted}' if check else ''}"
            meaning = field.metadata["meaning"]
            yield f"`{section.PREFIX}{field.name}{value}` ({kind}): {meaning}"


def _convert(key: str, value: Any, kind: type) -> Any:
    if type(value) is int:
        fits = -(2**63) <= value < 2**63
        require(fits, f"config key {key} is {value:.3e}; it must have at most 64 bits")
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, f"config key {key} is {value!r}; it must be {KINDS[kind]}")
    if kind is float:
        require(math.isfinite(value), f"config key {key} is {value}; it must be finite")
    return value


KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
