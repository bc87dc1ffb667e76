"""The report's view of the model itself: what it writes and what it remembers."""

import concurrent.futures
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrec_jax.inference.inspection import look_inside
from mmrec_jax.inference.language_model import load
from mmrec_jax.learning.breakdown import Breakdown
from mmrec_jax.learning.evaluate import evaluate, make_eval_step
from mmrec_jax.runs.workdir import open_run

SAMPLES, SAMPLE_TOKENS, TEMPERATURE = 3, 240, 0.8
PASSAGE_TOKENS = 700
EVALUATED_TOKENS = 200_000  # of the validation split


class Token(NamedTuple):
    """A token of the passage."""

    text: str
    shade: str  # share of the banks that hold it at the end, relative to the most; "" for none
    near: bool  # in short-term memory at the end


class ModelParts(NamedTuple):
    """What the report shows of one checkpoint."""

    samples: list[str]
    samples_note: str
    passage: list[Token]
    passage_note: str
    breakdown: Breakdown  # loss by tokens of context and by distance
    half_life: np.ndarray  # tokens, [layers, D]


def read_model(path: Path, step: int) -> ModelParts:
    """Evaluates, samples from and inspects a checkpoint of a run.

    Raises:
        UserError: the checkpoint or the validation split cannot be read.
    """
    lm, validation = load(path, str(step)), open_run(path).split("validation")
    lanes = lm.config.train.eval_batch_size * lm.config.train.seq_len
    read = min(validation.num_tokens, max(EVALUATED_TOKENS, lanes))
    tokens, _ = validation.tokens.read(0, min(PASSAGE_TOKENS, validation.num_tokens))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # while one compiles, another traces
        result = pool.submit(
            evaluate,
            make_eval_step(lm.config.model),
            lm.params,
            validation._replace(num_tokens=read),
            lm.config,
            carry_memory=True,
            distances=True,
        )
        inside = pool.submit(look_inside, lm.config.model, lm.params, tokens)
        samples = pool.submit(
            lm.generate, [""] * SAMPLES, SAMPLE_TOKENS, temperature=TEMPERATURE, seed=0
        )
    result, inside, samples = (of.result() for of in (result, inside, samples))
    held = inside.kept.mean(axis=(0, 1))
    most = held.max() or 1.0
    passage = [
        Token(lm.tokenizer.decode([token]), f"{share / most:.2f}" if share else "", bool(near))
        for token, share, near in zip(tokens, held, inside.short_term, strict=True)
    ]
    config = lm.config.model
    return ModelParts(
        samples=samples,
        samples_note=(
            f"Step {step:,}, temperature {TEMPERATURE:g}, {SAMPLE_TOKENS} tokens each, from the "
            "beginning of a document."
        ),
        passage=passage,
        passage_note=(
            f"The first {len(tokens):,} tokens of the validation split, read from an empty state. "
            f"Shading: the share of the {config.num_layers} x {config.num_heads} banks of "
            f"{config.long_term} slots that hold a token at the end (darkest: {most:.0%}). "
            "Dotted underline: in short-term memory."
        ),
        breakdown=result.breakdown,
        half_life=inside.half_life,
    )
