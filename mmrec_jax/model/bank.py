"""Which tokens long-term memory keeps, and where they are read.

A token has a saliency, from which its use is forecast at each age. Of tokens that say the same, one
is kept; of the others, the M of highest forecast (`select`). What the bank holds is read where it
stands, up to `seen_tokens` tokens before the chunk (`rotate_back`).

Letters in shapes: B batch, T time, H heads, K head width, M slots of the bank; P candidates for
them, newest first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.rotary import rotary, turn

# Forecasts that differ by at most this, by model.dtype, count as equal. Equal tokens have equal
# saliency in the first layer, but the forms of the model round it differently; if they compared it
# to the last bit, they would keep different tokens.
TIES = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 1e-2}
# Two tokens say the same if the cosines of their keys and of their values average more than this.
SAME = 0.9
# s before training: no token is expected to be used. Otherwise a bank that is carried from the
# first steps on would hold on to tokens that an untrained model has chosen.
INITIAL_SALIENCY = -4.0


class Saliency(NamedTuple):
    """What is known of a token's use by later queries; the forecast for an age is `forecast`."""

    s: Float[Array, "*batch"]  # the logit of use when it leaves short-term memory; -inf: no token
    fading: Float[Array, "*batch"]  # lambda >= 0: how the logit falls with age


def farthest(config: ModelConfig) -> int:
    """Distances from here on make no difference, to the reading or to the forecast."""
    oldest = config.short_term + 1 + config.chunk_len * config.oldest_age
    return max(config.seen_tokens, oldest)


def rotate_back(
    k: Float[Array, "*batch M K"], distance: Int[Array, "... M"], config: ModelConfig
) -> Float[Array, "*batch M K"]:
    """Rotates keys of the bank, which stand `distance` tokens before the current chunk.

    Positions count from S tokens before the chunk, as those of the near tokens do.
    """
    reach = config.seen_tokens
    cos, sin = rotary(config.short_term - np.arange(reach + 1), k.shape[-1], k.dtype)
    distance = jnp.minimum(distance, reach)
    return turn(k, cos[distance], sin[distance])


def log_age(
    distance: Int[Array, "*batch"], config: ModelConfig, dtype: DTypeLike
) -> Float[Array, "*batch"]:
    """log(1 + min(a, A)), where a is the number of chunks since the token left short-term memory.

    No age beyond A is told apart, so what has not faded by then never does.
    """
    age = (distance - config.short_term - 1) // config.chunk_len
    return jnp.log1p(jnp.clip(age, 0, config.oldest_age).astype(dtype))


def forecast(
    saliency: Saliency, distance: Int[Array, "..."], config: ModelConfig
) -> Float[Array, "..."]:
    """The logit of use, s - lambda log(1 + min(a, A)), in a chunk `distance` tokens after it."""
    return saliency.s - saliency.fading * log_age(distance, config, saliency.s.dtype)


def directions(
    k: Float[Array, "*batch P K"], v: Float[Array, "*batch P K"]
) -> Float[Array, "*batch P K_and_K"]:
    """What tokens are compared by: a product of two is the mean cosine of keys and of values."""

    def unit(x):
        x = lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        return x * lax.rsqrt(2 * jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)

    return jnp.concatenate([unit(k), unit(v)], axis=-1)


def select(
    saliency: Saliency,
    distance: Int[Array, "... P"],
    direction: Float[Array, "*batch P K_and_K"],
    config: ModelConfig,
) -> tuple[Int[Array, "*batch M"], Float[Array, "*batch M"]]:
    """Which M of the candidates, newest first, the bank keeps.

    Args:
        saliency: [*batch, P]; s is -inf where there is no token.
        distance: how many tokens before the next chunk the candidates stand.
        direction: of the candidates (`directions`).
        config: of the model.

    Returns:
        Indices of what is kept, and its s, -inf where a slot remains empty.
    """
    forecasts = forecast(saliency, distance, config)
    forecasts = jnp.where(repeated(direction, forecasts, config), -jnp.inf, forecasts)
    kept = most_useful(forecasts, config)
    s = jnp.where(jnp.isfinite(forecasts), saliency.s, -jnp.inf)
    return kept, jnp.take_along_axis(s, kept, axis=-1)


def repeated(
    direction: Float[Array, "*batch P K_and_K"],
    forecasts: Float[Array, "*batch P"],
    config: ModelConfig,
) -> Bool[Array, "*batch P"]:
    """Which candidates for the bank, newest first, have nothing to say that another does not.

    Each of the first C is compared with all that are older. Of two that say the same, the one with
    the lower forecast is dropped, so that its place is free for others; of equal ones, the older. A
    forecast of -inf is that of no token.
    """
    chunk_len, tie = config.chunk_len, TIES[config.dtype]
    older = np.arange(chunk_len)[:, None] < np.arange(direction.shape[-2])
    with jax.default_matmul_precision(config.precision):
        cosine = direction[..., :chunk_len, :] @ jnp.swapaxes(direction, -1, -2)
    same = cosine > SAME
    new = forecasts[..., :chunk_len]
    same &= older & jnp.isfinite(new)[..., None] & jnp.isfinite(forecasts)[..., None, :]
    newer_wins = new[..., None] + tie >= forecasts[..., None, :]
    dropped = jnp.any(same & newer_wins, axis=-2)
    lost = jnp.any(same & ~newer_wins, axis=-1)
    return dropped.at[..., :chunk_len].set(dropped[..., :chunk_len] | lost)


def most_useful(forecasts: Float[Array, "*batch P"], config: ModelConfig) -> Int[Array, "*batch M"]:
    """Indices of the M highest forecasts; of equal ones, the earlier.

    Each is ranked by the highest forecast that is above its own by at most what counts as equal.
    """
    equal = forecasts[..., None, :] <= forecasts[..., None] + TIES[config.dtype]
    rank = jnp.max(jnp.where(equal, forecasts[..., None, :], -jnp.inf), axis=-1)
    return lax.top_k(rank, config.long_term)[1]
