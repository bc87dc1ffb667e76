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

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.errors import UserError
from mmrec_jax.model.params import Params, init_params


class Axis(NamedTuple):
    """One axis of a grown parameter: where the old indices are among the new ones."""

    old: np.ndarray  # int: the new index of each old one
    size: int  # the new length
    silent_output: np.ndarray  # bool [size]: what is written there starts at zero
    silent_input: np.ndarray  # bool [size]: what is read from there adds nothing to old outputs
    scale: np.ndarray  # float [len(old)]: factor on old outputs

    @property
    def is_new(self) -> np.ndarray:
        """Which indices are new, bool [size]."""
        is_new = np.ones(self.size, bool)
        is_new[self.old] = False
        return is_new


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
    for name in ("mu", "shifted_keys"):
        was, is_ = getattr(old, name), getattr(new, name)
        if was != is_:
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
        old: config of the smaller model.
        new: config of the larger model.
        key: for random initialization.
        placement: where new layers go: after all others ("top") or between them ("spread").
        parents: for each new token, the tokens whose mean its row of the embedding starts as (for a
            merge, the two that it merges). The mean of more than two is scaled to their average
            norm. Without parents the row starts at random.
        noise: scale of the random initialization, as a multiple of that of a fresh model; vectors
            (biases, norms) are not scaled.

    Returns:
        Parameters of the larger model.

    Raises:
        UserError: something shrinks, or cannot be kept exactly.
    """
    check_growth(old, new)
    fresh = jax.tree.map(lambda x: x * noise if x.ndim > 1 else x, init_params(new, key))
    grown = _grow_tree(params, fresh, old, new, placement, keep=_keep_function)
    if parents:
        rows = np.array(grown["embedding"]["embedding"])
        for token, of in enumerate(parents, start=old.vocab_size):
            if len(of):  # some of them may be new tokens
                rows[token] = _mean(rows[np.asarray(of)])
        grown["embedding"]["embedding"] = jnp.asarray(rows)
    return grown


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean; for more than two rows, scaled to their average norm, or it would be too short."""
    mean = rows.mean(axis=0)
    if len(rows) > 2:
        mean *= np.linalg.norm(rows, axis=1).mean() / max(np.linalg.norm(mean), 1e-30)
    return mean


def grow_moments(
    moments: Params, old: ModelConfig, new: ModelConfig, power: int, placement: str = "top"
) -> Params:
    """Adam's moments of the larger model: those of the old parameters, zero for new ones.

    Args:
        moments: a tree like the smaller model's parameters.
        old: config of the smaller model.
        new: config of the larger model.
        power: 1 for the mean of gradients, 2 for the mean of their squares. If growth multiplies a
            parameter by c, its gradient is divided by c.
        placement: as in `grow`.
    """
    shapes = jax.eval_shape(lambda: init_params(new, jax.random.key(0)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def keep(value, zero, axes):
        return _put(value, zero, axes, scale_power=-power)

    return _grow_tree(moments, zeros, old, new, placement, keep)


def is_old(old: ModelConfig, new: ModelConfig, placement: str = "top") -> Params:
    """Which parameters of the larger model come from the smaller one: a tree of bools like them."""

    def tree(config, value):
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        return jax.tree.map(lambda x: jnp.full(x.shape, value), shapes)

    def keep(value, new, axes):
        return _put(value, new, axes, scale_power=0)

    marked = _grow_tree(tree(old, 1.0), tree(new, 0.0), old, new, placement, keep)
    return jax.tree.map(lambda x: x > 0, marked)


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


def _grow_tree(params, fresh, old: ModelConfig, new: ModelConfig, placement: str, keep) -> Params:
    axes = _axes(old, new)
    grown = {
        "embedding": {
            "embedding": keep(
                params["embedding"]["embedding"],
                fresh["embedding"]["embedding"],
                (axes["vocab"], axes["residual"]),
            )
        },
        "norm": _grow_norm(params["norm"], fresh["norm"], axes, keep),
    }
    places = layer_places(old.num_layers, new.num_layers, placement)
    blocks = {i: _silent(block) for i, block in fresh["blocks"].items()}
    for index, place in enumerate(places):
        blocks[place] = _grow_block(params["blocks"][index], fresh["blocks"][place], axes, keep)
    return {**grown, "blocks": blocks}


# For each linear map, the axis it reads and the axis it writes.
_LINEAR = {
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
# For each MLP, its hidden axis. All read and write channels.
_MLP = {
    "mlp_gamma": "decay",
    "mlp_context": "decay",
    "mlp_err": "wide",
    "mlp_target": "wide",
}


def _grow_block(block, fresh, axes, keep):
    grown = dict(fresh)  # what the old block does not have stays fresh: it adds nothing
    for name, values in block.items():
        if name in ("norm1", "norm2"):
            grown[name] = _grow_norm(values, fresh[name], axes, keep)
        elif name in _MLP:
            channels, hidden = axes["channels"], axes[_MLP[name]]
            grown[name] = {
                "up": _grow_linear(values["up"], fresh[name]["up"], channels, hidden, keep),
                "down": _grow_linear(values["down"], fresh[name]["down"], hidden, channels, keep),
            }
        else:
            reads, writes = (axes[axis] for axis in _LINEAR[name])
            grown[name] = _grow_linear(values, fresh[name], reads, writes, keep)
    return grown


def _grow_linear(values, fresh, reads: Axis, writes: Axis, keep):
    grown = {"kernel": keep(values["kernel"], fresh["kernel"], (reads, writes))}
    if "bias" in values:
        grown["bias"] = keep(values["bias"], fresh["bias"], (writes,))
    return grown


def _grow_norm(values, fresh, axes, keep):
    return {"scale": keep(values["scale"], fresh["scale"], (axes["norm"],))}


def _keep_function(value, fresh, axes: tuple[Axis, ...]):
    """The new parameter: old values in their places, zero where required, fresh elsewhere."""
    *reads, writes = axes
    new = jnp.where(writes.silent_output, 0, fresh)
    for axis in reads:
        new = jnp.where(axis.silent_input[:, None] & ~writes.is_new, 0, new)
    return _put(value, new, axes, scale_power=1)


def _put(value, new, axes: tuple[Axis, ...], scale_power: int):
    scaled = value * axes[-1].scale.astype(np.float64) ** scale_power
    return new.at[np.ix_(*(axis.old for axis in axes))].set(scaled.astype(new.dtype))


def _silent(block) -> dict[str, Any]:
    """A fresh block that leaves the residual stream unchanged: z, v, W_o and W_2 are zero."""
    fused, dim = block["W_fused"], block["W_o"]["bias"].shape[0]
    v, z = slice(2 * dim, 3 * dim), slice(3 * dim, 4 * dim)
    kernel, bias = fused["kernel"], fused["bias"]
    for columns in (v, z):
        kernel, bias = kernel.at[:, columns].set(0), bias.at[columns].set(0)
    zero = {name: jax.tree.map(jnp.zeros_like, block[name]) for name in ("W_o", "W_2")}
    return {**block, "W_fused": {"kernel": kernel, "bias": bias}, **zero}


def _axes(old: ModelConfig, new: ModelConfig) -> dict[str, Axis]:
    ratio, half = new.head_dim // old.head_dim, old.head_dim // 2
    offset = np.arange(old.head_dim)
    offset = offset % half * ratio + offset // half * (new.head_dim // 2)
    channel = (np.arange(old.num_heads)[:, None] * new.head_dim + offset).ravel()

    def axis(places, size, silent_output=False, silent_input=False, scale=1.0) -> Axis:
        is_new = np.ones(size, bool)
        is_new[places] = False
        return Axis(
            places, size, is_new & silent_output, is_new & silent_input, np.full(len(places), scale)
        )

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
    """Concatenates axes."""
    starts = np.cumsum([0, *(axis.size for axis in axes)])
    return Axis(
        old=np.concatenate([a.old + start for a, start in zip(axes, starts[:-1], strict=True)]),
        size=int(starts[-1]),
        silent_output=np.concatenate([a.silent_output for a in axes]),
        silent_input=np.concatenate([a.silent_input for a in axes]),
        scale=np.concatenate([a.scale for a in axes]),
    )
