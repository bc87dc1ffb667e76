"""The knobs of the model."""

import dataclasses
from typing import ClassVar

from mmrec_jax.knobs import Section, at_least, between, from_to, knob, one_of, require

SCANNED_LAYERS = 8  # from here on, model.scan_layers = "auto" scans


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The shape of the model. Symbols in brackets are those of docs/architecture.md."""

    PREFIX: ClassVar[str] = "model."

    vocab_size: int = knob("[V] Number of token ids; a corpus may use fewer.", check=at_least(1))
    dim: int = knob(
        "[D] Width of the residual stream and of the recurrent state.", check=at_least(1)
    )
    num_layers: int = knob("[L] Number of blocks.", check=at_least(1))
    num_heads: int = knob("[H] Number of attention heads.", check=at_least(1))
    chunk_len: int = knob("[C] Tokens between two consolidations.", check=at_least(1))
    short_term: int = knob(
        "[S] Tokens in sight before the current chunk, a multiple of chunk_len.", check=at_least(0)
    )
    long_term: int = knob(
        "[M] Slots per head for salient older tokens; 0 switches long-term memory off.",
        check=at_least(0),
    )
    oldest_age: int = knob(
        "[A] Chunks outside short-term memory after which a token's saliency fades no more: about "
        "the oldest age that training sees.",
        64,
        at_least(0),
    )
    dropout: float = knob(
        "Dropout rate on the output of both halves of a block and inside the feed-forward.",
        0.0,
        from_to(0, 1),
    )
    mu: float = knob("Weight of the gated integration in the recurrence.", 0.1, between(0, 1))
    shifted_keys: bool = knob(
        "Whether even heads use the key of the token before, and so find what came after an "
        "earlier occurrence.",
        True,
    )
    saliency_weight: float = knob(
        "Weight of the loss that teaches saliency to predict use.", 3.0, at_least(0)
    )
    saliency_queries: int = knob(
        "Queries per sequence that this loss examines, at most.", 256, at_least(1)
    )
    use_dpg: bool = knob("Whether the decay's logit has a low-rank term (DPG).", False)
    dpg_rank: int = knob("Rank of that term.", 128, at_least(1))
    use_uboo: bool = knob("Whether an auxiliary loss predicts the state (UBOO).", False)
    uboo_weight: float = knob("Weight of that loss.", 0.1, at_least(0))
    dtype: str = knob(
        "Dtype of everything but the parameters, the recurrence and the softmax, which are float32 "
        "or wider.",
        "float32",
        one_of("float32", "bfloat16", "float64"),
    )
    precision: str = knob(
        "Precision of the matrix products of the recurrence and of saliency, as JAX calls it. GPUs "
        "round the factors of other float32 products to TF32, TPUs to bfloat16.",
        "highest",
        one_of("default", "high", "highest"),
    )
    recurrence: str = knob(
        "How the recurrence is computed: step by step (scan), which on TPUs can be a single kernel "
        "(fused), or all intervals of time at once, in sweeps (parallel). auto: what is estimated "
        "to take the least time.",
        "auto",
        one_of("auto", "scan", "fused", "parallel"),
    )
    recurrence_interval: int = knob(
        "Steps that a sweep of the parallel form computes one after the other.", 64, at_least(1)
    )
    recurrence_tolerance: float = knob(
        "Error at which the sweeps end, relative to the largest state of a sequence.",
        1e-5,
        between(0, 1),
    )
    recurrence_iterations: int = knob(
        "Sweeps after which the scan is used instead, because they do not converge.",
        16,
        at_least(1),
    )
    remat: bool = knob(
        "Whether to recompute each block in the backward pass: less memory, more time.", False
    )
    scan_layers: str = knob(
        "Whether blocks are read in a loop that is compiled once, instead of one after the other: "
        "compiles faster, but runs slower on CPUs. auto: from 8 layers on.",
        "auto",
        one_of("auto", "always", "never"),
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.dim % self.num_heads == 0,
            f"model.dim {self.dim} is not divisible by model.num_heads {self.num_heads}",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.dim / model.num_heads is {self.head_dim}; rotary positions need an even number",
        )
        require(
            self.dim % 4 == 0,
            f"model.dim {self.dim} is not divisible by 4 (the decay MLPs are D/4 wide)",
        )
        require(
            self.short_term % self.chunk_len == 0,
            f"model.short_term {self.short_term} is not a multiple of model.chunk_len "
            f"{self.chunk_len}",
        )

        least = 1e-12 if self.dtype == "float64" else 1e-6
        require(
            self.recurrence_tolerance >= least,
            f"model.recurrence_tolerance {self.recurrence_tolerance:g} is less than rounding "
            f"allows with model.dtype {self.dtype}: use at least {least:g}",
        )

    @property
    def head_dim(self) -> int:
        """[K] Width of a head."""
        return self.dim // self.num_heads

    @property
    def is_scanned(self) -> bool:
        """Whether blocks are read in a loop that is compiled once."""
        by_default = self.num_layers >= SCANNED_LAYERS
        return {"auto": by_default, "always": True, "never": False}[self.scan_layers]

    @property
    def seen_tokens(self) -> int:
        """[S + C + M] The most tokens whose keys and values a head can read."""
        return self.short_term + self.chunk_len + self.long_term
