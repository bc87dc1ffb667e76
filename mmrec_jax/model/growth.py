"""Growth: the parameters of a larger model that computes what a smaller, trained one computes.

Everything that is D wide (residual stream, q k v z p e, recurrent state) is divided into heads.
Channel j of head i becomes the channel of the same head in the larger model that has the same
rotary frequency; all other channels are new. New channels of the residual stream, z, v, k and
therefore of the state start at zero: the weights that *write* them are zero, and the weights that
*read* them are freshly initialized, so learning starts immediately. New units inside an MLP read at
random and write zero; new layers write zero.

RMSNorm, q and p depend on D or K themselves and are scaled: sqrt(D_old / D_new) on the weights of a
norm, sqrt(K_new / K_old) on q, W_q, b_q and p.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.errors import UserError
from mmrec_jax.model.params import Params, init_params, param_shapes


class Axis(NamedTuple):
    """One axis of a grown parameter: where the old indices are among the new ones."""

    old: np.ndarray  # int: the new index of each old one
    is_new: np.ndarray  # bool [new length]: which indices are not among them
    silent_output: np.ndarray  # bool [new length]: what is written there starts at zero
    silent_input: np.ndarray  # bool [new length]: what is read there adds nothing to old outputs
    scale: np.ndarray  # float [old length]: factor on old outputs


def check_growth(old: ModelConfig, new: ModelConfig) -> list[str]:
    """Checks that a model can grow into another that computes the same.

    Returns:
        One line for each memory that becomes larger, which lets the model see more than before.

    Raises:
        UserError: something shrinks, or cannot be kept exactly.
    """
    for name in (
        "vocab_size", "num_layers", "num_heads", "head_dim", "dim", "dpg_rank", "short_term",
        "long_term", "chunk_len",
    ):  # fmt: skip
        was, is_ = getattr(old, name), getattr(new, name)
        if is_ < was and not (name == "dpg_rank" and not old.use_dpg):
            raise UserError(f"a model cannot shrink: model.{name} is {was}, and would be {is_}")
    for name in ("use_dpg", "use_uboo"):
        if getattr(old, name) and not getattr(new, name):
            raise UserError(f"model.{name} is on and cannot be switched off by growth")
    for name in ("mu", "shifted_keys", "oldest_age"):
        if (was := getattr(old, name)) != (is_ := getattr(new, name)):
            raise UserError(f"model.{name} is {was}, and would be {is_}: growth cannot change it")
    if new.head_dim % old.head_dim:
        raise UserError(
            f"the head width K grows from {old.head_dim} to {new.head_dim}: it must be a multiple "
            "of the old width, so that rotary positions include the old frequencies"
        )
    if new.chunk_len % old.chunk_len:
        raise UserError(
            f"model.chunk_len grows from {old.chunk_len} to {new.chunk_len}: it must be a multiple "
            "of the old length"
        )
    return [
        f"model.{name} grows from {getattr(old, name)} to {getattr(new, name)}: the model sees more"
        for name in ("short_term", "long_term", "chunk_len")
        if getattr(old, name) != getattr(new, name)
    ]


def grow(
    params: Params,
    old: ModelConfig,
    new: ModelConfig,
    key: PRNGKeyArray,
    placement: str = "top",
    parents: Sequence[Sequence[int]] = (),
    noise: float = 1.0,
) -> Params:
    """Parameters of a larger model whose logits are those of a smaller one.

    Args:
        params: parameters of the smaller model.
        old, new: configs of the smaller and the larger model.
        key: for random initialization.
        placement: where new layers go: after all others ("top") or between them ("spread").
        parents: for each new token, the tokens whose mean its row of the embedding starts as (for a
            merge, the two that it merges). The mean of more than two is scaled to their average
            norm. Without parents the row starts at random.
        noise: scale of the random initialization, as a multiple of that of a fresh model; vectors
            (biases, norms) are not scaled.

    Raises:
        UserError: something shrinks, or cannot be kept exactly.
    """
    check_growth(old, new)
    fresh = jax.tree.map(lambda x: x * noise if x.ndim > 1 else x, init_params(new, key))
    grown = _grow_tree(params, fresh, old, new, placement)
    rows = grown["embedding"]["embedding"]
    for tokens, of in _generations(parents, old.vocab_size):
        of, index = np.unique(of, axis=0, return_inverse=True)  # many may have the same parents
        rows = rows.at[tokens].set(_mean(rows[of])[index])
    return {**grown, "embedding": {"embedding": rows}}


def _generations(
    parents: Sequence[Sequence[int]], first: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """New tokens and their parents, [tokens] and [tokens, parents], all parents before children.

    `parents` are those of token `first` and of the tokens after it.
    """
    generation, groups = {}, {}
    for token, of in enumerate(parents, first):
        if len(of):
            generation[token] = 1 + max(generation.get(parent, 0) for parent in of)
            groups.setdefault((generation[token], len(of)), []).append(token)
    for _, tokens in sorted(groups.items()):
        yield np.array(tokens), np.array([parents[token - first] for token in tokens])


def _mean(rows: Float[Array, "tokens parents D"]) -> Float[Array, "tokens D"]:
    """The mean; of more than two rows, scaled to their average norm, or it would be too short."""
    mean = rows.mean(axis=1)
    if rows.shape[1] <= 2:
        return mean
    norm = jnp.linalg.norm(rows, axis=2).mean(axis=1)
    return mean * (norm / jnp.maximum(jnp.linalg.norm(mean, axis=1), 1e-30))[:, None]


def grow_moments(
    moments: Params, old: ModelConfig, new: ModelConfig, power: int, placement: str = "top"
) -> Params:
    """Adam's moments of the larger model: those of the old parameters, zero for new ones.

    Args:
        moments: a tree like the smaller model's parameters.
        old, new, placement: as in `grow`.
        power: 1 for the mean of gradients, 2 for the mean of their squares. If growth multiplies a
            parameter by c, its gradient is divided by c.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), param_shapes(new))
    return _grow_tree(moments, zeros, old, new, placement, scale_power=-power)


def is_old(old: ModelConfig, new: ModelConfig, placement: str = "top") -> Params:
    """Which parameters of the larger model come from the smaller one: a tree of bools like them."""
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), param_shapes(old))
    return jax.tree.map(lambda x: x > 0, grow_moments(ones, old, new, 0, placement))


def layer_places(old_layers: int, new_layers: int, placement: str) -> list[int]:
    """The index of each old layer in the larger model.

    Raises:
        UserError: the placement is unknown.
    """
    if placement == "top":
        return list(range(old_layers))
    if placement != "spread":
        raise UserError(f"placement is {placement!r}; choose one of top, spread")
    # New layers follow old ones, as evenly as possible.
    return [i * new_layers // old_layers for i in range(old_layers)]


# --- from old to new parameters ---


# For each linear map, the axis it reads and the axis it writes. Its bias has the second one.
_LINEAR = {
    "embedding": ("vocab", "residual"),
    "W_fused": ("channels", "fused"),
    "W_g": ("channels", "channels"),
    "W_m": ("z_and_h", "channels"),
    "W_q": ("channels", "query"),
    "W_o": ("channels", "residual"),
    "W_1": ("channels", "ffn"),
    "W_2": ("ffn", "residual"),
    "W_down": ("channels", "rank"),
    "W_up": ("rank", "channels"),
}
# The hidden axis of each MLP, which reads and writes channels.
_HIDDEN = {"mlp_gamma": "decay", "mlp_context": "decay", "mlp_err": "wide", "mlp_target": "wide"}


def _axis_names(path) -> tuple[str, ...]:
    """The names of a parameter's axes."""
    names = [entry.key for entry in path]  # blocks, 0, mlp_gamma, up, kernel
    if names[-1] == "scale":
        return ("norm",)
    if names[-2] == "up":
        reads_and_writes = ("channels", _HIDDEN[names[-3]])
    elif names[-2] == "down":
        reads_and_writes = (_HIDDEN[names[-3]], "channels")
    else:
        reads_and_writes = _LINEAR[names[-2]]
    return reads_and_writes[1:] if names[-1] == "bias" else reads_and_writes


def _grow_tree(params, fresh, old, new, placement: str, scale_power: int = 1) -> Params:
    """Old values in their places, zero where required, fresh values elsewhere."""
    axes = _axes(old, new)
    places = layer_places(old.num_layers, new.num_layers, placement)
    moved = {place: params["blocks"][index] for index, place in enumerate(places)}
    kept = dict(jax.tree_util.tree_leaves_with_path({**params, "blocks": moved}))

    def grow_leaf(path, x):
        if path not in kept:  # what the old block does not have adds nothing
            return x
        *reads, writes = of_leaf = [axes[name] for name in _axis_names(path)]
        x = jnp.where(writes.silent_output, 0, x)
        for axis in reads:
            x = jnp.where(axis.silent_input[:, None] & ~writes.is_new, 0, x)
        scaled = kept[path] * writes.scale**scale_power
        return x.at[np.ix_(*(axis.old for axis in of_leaf))].set(scaled.astype(x.dtype))

    blocks = {i: x if i in moved else _silent(x) for i, x in fresh["blocks"].items()}
    return jax.tree_util.tree_map_with_path(grow_leaf, {**fresh, "blocks": blocks})


def _silent(block) -> dict[str, Any]:
    """A fresh block that leaves the residual stream unchanged: v, z, W_o and W_2 are zero."""
    dim = block["W_o"]["bias"].shape[0]
    fused = jax.tree.map(lambda x: x.at[..., 2 * dim : 4 * dim].set(0), block["W_fused"])
    zero = {name: jax.tree.map(jnp.zeros_like, block[name]) for name in ("W_o", "W_2")}
    return {**block, "W_fused": fused, **zero}


def _axes(old: ModelConfig, new: ModelConfig) -> dict[str, Axis]:
    ratio, half = new.head_dim // old.head_dim, old.head_dim // 2
    offset = np.arange(old.head_dim)
    offset = offset % half * ratio + offset // half * (new.head_dim // 2)
    channel = (np.arange(old.num_heads)[:, None] * new.head_dim + offset).ravel()

    def axis(places, size, silent_output=False, silent_input=False, scale=1.0) -> Axis:
        is_new = ~np.isin(np.arange(size), places)
        scales = np.full(len(places), scale)
        return Axis(places, is_new, is_new & silent_output, is_new & silent_input, scales)

    def units(before, after) -> Axis:
        return axis(np.arange(before), after, silent_input=True)

    channels = axis(channel, new.dim)
    silent = axis(channel, new.dim, silent_output=True)
    scaled = axis(channel, new.dim, scale=(new.head_dim / old.head_dim) ** 0.5)
    # New channels of p would change the saliency of old heads; in new heads they may be anything.
    of_old_heads = np.arange(new.dim) < old.num_heads * new.head_dim
    p = scaled._replace(silent_output=of_old_heads & scaled.is_new)
    return {
        "vocab": axis(np.arange(old.vocab_size), new.vocab_size),
        "channels": channels,
        "residual": silent,
        "norm": axis(channel, new.dim, scale=(old.dim / new.dim) ** 0.5),
        "fused": _joined(scaled, silent, silent, silent, p, channels),  # q k v z p e
        "query": scaled,
        "z_and_h": _joined(channels, channels),
        "decay": units(old.dim // 4, new.dim // 4),
        "wide": units(old.dim, new.dim),
        "ffn": units(4 * old.dim, 4 * new.dim),
        "rank": units(old.dpg_rank, new.dpg_rank),
    }


def _joined(*axes: Axis) -> Axis:
    """Concatenates axes of the same length."""
    moved = [axis._replace(old=axis.old + i * len(axis.is_new)) for i, axis in enumerate(axes)]
    return Axis(*map(np.concatenate, zip(*moved, strict=True)))
