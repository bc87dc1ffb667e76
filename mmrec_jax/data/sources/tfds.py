"""TensorFlow datasets as a corpus, read without TensorFlow."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from absl import logging

from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import HELD_OUT, Corpus, Part, Piece, split_shares
from mmrec_jax.errors import UserError, nearest

# This import takes seconds and logs, so this module is imported only if a dataset is requested.
import tensorflow_datasets as tfds  # isort: skip
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.features import feature as features_


def open_corpus(config: DataConfig) -> Corpus:
    """The dataset that a config names.

    Its own validation and test splits are used if it has both. If it has only one of them, the
    first half is the validation split and the second half the test split. If it has neither, the
    configured fractions of its training split are held out.

    Raises:
        UserError: the dataset, split or field does not exist, or the dataset is not prepared.
    """
    with quietly(), _reading(f"tfds dataset {config.tfds_name!r}"), _known_features():
        builder = _builder(config)
        features = builder.info.features
        files = [path for split in builder.info.splits.values() for path in split.filepaths]
    for path in files:
        if not Path(os.path.normpath(path)).is_relative_to(builder.data_path):
            raise UserError(f"{builder.data_path} names a file outside of it: {path}")
    if config.field not in features:
        raise UserError(
            f"{builder.info.full_name} has no field {config.field!r}; it has "
            f"{', '.join(map(repr, sorted(features)))}; choose one with data.field"
        )
    held_out = [name for name in HELD_OUT if name in builder.info.splits]
    train = config.tfds_split or "train"
    match held_out:
        case []:
            shares = {train: split_shares(config)}
        case [one]:
            halves = (("validation", 0.5), ("test", 0.5))
            shares = {train: (("train", 1.0),), one: halves}
        case _:
            shares = {train: (("train", 1.0),)} | {name: ((name, 1.0),) for name in held_out}
    parts = tuple(Part(_reader(builder, split, config.field), s) for split, s in shares.items())
    return Corpus(parts, tuple(map(Path, files)))


def _reader(builder, split: str, field: str):
    what = f"{builder.info.full_name}, split {split!r}"
    try:
        with _reading(what):
            source = builder.as_data_source(split)
    except NotImplementedError as error:
        raise UserError(
            f"{builder.info.full_name} in {builder.data_path} is not stored as array_record; run "
            "python -m tensorflow_datasets.scripts.convert_format --out_file_format=array_record "
            f"--dataset_dir={builder.data_path} --out_path=FOLDER, and use the dataset in FOLDER"
        ) from error

    # Made by commands/tfds_builder.py, where a long document is several examples.
    numbered = set(builder.info.features) == {"text", "document"}

    def pieces() -> Iterator[Piece]:
        document = None
        for index in range(len(source)):
            with _reading(what):
                example = source[index]
            value = example[field]
            if not isinstance(value, bytes):
                raise UserError(
                    f"{builder.info.full_name}: field {field!r} is not text; choose another with "
                    "data.field"
                )
            before, document = document, int(example["document"]) if numbered else index
            if value:
                yield Piece(value.decode(), begins=document != before)

    return pieces


def _builder(config: DataConfig):
    """The prepared dataset; it is prepared now if that needs no download."""
    name, folder = config.tfds_name, config.tfds_dir or None
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    except registered.DatasetNotFoundError:
        raise UserError(_not_found(name, folder)) from None
    except (ValueError, AssertionError, RuntimeError) as error:  # no such version or config
        raise UserError(f"tfds dataset {name!r}: {_first_line(error)}") from error
    if builder.is_prepared():
        return builder
    where = builder.data_dir
    hint = (
        f"run: tfds build {name} --file_format=array_record --data_dir="
        f"{config.tfds_dir or '~/tensorflow_datasets'}  (which may need TensorFlow), then "
        "repeat this command; or read the text itself with data.source=text or jsonl"
    )
    try:
        # Downloads are refused, because they could be of any size.
        with mock.patch.object(downloader._Downloader, "download", side_effect=_MustDownload):
            builder.download_and_prepare()
    except _MustDownload:
        raise UserError(f"{where} is not downloaded and prepared yet; {hint}") from None
    except Exception as error:  # a builder of the catalog may raise anything
        reason = f"needs {error.name}" if isinstance(error, ImportError) else _first_line(error)
        raise UserError(f"{where} cannot be prepared here: {reason}; {hint}") from error
    return builder


class _MustDownload(Exception):
    pass


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns what TFDS raises, which for damaged files may be anything, into a UserError."""
    try:
        yield
    except (UserError, NotImplementedError):
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be read: {_first_line(error)}") from error


@contextlib.contextmanager
def _known_features() -> Iterator[None]:
    """Refuses features that are not of TFDS: it would import any module that a dataset names."""
    find = features_.FeatureConnector.cls_from_name

    def checked(name: str):
        if not name.startswith("tensorflow_datasets."):
            raise UserError(f"it has a feature of {name!r}, which is not of TFDS; it is not loaded")
        return find(name)

    with mock.patch.object(features_.FeatureConnector, "cls_from_name", checked):
        yield


@contextlib.contextmanager
def quietly():
    """Suppresses the progress bars, output and warnings of TFDS."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _not_found(name: str, folder: str | None) -> str:
    """The error message, with the nearest name in the catalog or in the folder."""
    base = name.split("/")[0].split(":")[0]
    catalog = set(tfds.list_builders(with_community_datasets=False))
    # Without TensorFlow the older builders are not registered; they are found by their files.
    catalog |= {path.stem for path in Path(tfds.__file__).parent.glob("text/*.py")}
    data_dir = Path(folder or "~/tensorflow_datasets").expanduser()
    prepared = {path.name for path in data_dir.iterdir()} if data_dir.is_dir() else set()
    if base in catalog:
        return (
            f"tfds dataset {name!r} is not prepared in {data_dir}; where TensorFlow is installed, "
            f"run: tfds build {name} --file_format=array_record --data_dir={data_dir}"
        )
    near = nearest(base, sorted(catalog | prepared))
    return f"there is no tfds dataset {name!r}{near} in the catalog or in {data_dir}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
