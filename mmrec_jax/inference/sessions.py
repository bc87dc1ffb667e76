"""Sessions on disk, which can be continued later or on another machine."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmrec_jax.config import ModelConfig
from mmrec_jax.errors import UserError
from mmrec_jax.files import regular, replacing
from mmrec_jax.inference.generation import Session
from mmrec_jax.model.params import Params


def fingerprint(config: ModelConfig, params: Params, tokenizer_json: str) -> str:
    """A hash that changes with the model's shape, any parameter, or the tokenizer."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    digest.update(tokenizer_json.encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def save_session(path: Path, session: Session, model: str) -> None:
    """Writes a session completely or not at all; `model` is the fingerprint of its model.

    Raises:
        UserError: the file cannot be written.
    """
    # NumPy's files have no bfloat16; float32 represents its values exactly.
    arrays = [
        np.asarray(leaf, np.float32 if leaf.dtype == jnp.bfloat16 else leaf.dtype)
        for leaf in jax.tree.leaves(session)
    ]
    try:
        with replacing(path) as file:
            np.savez_compressed(file, *arrays, model=np.array(model))
    except OSError as error:
        raise UserError(f"cannot save the session to {path}: {error.strerror}") from error


def load_session(path: Path, like: Session, model: str) -> Session:
    """Reads a session of the model with this fingerprint.

    `like` is any session of that model with one text, for its structure, dtypes and place.

    Raises:
        UserError: the file is missing, is not a session, or belongs to another model.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(regular(path), allow_pickle=False) as file:
            found = str(file["model"])
            arrays = [file[f"arr_{index}"] for index in range(len(file.files) - 1)]
        if found == model and [x.shape for x in arrays] != [x.shape for x in leaves]:
            raise ValueError("its arrays have other shapes")
    except FileNotFoundError as error:
        raise UserError(f"there is no session {path}") from error
    except Exception as error:
        raise UserError(f"{path} is not a readable session") from error
    if found != model:
        raise UserError(
            f"the session {path} belongs to another model or another checkpoint; use the one it "
            "was made with, or another --session"
        )
    return structure.unflatten(
        jax.device_put(array.astype(leaf.dtype), leaf.sharding)
        for array, leaf in zip(arrays, leaves, strict=True)
    )
