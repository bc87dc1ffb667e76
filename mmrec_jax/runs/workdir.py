"""The workdir, the folder of a run: everything needed to resume, evaluate or use it.

config.json  tokenizer.json  data.json  data/ (tokens of the validation and test splits)
checkpoints/  metrics.jsonl  tensorboard/  report.html  report/  eval.json  training.lock
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import filelock
from jax.sharding import Mesh

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.config import MEMORY_VERSION, Config, differences, from_mapping
from mmrec_jax.data.corpus import HELD_OUT, SPLITS
from mmrec_jax.data.dataset import Dataset, Split, load_dataset, open_split
from mmrec_jax.data.token_cache import copy_splits, open_prepared
from mmrec_jax.data.tokenizers import Tokenizer, load_tokenizer
from mmrec_jax.errors import UserError
from mmrec_jax.files import is_leftover, write_text
from mmrec_jax.learning.sharding import placed
from mmrec_jax.model.params import Params, param_shapes
from mmrec_jax.runs.checkpoints import UNREADABLE, Checkpoints


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
    return Run(
        path, config, read_tokenizer(path), Checkpoints(path / "checkpoints", read_only=True)
    )


def has_checkpoints(path: Path) -> bool:
    """Whether a workdir has a complete checkpoint."""
    marks = (path / "checkpoints").glob("*/_CHECKPOINT_METADATA")
    return any(mark.parent.name.isdigit() for mark in marks)  # unfinished ones have a suffix


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir, which is created if it is missing.

    Raises:
        UserError: another process is training in it, or it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the workdir {path}: {error.strerror}") from error
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

    It is free as long as it has no checkpoint.

    Raises:
        UserError: it belongs to another config or to older code, or the folder is not a workdir.
    """
    if _has_begun(path):
        saved = read_config(path)
        _refuse_older_model(path, saved)
        # A run may continue on other devices, and after it has diverged, with another policy.
        policy = config.train.on_not_finite
        of_training = dataclasses.replace(saved.train, on_not_finite=policy)
        saved = dataclasses.replace(saved, mesh=config.mesh, train=of_training)
        different = differences(saved, config)
        if different:
            raise UserError(
                f"{path} belongs to a run with another config ({'; '.join(different)}); use "
                "another --workdir, or the config it was started with"
            )
    elif path.exists() and not (path.is_dir() and _is_free(path)):
        raise UserError(f"{path} exists and is not a workdir; use another --workdir")


def prepare(path: Path, config: Config, dataset: Dataset) -> None:
    """Fills the workdir of a run, or checks that one with a checkpoint has the same data.

    Raises:
        UserError: the run was started on another corpus, or the workdir cannot be written.
    """
    check_config(path, config)  # once more, now that no other process is training there
    tokenizer = dataset.tokenizer.to_json()
    tokens = {name: getattr(dataset, name).num_tokens for name in SPLITS}
    data = {"fingerprint": dataset.fingerprint, "tokens": tokens}
    data["tokenizer"] = checksums.of_text(tokenizer)
    has_begun = _has_begun(path)
    if has_begun:
        same = {
            "tokenizer": (path / "tokenizer.json").read_text() == tokenizer,
            "corpus": read_data(path).items() <= data.items(),
        }
        for name in same:
            if not same[name]:
                raise UserError(
                    f"{path} belongs to a run with another {name}: the text has changed; "
                    "use another --workdir, or restore the old text"
                )
    try:
        if not has_begun:  # what another config may have left
            (path / "config.json").unlink(missing_ok=True)
            shutil.rmtree(path / "data", ignore_errors=True)
        if dataset.prepared is not None:
            copy_splits(dataset.prepared, HELD_OUT, path / "data")
        if has_begun:
            return
        write_text(path / "tokenizer.json", tokenizer)
        write_text(path / "data.json", checksums.sealed(data, indent=2))
        for leftover in filter(is_leftover, path.iterdir()):
            leftover.unlink(missing_ok=True)
        # Written last: config.json marks a complete workdir.
        write_text(path / "config.json", config.to_json())
    except OSError as error:
        raise UserError(f"cannot write the workdir {path}: {error.strerror}") from error


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a workdir.

    Raises:
        UserError: it is missing or damaged.
    """
    tokenizer = load_tokenizer(path / "tokenizer.json")
    checksum = read_data(path).get("tokenizer")  # older runs do not have it
    if checksum and checksum != checksums.of_text((path / "tokenizer.json").read_text()):
        raise UserError(f"{path / 'tokenizer.json'} does not match its checksum in data.json")
    return tokenizer


def read_data(path: Path) -> dict:
    """The number of tokens in each split of a workdir, and checksums.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return checksums.read_sealed(path / "data.json")
    except Damaged as damage:
        raise UserError(f"{damage}") from damage


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
        return checksums.read_sealed(path / "config.json")
    except Damaged as damage:
        raise UserError(f"{damage}") from damage


def _refuse_older_model(path: Path, config: Config) -> None:
    """Refuses a run with a bank that would be chosen or read differently now."""
    if config.model.long_term and _saved_values(path).get("memory_version") != MEMORY_VERSION:
        raise UserError(
            f"{path} was trained when long-term memory worked differently; train it again, or use "
            "the code of that time (metrics.jsonl names its revision)"
        )


def _has_begun(path: Path) -> bool:
    """Whether a run has saved a checkpoint in a folder, even if it has become unreadable."""
    return has_checkpoints(path) or (path / UNREADABLE).exists()


def _is_free(path: Path) -> bool:
    """Whether a folder is a workdir in which no run has begun, or is about to become one."""
    if (path / "config.json").exists():
        return True
    written = {"data", "data.partial", "tokenizer.json", "data.json", "training.lock"}
    names = {entry.name for entry in path.iterdir() if not is_leftover(entry)}
    return all(name in written or fnmatch(name, "process_*.log") for name in names)
