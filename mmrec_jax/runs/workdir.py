"""The workdir, the folder of a run: everything needed to resume, evaluate or use it.

config.json  tokenizer.json  data.json  data/ (tokens of the validation and test splits)
checkpoints/  metrics.jsonl  tensorboard/  report.html  report/  eval.json  training.lock
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import filelock
from jax.sharding import Mesh

from mmrec_jax.config import MEMORY_VERSION, Config, differences, from_mapping
from mmrec_jax.data.corpus import HELD_OUT, SPLITS
from mmrec_jax.data.dataset import Dataset, Split, load_dataset, open_split
from mmrec_jax.data.token_cache import Damaged, copy_splits, open_prepared
from mmrec_jax.data.tokenizers import Tokenizer, tokenizer_from_json
from mmrec_jax.errors import UserError
from mmrec_jax.files import is_leftover, write_text
from mmrec_jax.learning.sharding import placed
from mmrec_jax.model.params import Params, param_shapes
from mmrec_jax.runs.checkpoints import Checkpoints


class Run(NamedTuple):
    """An existing run, opened for reading."""

    path: Path
    config: Config
    tokenizer: Tokenizer
    checkpoints: Checkpoints

    def params(self, step: int, mesh: Mesh | None = None) -> Params:
        """The parameters of a checkpoint, on one device or divided over a mesh.

        Raises:
            UserError: they cannot be read.
        """
        shapes = param_shapes(self.config.model)
        if mesh is not None:
            shapes = placed(shapes, mesh)
        return self.checkpoints.restore_params(step, shapes)

    def split(self, name: str) -> Split:
        """The saved 'validation' or 'test' split.

        Raises:
            UserError: it is damaged, or has nothing to predict.
        """
        if self.config.data.source == "recall":
            return getattr(load_dataset(self.config), name)
        try:
            prepared = open_prepared(self.path / "data", check=True)
        except Damaged as damage:
            raise UserError(
                f"{damage}; to restore it, run the same train.py command on the same text"
            ) from damage
        split = open_split(prepared, name, self.config.data)
        if not split.num_bytes:
            raise UserError(f"the {name} split of {self.path} is empty (data.{name}_fraction)")
        return split


def run_names(paths: Sequence[Path]) -> list[str]:
    """Short names for workdirs: those of their folders, or the complete paths if two are equal."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def open_run(path: Path) -> Run:
    """Opens a workdir for reading.

    Raises:
        UserError: the folder is missing, not a workdir, or has no checkpoints, or its model needs
            older code.
    """
    config = read_config(path)
    _refuse_older_model(path, config)
    if not has_checkpoints(path):
        raise UserError(f"{path} has no checkpoints yet; train first: python train.py")
    tokenizer = tokenizer_from_json((path / "tokenizer.json").read_text())
    return Run(path, config, tokenizer, Checkpoints(path / "checkpoints", read_only=True))


def has_checkpoints(path: Path) -> bool:
    """Whether a workdir has a complete checkpoint."""
    return any((path / "checkpoints").glob("[0-9]*/_CHECKPOINT_METADATA"))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir.

    Raises:
        UserError: another process is training in it.
    """
    try:
        with filelock.FileLock(path / "training.lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(f"another process is training in {path}; use another --workdir") from error


def is_training(path: Path) -> bool:
    """Whether a process is training in a workdir right now."""
    try:
        with locked(path):
            return False
    except UserError:
        return True
    except OSError:  # a workdir that cannot be written to
        return False


def check_config(path: Path, config: Config) -> None:
    """Checks, before anything is read or written, that a workdir is free or has this config.

    Raises:
        UserError: it belongs to another config or to older code, or the folder is not a workdir.
    """
    if (path / "config.json").exists():
        saved = read_config(path)
        _refuse_older_model(path, saved)
        # A run may continue on other devices.
        different = differences(dataclasses.replace(saved, mesh=config.mesh), config)
        if different:
            raise UserError(
                f"{path} belongs to a run with another config ({'; '.join(different)}); use "
                "another --workdir, or the config it was started with"
            )
    elif path.exists() and not (path.is_dir() and _is_unfinished_workdir(path)):
        raise UserError(f"{path} exists and is not a workdir; use another --workdir")


def prepare(path: Path, config: Config, dataset: Dataset) -> None:
    """Creates the workdir of a run, or checks that an existing one has the same data.

    Raises:
        UserError: the workdir was started on another corpus, or cannot be created.
    """
    tokenizer = dataset.tokenizer.to_json()
    tokens = {name: getattr(dataset, name).num_tokens for name in SPLITS}
    data = {"fingerprint": dataset.fingerprint, "tokens": tokens}
    if (path / "config.json").exists():
        same = {
            "tokenizer": (path / "tokenizer.json").read_text() == tokenizer,
            "corpus": json.loads((path / "data.json").read_text()) == data,
        }
        for name in same:
            if not same[name]:
                raise UserError(
                    f"{path} belongs to a run with another {name}: the text has changed; "
                    "use another --workdir, or restore the old text"
                )
    try:
        path.mkdir(parents=True, exist_ok=True)
        if dataset.prepared is not None:
            copy_splits(dataset.prepared, HELD_OUT, path / "data")
    except OSError as error:
        raise UserError(f"cannot create the workdir {path}: {error.strerror}") from error
    if (path / "config.json").exists():
        return
    write_text(path / "tokenizer.json", tokenizer)
    write_text(path / "data.json", json.dumps(data, indent=2) + "\n")
    for leftover in filter(is_leftover, path.iterdir()):
        leftover.unlink(missing_ok=True)
    # Written last: config.json marks a complete workdir.
    write_text(path / "config.json", config.to_json())


def read_config(path: Path) -> Config:
    """The config of a workdir.

    Raises:
        UserError: the folder is missing, not a workdir, or damaged.
    """
    values = _saved_values(path)
    if isinstance(values.get("train"), dict):
        values["train"].setdefault("optimizer", "adamw")  # before there was a choice
    try:
        return from_mapping(values)
    except UserError as error:
        raise UserError(f"{path}/config.json cannot be read: {error}") from error


def _saved_values(path: Path) -> dict:
    """The contents of config.json."""
    if not path.is_dir():
        raise UserError(f"there is no workdir {path}; train first, or use another --workdir")
    if not (path / "config.json").exists():
        raise UserError(f"{path} is not a workdir: it has no config.json; train first")
    try:
        values = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{path}/config.json cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}/config.json cannot be read: it is not a JSON object")
    return values


def _refuse_older_model(path: Path, config: Config) -> None:
    """Refuses a run with a bank that would be chosen or read differently now."""
    if config.model.long_term and _saved_values(path).get("memory_version") != MEMORY_VERSION:
        raise UserError(
            f"{path} was trained when long-term memory worked differently; train it again, or use "
            "the code of that time (metrics.jsonl names its revision)"
        )


def _is_unfinished_workdir(path: Path) -> bool:
    """Whether a folder holds nothing but what `prepare` writes before config.json."""
    written = {"data", "data.partial", "tokenizer.json", "data.json"}
    names = {entry.name for entry in path.iterdir() if not is_leftover(entry)}
    return all(name in written or fnmatch(name, "process_*.log") for name in names)
