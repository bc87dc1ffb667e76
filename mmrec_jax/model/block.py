"""One block of MM-Rec: gated recurrence, three memories, feed-forward.

u = RMSNorm1(x)
[q, k, v, z, p, e] = split6(W_fused u + b_fused)
gamma = gamma_max sigma(MLP_gamma(z)) sigma(MLP_context(k))
h_t = recurrence (recurrence.py)
a_t = W_o Attend(W_q h_t + b_q + q_t / 2 ; short-term, long-term) + b_o     (memory.py)
y_t = (h_t + a_t + v_t / 10) * silu(e_t)
x = x + dropout(y);   x = x + dropout(W_2 dropout(gelu(W_1 RMSNorm2(x) + b_1)) + b_2)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model import memory, memory_sequence, saliency
from mmrec_jax.model.bank import Saliency
from mmrec_jax.model.fused_scan import fused_scan
from mmrec_jax.model.initializers import (
    LECUN_NORMAL,
    SALIENCY_GAIN,
    SATURATED,
    SMALL,
    initial_saliency,
    matching_queries,
    spread_decays,
)
from mmrec_jax.model.ops import Linear, affine, dropout
from mmrec_jax.model.over_time import NO_EFFORT, Effort, Shooting, Solver, serial
from mmrec_jax.model.recurrence import CoreInputs, CoreWeights, recurrence, states_before

NORM_EPS = 1e-4  # added to the *sum* of squares, so that padding with zeros changes nothing


class LayerState(NamedTuple):
    """What a layer remembers of a sequence."""

    h: Float[Array, "batch dim"]  # recurrent memory, float32 or wider
    # Of the last token: what the next one gets in heads with shifted keys.
    last_k: Float[Array, "batch heads K"]
    last_evidence: Float[Array, "batch heads 2"]
    memory: memory.MemoryState


class Aux(NamedTuple):
    """Unweighted training losses besides cross-entropy, and what the recurrence took."""

    saliency: Float[Array, ""]
    uboo: Float[Array, ""]
    effort: Effort = NO_EFFORT


class Weights(NamedTuple):
    """Those weights and biases of a block of which a product takes a part, or takes several."""

    qkvz: tuple[Array, Array]  # of W_fused, in the compute dtype
    e: tuple[Array, Array]
    evidence: tuple[Array, Array]  # sums of those of p, [D, heads * 4] and [heads, 2, 2]
    m: tuple[Array, Array]  # of the z part of W_m
    recurrence: CoreWeights


def param_dtype(config: ModelConfig) -> jnp.dtype:
    """The dtype of parameters, recurrence and softmax: float32, or float64 with model.dtype."""
    return jnp.promote_types(jnp.dtype(config.dtype), jnp.float32)


def _solver(config: ModelConfig) -> Solver:
    if config.recurrence == "parallel":
        return Shooting(
            interval=config.recurrence_interval,
            tolerance=config.recurrence_tolerance,
            max_sweeps=config.recurrence_iterations,
        )
    return fused_scan if config.recurrence == "fused" else serial


class RMSNorm(nnx.Module):
    """w sqrt(D) x / sqrt(sum(x^2) + eps)."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones(config.dim, param_dtype(config)))

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        wide = x.astype(self.scale.dtype)
        inverse = lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + NORM_EPS)
        return (self.scale[...] * wide * (x.shape[-1] ** 0.5 * inverse)).astype(x.dtype)


class MLP(nnx.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, linear, dim: int, hidden: int, **last):
        self.up = linear(dim, hidden)
        self.down = linear(hidden, dim, **last)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.down(nnx.gelu(self.up(x)))


class Block(nnx.Module):
    """A block, as defined at the top of this file. Attributes are named as in the equations."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        dim = config.dim
        dtypes = {"dtype": jnp.dtype(config.dtype), "param_dtype": param_dtype(config)}
        linear = functools.partial(Linear, kernel_init=LECUN_NORMAL, **dtypes, rngs=rngs)
        narrow_mlp = functools.partial(MLP, linear, dim, dim // 4, kernel_init=SMALL)
        self.norm1 = RMSNorm(config)
        self.W_fused = linear(
            dim,
            6 * dim,
            kernel_init=matching_queries(config),
            bias_init=initial_saliency(config),
        )
        self.mlp_gamma = narrow_mlp(bias_init=spread_decays)
        self.mlp_context = narrow_mlp(bias_init=SATURATED)
        self.W_g = linear(dim, dim)
        self.W_m = linear(2 * dim, dim)  # rows: z, then h
        self.W_q = linear(dim, dim)
        self.W_o = linear(dim, dim)
        self.norm2 = RMSNorm(config)
        self.W_1 = linear(dim, 4 * dim)
        self.W_2 = linear(4 * dim, dim)
        if config.use_dpg:
            self.W_down = linear(dim, config.dpg_rank, use_bias=False)
            self.W_up = linear(
                config.dpg_rank, dim, use_bias=False, kernel_init=nnx.initializers.zeros
            )
        if config.use_uboo:
            self.mlp_err = MLP(linear, dim, dim)
            self.mlp_target = MLP(linear, dim, dim)

    def __call__(
        self,
        x: Float[Array, "batch T dim"],
        where: memory.Segments | memory.Place,
        state: LayerState,
        key: PRNGKeyArray | None = None,
        of_gradient: Effort = NO_EFFORT,
        weights: Weights | None = None,
    ) -> tuple[Float[Array, "batch T dim"], LayerState, Aux]:
        """Reads T tokens: complete chunks, or a single token.

        Args:
            x: the residual stream.
            where: which tokens belong to one document; for a single token, its place.
            state: the state before the first token.
            key: for dropout; None switches dropout and the auxiliary losses off (evaluation).
            of_gradient: its gradient is the effort of the recurrence's gradient.
            weights: `split_weights()`, for a loop over tokens, which would copy them at each token.
        """
        config = self.config
        weights = self.split_weights() if weights is None else weights
        random = (None,) * 4 if key is None else jax.random.split(key, 4)
        u = self.norm1(x)
        q, k, v, z, e = self.project(u, weights)
        core = self.core(z, self.decay(z, k), weights)
        h, h_prev, effort = self.recur(core, where.start, state.h, of_gradient)
        h_x = h.astype(x.dtype)

        # Attention over short-term and long-term memory, in heads.
        queries = self.heads(self.W_q(h_x) + q / 2)
        values, own_k, evidence = self.heads(v), self.heads(k), self.evidence(u, weights)
        keys, s = self.remembered(own_k, evidence, where.start, state)
        single = isinstance(where, memory.Place)
        read_memories = memory.read_memories_once if single else memory_sequence.read_memories
        read = read_memories(queries, keys, values, s, where, state.memory, config)
        a = self.W_o(jnp.moveaxis(read.output, 1, 2).reshape(x.shape))

        y = (h_x + a + v / 10) * nnx.silu(e)
        x = x + dropout(y, config.dropout, random[0])
        hidden = dropout(nnx.gelu(self.W_1(self.norm2(x))), config.dropout, random[1])
        x = x + dropout(self.W_2(hidden), config.dropout, random[2])

        aux = Aux(jnp.zeros((), h.dtype), jnp.zeros((), h.dtype), effort)
        if key is not None and config.long_term and config.saliency_weight:
            loss = saliency.saliency_loss(
                config, s, queries, keys, read.window_logsumexp, where, random[3]
            )
            aux = aux._replace(saliency=loss)
        if key is not None and config.use_uboo:
            aux = aux._replace(uboo=self.uboo_loss(h_x, h_prev.astype(x.dtype)))
        last = own_k[:, :, -1], evidence[:, :, -1, 0]
        return x, LayerState(h[:, -1], *last, read.state), aux

    def split_weights(self) -> Weights:
        """The parts of W_fused and W_m; those of p as sums of its channels (`evidence`)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        dim, half, wide = config.dim, config.head_dim // 2, param_dtype(config)
        W, b = self.W_fused.kernel[...].astype(dtype), self.W_fused.bias[...]
        ends = 4 * dim, 5 * dim
        W_qkvz, W_p, W_e = jnp.split(W, ends, axis=-1)
        b_qkvz, b_p, b_e = jnp.split(b, ends)

        def sums(x):
            x = x.reshape(*x.shape[:-1], config.num_heads, 2, half)
            for_next_and_own = jnp.split(x, [(half + 1) // 2], axis=-1)
            x = jnp.stack([part.sum(axis=-1, dtype=wide) for part in for_next_and_own], axis=-2)
            return SALIENCY_GAIN * config.head_dim**0.5 / half * x

        W_mz, W_mh = jnp.split(self.W_m.kernel[...], 2)
        W_gm = jnp.concatenate([self.W_g.kernel[...], W_mh], axis=1)
        return Weights(
            qkvz=(W_qkvz, b_qkvz.astype(dtype)),
            e=(W_e, b_e.astype(dtype)),
            evidence=(sums(W_p).reshape(dim, -1), sums(b_p)),
            m=(W_mz, self.W_m.bias[...]),
            recurrence=CoreWeights(W_gm, b_g=self.W_g.bias[...]),
        )

    def project(
        self, u: Float[Array, "batch T dim"], weights: Weights
    ) -> list[Float[Array, "batch T dim"]]:
        """q, k, v, z and e. Of p, only what `evidence` computes is needed."""
        return [*jnp.split(affine(u, *weights.qkvz), 4, axis=-1), affine(u, *weights.e)]

    def decay(
        self, z: Float[Array, "batch T dim"], k: Float[Array, "batch T dim"]
    ) -> Float[Array, "batch T dim"]:
        """gamma, float32 or wider."""
        mu, wide = self.config.mu, param_dtype(self.config)
        logit = self.mlp_gamma(z)
        if self.config.use_dpg:
            logit += self.W_up(nnx.relu(self.W_down(z)))
        sigmoids = nnx.sigmoid(logit.astype(wide)) * nnx.sigmoid(self.mlp_context(k).astype(wide))
        return (1 - mu) / (1 + mu) * sigmoids

    def recur(
        self,
        core: tuple[CoreInputs, CoreWeights],
        start: Bool[Array, "batch T"],
        h0: Float[Array, "batch dim"],
        of_gradient: Effort = NO_EFFORT,
    ) -> tuple[Float[Array, "batch T dim"], Float[Array, "batch T dim"], Effort]:
        """h_t and h_{t-1} of every step, float32 or wider, and what they took."""
        config = self.config
        h, effort = recurrence(
            *core, h0, start, config.mu, _solver(config), of_gradient, config.precision
        )
        return h, states_before(h0, h, start), effort

    def core(
        self, z: Float[Array, "batch T dim"], gamma: Float[Array, "batch T dim"], weights: Weights
    ) -> tuple[CoreInputs, CoreWeights]:
        """The inputs and the weights of the recurrence, float32 or wider."""
        z = z.astype(gamma.dtype)
        return CoreInputs(z, gamma, zm=affine(z, *weights.m)), weights.recurrence

    def evidence(
        self, u: Float[Array, "batch T dim"], weights: Weights
    ) -> Float[Array, "batch heads T 2 2"]:
        """What p says of saliency, float32 or wider: [..., i, 0] of s and [..., i, 1] of lambda.

        The two halves of a head's channels are those of s and of lambda. In heads with shifted
        keys, the first half of each (i = 0) is for the next token, the other (i = 1) for the token
        itself; elsewhere both are for the token itself.

        Each is a sum of channels of p, so it takes the sum of their weights and biases. The weights
        are rounded to the compute dtype like all of W_fused, of which devices gather nothing else.
        """
        W, b = weights.evidence
        with jax.default_matmul_precision(self.config.precision):
            evidence = affine(u.astype(W.dtype), W, b.reshape(-1))
        return jnp.moveaxis(evidence.reshape(*u.shape[:2], *b.shape), 1, 2)

    def remembered(
        self,
        k: Float[Array, "batch heads T K"],
        evidence: Float[Array, "batch heads T 2 2"],
        start: Bool[Array, "batch T"],
        state: LayerState,
    ) -> tuple[Float[Array, "batch heads T K"], Saliency]:
        """The keys and saliencies with which tokens enter the memories.

        In heads with shifted keys a token has the key of the token before it, and is found by who
        looks for that. So its saliency depends on both. The first token of a document has a zero
        key and its own evidence.
        """
        before, own = jnp.moveaxis(evidence, 3, 0)
        if self.config.shifted_keys:
            k = memory.shift(k, state.last_k, start, first=0)
            before = memory.shift(before, state.last_evidence, start, first=before)
        s, fading = jnp.moveaxis(before + own, -1, 0)
        return k, Saliency(s, nnx.softplus(fading))

    def uboo_loss(
        self, h: Float[Array, "batch T dim"], h_prev: Float[Array, "batch T dim"]
    ) -> Float[Array, ""]:
        """Mean square of MLP_err(h_t) - MLP_target(h_{t-1}); no gradient flows through h_t."""
        error = self.mlp_err(lax.stop_gradient(h)) - self.mlp_target(h_prev)
        return jnp.mean(jnp.square(error.astype(param_dtype(self.config))))

    def heads(self, x: Float[Array, "batch T dim"]) -> Float[Array, "batch heads T K"]:
        """Divides the channels among the heads."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.config.num_heads, -1), 1, 2)
