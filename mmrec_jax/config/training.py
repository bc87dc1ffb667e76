"""The knobs of training, of growth from another run, and of the devices."""

import dataclasses
from typing import ClassVar

from mmrec_jax.knobs import Check, Section, above, at_least, from_to, knob, one_of, require

SIZE = Check(lambda x: x >= 1 or x == -1, "at least 1, or -1")  # of an axis of the mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """How the model is trained."""

    PREFIX: ClassVar[str] = "train."

    seed: int = knob(
        "Seed of the initial parameters, the order of the windows, dropout and token noise.",
        0,
        at_least(0),
    )
    batch_size: int = knob("Sequences per step, in all micro-batches together.", check=at_least(1))
    seq_len: int = knob(
        "[T] Tokens per sequence, a multiple of model.chunk_len.", check=at_least(1)
    )
    num_epochs: int = knob("Epochs to train for.", 1, at_least(1))
    num_steps: int = knob("Steps to train for, instead of num_epochs; 0 for none.", 0, at_least(0))
    num_tokens: int = knob(
        "Tokens to train on, instead of num_epochs or num_steps; 0 for none.", 0, at_least(0)
    )
    optimizer: str = knob(
        "Muon for the kernels of linear maps and Adam for the others, or AdamW for all parameters.",
        "muon",
        one_of("adamw", "muon"),
    )
    learning_rate: float = knob(
        "Peak learning rate of Adam or AdamW, reached after warmup_steps.", check=at_least(0)
    )
    muon_rate: float = knob(
        "Learning rate of Muon, as a multiple of learning_rate.", 10.0, above(0)
    )
    base_dim: int = knob(
        "The model.dim at which learning_rate was chosen. At another, the rate of the embedding, "
        "and with AdamW of all kernels, is multiplied by base_dim / dim; 0 for the same rates.",
        0,
        at_least(0),
    )
    initial_learning_rate: float = knob(
        "Learning rate at the start of the warm-up.", 0.0, at_least(0)
    )
    final_learning_rate: float = knob(
        "Learning rate at the end of the cosine decay, which is the end of training.",
        0.0,
        at_least(0),
    )
    warmup_steps: int = knob("Steps of linear warm-up.", 100, at_least(0))
    weight_decay: float = knob("Weight decay of AdamW, on matrices only.", 0.1, at_least(0))
    b1: float = knob("Decay of AdamW's first moment.", 0.9, from_to(0, 1))
    b2: float = knob("Decay of AdamW's second moment.", 0.95, from_to(0, 1))
    clip_norm: float = knob("Largest global norm of the gradient.", 1.0, above(0))
    on_not_finite: str = knob(
        "What to do when a loss or gradient is not finite: stop; skip the step, which leaves the "
        "parameters as they are; or rewind to the last checkpoint and read on in another order.",
        "stop",
        one_of("stop", "skip", "rewind"),
    )
    token_noise: float = knob(
        "Share of the tokens that are replaced by random ids where the model reads them in "
        "training; what it is to predict stays the same.",
        0.0,
        from_to(0, 1),
    )
    carry_memory: bool = knob(
        "Whether each row of the batch reads on from the memory of the step before. No gradient "
        "flows back into that memory.",
        False,
    )
    carry_windows: int = knob(
        "Sequences that a row reads on before it starts elsewhere; 0 for its whole share of the "
        "corpus.",
        0,
        at_least(0),
    )
    carry_groups: int = knob(
        "Groups of batch_size rows that take turns, each with its own memory, so that what is read "
        "on is read this many steps later.",
        1,
        at_least(1),
    )
    accumulate_steps: int = knob(
        "Micro-batches whose gradients are averaged into one step.", 1, at_least(1)
    )
    eval_every: int = knob(
        "Steps between evaluations, besides those after each epoch; 0 for none.", 0, at_least(0)
    )
    eval_batch_size: int = knob("Sequences per step of an evaluation.", 8, at_least(1))
    patience: int = knob(
        "Evaluations in a row without improvement before training stops; 0 for never.",
        0,
        at_least(0),
    )
    min_improvement: float = knob(
        "Nats per token by which an evaluation must be better to count as an improvement.",
        0.0,
        at_least(0),
    )
    checkpoint_every: int = knob("Steps between checkpoints.", 100, at_least(1))
    keep_checkpoints: int = knob("Newest checkpoints to keep, besides the best.", 3, at_least(1))
    log_every: int = knob(
        "Steps between progress lines where there is no terminal.", 10, at_least(1)
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.batch_size % self.accumulate_steps == 0,
            f"train.batch_size {self.batch_size} is not divisible by train.accumulate_steps "
            f"{self.accumulate_steps}",
        )
        require(
            not (self.num_steps and self.num_tokens),
            f"train.num_steps is {self.num_steps} and train.num_tokens is {self.num_tokens}: give "
            "one of them, and 0 for the other",
        )

    @property
    def step_tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.seq_len

    @property
    def lanes(self) -> int:
        """Rows of all groups together: sequences whose memory is carried at the same time."""
        return self.batch_size * self.carry_groups

    @property
    def fixed_steps(self) -> int:
        """Steps of the whole training where the config sets them; 0 where the epochs do."""
        return self.num_steps or -(-self.num_tokens // self.step_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthConfig(Section):
    """How the model starts where it grows from that of another run (init_from)."""

    PREFIX: ClassVar[str] = "growth."

    checkpoint: str = knob('Checkpoint of that run: "best", "latest", "final" or a step.', "best")
    placement: str = knob(
        "Where new layers go: after all others, or spread between them.",
        "top",
        one_of("top", "spread"),
    )
    moments: str = knob(
        "Adam's moments: fresh, or grown from those of that run.",
        "fresh",
        one_of("fresh", "grown"),
    )
    noise: float = knob(
        "Scale of the new weights, as a multiple of those of a fresh model.", 1.0, above(0)
    )
    old_rate: float = knob(
        "Learning rate of the old weights, as a multiple of that of the new. Where it is not 1, "
        "that run has to stay on disk.",
        1.0,
        at_least(0),
    )
    warmup_steps: int = knob(
        "Steps of linear warm-up, instead of train.warmup_steps.", 20, at_least(0)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """How devices share the work. A run may continue on another mesh."""

    PREFIX: ClassVar[str] = "mesh."

    data: int = knob(
        "Groups of devices that each have all parameters; -1 for as many as there are and can "
        "divide a micro-batch evenly.",
        -1,
        SIZE,
    )
    fsdp: int = knob(
        "Devices in a group, which divide the parameters and the optimizer's state among them; -1 "
        "as for data.",
        1,
        SIZE,
    )
    time: int = knob(
        "Devices that divide each sequence among them: for long sequences, with model.recurrence "
        "= parallel.",
        1,
        at_least(1),
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            (self.data, self.fsdp) != (-1, -1),
            "mesh.data and mesh.fsdp are both -1; set one of them",
        )
