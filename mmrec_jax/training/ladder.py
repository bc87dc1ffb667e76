"""A ladder: models of increasing size, each grown from the one before (configs/ladder.py).

Every rung is a separate run in a folder of the ladder's workdir, and a ladder has no other state.
It therefore resumes as its runs do: finished rungs are skipped, and an interrupted one resumes.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mmrec_jax.commands import processes
from mmrec_jax.config import Config, from_mapping
from mmrec_jax.errors import UserError, nearest
from mmrec_jax.files import write_text
from mmrec_jax.learning.cost import count_flops, count_parameters
from mmrec_jax.model.growth import check_growth
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.tables import print_table
from mmrec_jax.training.loop import train


class Rung(NamedTuple):
    """A row of the table printed at the end of a ladder."""

    rung: str
    parameters: int
    tokens: int  # of training
    flops: int  # of training
    start_loss: float | None  # validation loss right after growth; None if it was not grown
    end_loss: float  # best validation loss


def is_ladder(mapping: Mapping[str, Any] | ml_collections.ConfigDict) -> bool:
    """Whether a config file describes a ladder rather than one run."""
    return "rungs" in mapping


def rung_configs(
    mapping: Mapping[str, Any] | ml_collections.ConfigDict, path: Path
) -> list[Config]:
    """The configs of a ladder's runs, from the smallest to the largest.

    Args:
        mapping: `name`, `rungs` (names of sections, in order), `data` (shared by all rungs), and
            for each rung a section with `model`, `train`, `growth` and `mesh`.
        path: the workdir of the ladder.

    Raises:
        UserError: a rung has no section or cannot grow from the one before, or a config is
            invalid.
    """
    if isinstance(mapping, ml_collections.ConfigDict):
        mapping = mapping.to_dict()
    sections = [name for name in mapping if name not in ("name", "rungs", "data")]
    if not mapping["rungs"]:
        raise UserError("rungs is empty: a ladder needs at least one rung")
    configs: list[Config] = []
    for name in mapping["rungs"]:
        if name not in sections:
            raise UserError(f"the ladder has no rung {name!r}{nearest(name, sections)}")
        if any(config.name == name for config in configs):
            raise UserError(f"the rung {name!r} is in the ladder twice")
        own = {"name": name, "data": mapping["data"], **mapping[name]}
        if configs:
            own["init_from"] = str(path / configs[-1].name)
        try:
            configs.append(from_mapping(own))
        except UserError as error:
            raise UserError(f"rung {name}: {error}") from error
    for old, new in itertools.pairwise(configs):
        try:
            check_growth(old.model, new.model)
        except UserError as error:
            raise UserError(f"{old.name} cannot grow into {new.name}: {error}") from error
    return configs


def climb(
    configs: list[Config], path: Path, after_run: Callable[[Path], None] = lambda _: None
) -> None:
    """Trains every rung that has not finished, then prints a table and writes ladder.json.

    Args:
        configs: of the rungs, from the smallest to the largest.
        path: the workdir of the ladder.
        after_run: called with the workdir of each rung that this call has trained to its end.

    Raises:
        UserError: as in `training.loop.train`.
        Interrupted: likewise; the same command resumes from there.
    """
    for index, config in enumerate(configs, start=1):
        grown = f", grown from {config.init_from}" if config.init_from else ""
        print(f"rung {index} of {len(configs)}: {config.name}{grown}", flush=True)
        if train(config, path / config.name):
            after_run(path / config.name)
    rungs = [_read_rung(config, path / config.name) for config in configs]
    _print_table(rungs)
    values = [rung._asdict() for rung in rungs]
    if processes.is_first():
        write_text(path / "ladder.json", json.dumps(values, indent=2) + "\n")


def _read_rung(config: Config, path: Path) -> Rung:
    tokens = read_metrics(path, "train")[-1]["step"] * config.train.step_tokens
    evaluations = read_metrics(path, "evaluation")
    start = evaluations[0]["loss"] if evaluations[0]["step"] == 0 else None
    return Rung(
        rung=config.name,
        parameters=sum(count_parameters(config.model).values()),
        tokens=tokens,
        flops=tokens * count_flops(config).training,
        start_loss=start,
        end_loss=min(evaluation["loss"] for evaluation in evaluations),
    )


def _print_table(rungs: list[Rung]) -> None:
    names = ("rung", "parameters", "tokens", "FLOPs", "so far", "start loss", "best loss")
    so_far = itertools.accumulate(rung.flops for rung in rungs)
    rows = [
        (
            rung.rung,
            f"{rung.parameters:,}",
            f"{rung.tokens:,}",
            f"{rung.flops:.3g}",
            f"{flops:.3g}",
            "" if rung.start_loss is None else f"{rung.start_loss:.4f}",
            f"{rung.end_loss:.4f}",
        )
        for rung, flops in zip(rungs, so_far, strict=True)
    ]
    print_table(names, rows)
