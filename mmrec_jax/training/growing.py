"""The start of a run whose model grows from that of another run (Config.init_from)."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from mmrec_jax.commands import processes
from mmrec_jax.config import Config, ModelConfig
from mmrec_jax.data.dataset import Dataset, Split
from mmrec_jax.data.tokenizers import SubwordTokenizer, Tokenizer
from mmrec_jax.errors import UserError
from mmrec_jax.learning.evaluate import EvalResult, evaluate, make_eval_step
from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer, slower_where
from mmrec_jax.learning.sharding import placed, shardings
from mmrec_jax.learning.step import TrainState, init_train_state
from mmrec_jax.model.growth import check_growth, grow, grow_moments, is_old
from mmrec_jax.model.params import Params, stack_layers
from mmrec_jax.runs.workdir import Run, open_run
from mmrec_jax.tables import print_table


class Source(NamedTuple):
    """A run whose trained model another one can grow from."""

    run: Run
    step: int  # of the checkpoint
    notes: list[str]  # on what the grown model sees differently


def open_source(config: Config, tokenizer: Tokenizer) -> Source:
    """The source that a run grows from, checked before anything is written.

    Raises:
        UserError: the run or checkpoint does not exist, its model cannot grow into this one, or
            its token ids stand for other tokens.
    """
    run = open_run(Path(config.init_from))
    step = run.checkpoints.resolve(config.growth.checkpoint)
    notes = check_growth(run.config.model, config.model)
    old, new = run.tokenizer.tokens, tokenizer.tokens
    if new[: len(old)] != old:
        differs = [
            index for index, pair in enumerate(zip(old, new, strict=False)) if len(set(pair)) > 1
        ]
        raise UserError(
            f"this run's tokenizer does not start with the tokens of {run.path}: id "
            f"{differs[0] if differs else len(new)} is another token. Use the source's, with "
            f"--config.data.tokenizer={run.path}/tokenizer.json"
        )
    if config.growth.moments == "grown" and run.config.train.optimizer != "adamw":
        raise UserError(
            f"{run.path} was trained with {run.config.train.optimizer}: only the moments of AdamW "
            "can be grown; use --config.growth.moments=fresh"
        )
    return Source(run, step, notes)


def parents(old: Tokenizer, new: Tokenizer, old_size: int, new_size: int) -> list[tuple[int, ...]]:
    """For each row that growth adds to the embedding, the rows whose mean it starts as (`grow`).

    A merged token starts as the mean of the two it merges. A row without a token starts as the
    mean of the old rows without a token, which have learned to be unlikely.
    """
    merges = new.merges() if isinstance(new, SubwordTokenizer) else {}
    unused = tuple(range(old.vocab_size, old_size))
    return [
        merges.get(token, ()) if token < new.vocab_size else unused
        for token in range(old_size, new_size)
    ]


def grown_state(
    source: Source,
    config: Config,
    tokenizer: Tokenizer,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step of a run that grows from a source.

    Raises:
        UserError: the checkpoint of the source cannot be read.
    """
    growth, old, new = config.growth, source.run.config.model, config.model
    of_source = parents(source.run.tokenizer, tokenizer, old.vocab_size, new.vocab_size)

    def start(params: Params, adam: optax.ScaleByAdamState | None) -> TrainState:
        key = jax.random.key(config.train.seed)
        params = grow(params, old, new, key, growth.placement, of_source, growth.noise)
        state = init_train_state(config, optimizer, key, params)
        if adam is None:
            return state
        grown = {
            "mu": grow_moments(adam.mu, old, new, 1, growth.placement),
            "nu": grow_moments(adam.nu, old, new, 2, growth.placement),
            "count": adam.count,
        }
        opt_state = jax.tree.map(
            lambda x: x._replace(**grown) if _is_adam(x) else x, state.opt_state, is_leaf=_is_adam
        )
        return state._replace(opt_state=opt_state)

    params = source.run.params(source.step, mesh)
    adam = _adam(_restore_opt_state(source, mesh)) if growth.moments == "grown" else None
    abstract = placed(jax.eval_shape(start, params, adam), mesh)
    return jax.jit(start, out_shardings=shardings(abstract))(params, adam)


def slower_old_part(config: Config) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters that come from the source by `growth.old_rate`."""
    source = open_run(Path(config.init_from)).config.model

    def old() -> Params:
        where = is_old(source, config.model, config.growth.placement)
        return stack_layers(where) if config.model.is_scanned else where

    return slower_where(old, config.growth.old_rate)


def _restore_opt_state(source: Source, mesh: Mesh) -> optax.OptState:
    config = source.run.config
    # Only the structure of the state matters here, not the schedule or the rates.
    schedule = learning_rate_schedule(config.train, config.train.warmup_steps + 1)
    optimizer = make_optimizer(config.train, schedule)
    if config.init_from and config.growth.old_rate != 1:
        optimizer = optax.chain(optimizer, slower_where(lambda: None, 1.0))
    like = jax.eval_shape(lambda: init_train_state(config, optimizer, jax.random.key(0)))
    return source.run.checkpoints.restore_state(source.step, placed(like, mesh)).opt_state


def _is_adam(state) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def _adam(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    return next(filter(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam)))


def compare(
    source: Source, config: Config, params: Params, dataset: Dataset, mesh: Mesh
) -> EvalResult:
    """Prints the validation loss of the source next to that of the grown model.

    Both read windows of the same length. If the vocabulary grows, the grown model has two rows: on
    the source's tokens, without the new ones, where growth is exact; and on all of its own tokens.

    Returns:
        The evaluation of the grown model on its own tokens.
    """
    run = source.run
    old, new = run.config.model, config.model

    def measure(model: ModelConfig, params: Params, split: Split) -> EvalResult:
        of_model = dataclasses.replace(config, model=model)
        carry = config.train.carry_memory
        eval_step = processes.CompiledTogether(make_eval_step(model))
        return evaluate(eval_step, params, split, of_model, carry)

    same_tokens = run.tokenizer.tokens == dataset.tokenizer.tokens
    split = dataset.validation if same_tokens else run.split("validation")
    rows = {"source": measure(old, run.params(source.step, mesh), split)}
    start = measure(new, params, dataset.validation)
    if new.vocab_size > old.vocab_size:
        model = dataclasses.replace(new, vocab_size=old.vocab_size)
        embedding = {"embedding": params["embedding"]["embedding"][: old.vocab_size]}
        without_new = {**params, "embedding": embedding}
        rows["start, without new tokens"] = measure(model, without_new, split)
    rows["start"] = start

    print(
        f"grown from {run.path}, step {source.step}; validation in windows of "
        f"{config.train.seq_len:,} tokens:"
    )
    for note in source.notes:
        print(note)
    print_table(
        ("", "loss", "perplexity", "accuracy", "bits per byte"),
        [
            (
                name,
                f"{result.loss:.6f}",
                f"{result.perplexity:.4f}",
                f"{result.accuracy:.2%}",
                f"{result.bits_per_byte:.4f}",
            )
            for name, result in rows.items()
        ],
    )
    return start
