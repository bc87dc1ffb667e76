"""Checkpoints in Orbax's format: the newest few and the best, written while training continues.

No other module imports Orbax.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.commands import processes
from mmrec_jax.errors import UserError
from mmrec_jax.learning.step import TrainState
from mmrec_jax.model.params import Params

NAMES = ("best", "latest", "final")
UNREADABLE = "unreadable_checkpoints"  # folder of a workdir, for those that are set aside
_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")  # change when a checkpoint is complete
_JSON = ocp.args.JsonRestore()
_METRIC = "validation_loss"

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax also raises what it logs


class Checkpoints:
    """The checkpoints of a run; each holds a training state and its progress (a JSON object)."""

    def __init__(self, directory: Path, keep: int = 1, read_only: bool = False):
        """Opens a directory, or creates it; `keep` newest checkpoints stay besides the best."""
        self.directory = directory.absolute()
        self._keep, self._read_only = keep, read_only
        self._step_to_seal: int | None = None
        self._problems: list[str] = []  # for restore_newest to tell
        self._verify_losses()
        self._manager = self._open()

    def _verify_losses(self) -> None:
        """Verifies what Orbax reads of all checkpoints when it opens them."""
        for folder in self.directory.glob("[0-9]*"):
            try:
                if folder.name.isdigit():  # else it is incomplete
                    checksums.verify_folder(folder, ["metrics"])
            except Damaged as damage:
                if not self._read_only:
                    self._problems.append(self._set_aside(int(folder.name), str(damage)))
                elif not isinstance(damage.__cause__, FileNotFoundError):  # it is being deleted
                    raise UserError(
                        f"checkpoint {folder.name} is damaged: {damage}; move {folder} elsewhere, "
                        "or run train.py again, which does so"
                    ) from damage

    def _open(self) -> ocp.CheckpointManager:
        def loss(metrics):
            return metrics[_METRIC]

        # The preservation policy overrides best_fn in deciding what is kept, but the manager
        # needs best_fn to write the metrics and to find the best step.
        writing = ocp.AsyncOptions(post_finalization_callback=self._seal)
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(self._keep),
                checkpoint_managers.BestN(
                    get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        with self._reading("the checkpoints"):
            return ocp.CheckpointManager(
                self.directory,
                item_names=("params", "training", "progress"),
                options=ocp.CheckpointManagerOptions(
                    best_fn=loss,
                    best_mode="min",
                    preservation_policy=None if self._read_only else policy,
                    cleanup_tmp_directories=not self._read_only,
                    create=not self._read_only,
                    read_only=self._read_only,
                    enable_async_checkpointing=not self._read_only,
                    async_options=None if self._read_only else writing,
                ),
            )

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turns what Orbax raises, which may be anything, into a UserError."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"{what} in {self.directory} cannot be read: {_reason(error)}"
            ) from error

    def _seal(self) -> None:
        """Writes the checksums of a checkpoint, just before it becomes complete."""
        step = str(self._step_to_seal)  # followed by a suffix as long as it is incomplete
        (folder,) = (x for x in self.directory.iterdir() if x.name.split(".")[0] == step)
        checksums.seal_folder(folder, without=_MARKS)

    def _verify(self, step: int, *items: str) -> None:
        """Verifies the checksums of items of a checkpoint."""
        try:
            checksums.verify_folder(self.directory / str(step), items)
        except Damaged as damage:
            others = ", ".join(str(other) for other in self.steps() if other != step)
            instead = f"use another --checkpoint ({others})" if others else "train again"
            raise UserError(f"checkpoint {step} is damaged: {damage}; {instead}") from damage

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest validation loss; None if no checkpoint has one.

        Raises:
            UserError: the losses cannot be read.
        """
        with self._reading("the losses of the checkpoints"):
            return self._manager.best_step()

    def save(
        self, step: int, state: TrainState, progress: dict, best_loss: float | None = None
    ) -> None:
        """Starts saving a checkpoint. The state may be donated as soon as this returns.

        Args:
            best_loss: the validation loss if it is the lowest so far, else None.

        Raises:
            UserError: this save or the previous one failed.
        """
        if jax.default_backend() == "cpu":  # where Orbax reads from the donated memory
            state = jax.tree.map(jnp.copy, state)
        metrics = None if best_loss is None else {_METRIC: best_loss}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            training=ocp.args.StandardSave(_nonempty(state._replace(params=None))),
            progress=ocp.args.JsonSave(progress),
        )
        with self._saving():
            self._manager.wait_until_finished()
            self._step_to_seal = step
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            UserError: something could not be written.
        """
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            good = [int(path.name) for path in self.directory.glob("*") if path.name.isdigit()]
            last = f"the last good one is step {max(good)}" if good else "none is saved yet"
            raise UserError(
                f"could not save a checkpoint in {self.directory}: {_reason(error)}; {last}. Fix "
                "the problem (is the disk full?) and run the same command again"
            ) from error

    def resolve(self, name: str) -> int:
        """The step of a checkpoint, named by 'best', 'latest', 'final' or its step.

        Raises:
            UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.directory} has no checkpoints; train first with train.py")
        if name == "latest":
            return steps[-1]
        if name == "final":
            if self.progress(steps[-1]).get("finished"):
                return steps[-1]
            raise UserError(
                f"the run in {self.directory.parent} has not finished, so it has no final "
                "checkpoint; use --checkpoint=latest or best, or continue training"
            )
        if name == "best":
            if self.best_step() is not None:
                return self.best_step()
            raise UserError(
                f"{self.directory} has no evaluated checkpoint yet; use --checkpoint=latest"
            )
        if name.isdigit() and int(name) in steps:
            return int(name)
        raise UserError(
            f"there is no checkpoint {name!r} in {self.directory}; choose from "
            f"{', '.join(NAMES)} and the steps {', '.join(map(str, steps))}"
        )

    def progress(self, step: int) -> dict:
        """The progress saved with a state.

        Raises:
            UserError: it is damaged.
        """
        self._verify(step, "progress")
        return self._read(step, progress=_JSON).progress

    def restore_params(self, step: int, like: Params) -> Params:
        """The parameters of a step, with the structure, dtypes and placement of `like`.

        Raises:
            UserError: they cannot be read.
        """
        self._verify(step, "params")
        return self._read(step, params=_as(like)).params

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """The complete state of a step, with the structure, dtypes and placement of `like`.

        Raises:
            UserError: it cannot be read.
        """
        self._verify(step, "params", "training")
        return self._read_state(step, like)

    def _read_state(self, step: int, like: TrainState) -> TrainState:
        rest = like._replace(params=None)
        items = self._read(step, params=_as(like.params), training=_as(_nonempty(rest)))
        leaves, structure = jax.tree.flatten(rest)
        restored = iter(jax.tree.leaves(items.training))
        training = structure.unflatten(next(restored) if x.size else _empty(x) for x in leaves)
        return training._replace(params=items.params)

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        """Reads items of a checkpoint without verifying them."""
        with self._reading(f"checkpoint {step}"):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def restore_newest(
        self, like: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict] | None:
        """State and progress of the newest readable checkpoint; None if there are no checkpoints.

        Newer, unreadable ones are moved to `unreadable_checkpoints` in the workdir, and `warn`
        gets a line about each. Several processes share the work of verifying checksums.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        while self._problems:
            warn(self._problems.pop(0))
        steps = self.steps()
        for step, before in reversed(list(zip(steps, [None, *steps], strict=False))):
            try:
                self._verify_together(step)
                return self._read_state(step, like), self._read(step, progress=_JSON).progress
            except Exception as error:
                reason = f"{error}" if isinstance(error, Damaged) else _reason(error)
                self._manager.close()
                problem = self._set_aside(step, reason)
                warn(problem + (f"; going back to step {before}" if before is not None else ""))
                self._manager = self._open()  # which waits for process 0
        if steps:
            raise UserError(f"no checkpoint in {self.directory} can be read; use a new --workdir")
        return None

    def _verify_together(self, step: int) -> None:
        """Verifies all files; raises Damaged in all processes if one of them finds damage."""
        problem, share = "", (jax.process_index(), jax.process_count())
        try:
            checksums.verify_folder(self.directory / str(step), share=share)
        except Damaged as damage:
            problem = str(damage)
        for found in filter(None, processes.tell_all(problem)):
            raise Damaged(found)

    def _set_aside(self, step: int, reason: str) -> str:
        """Moves an unreadable checkpoint out of the way; returns a line about it."""
        aside = self.directory.parent / UNREADABLE
        if processes.is_first():
            aside.mkdir(exist_ok=True)
            number = len(list(aside.iterdir()))
            (self.directory / str(step)).rename(aside / f"{step}-{number}")
        return f"checkpoint {step} cannot be read ({reason}); moved to {aside}"

    def close(self) -> None:
        self.wait()
        self._manager.close()


def _nonempty(tree: Any) -> Any:
    """A tree without arrays of size zero (a memory without slots), which Orbax cannot save."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _as(like: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(jax.tree.map(_placed, like))


def _placed(like: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array; the first local device if it is nowhere yet."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(like, "sharding", None) or first
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)


def _empty(like: Any) -> jax.Array:
    return jnp.zeros(like.shape, like.dtype, device=like.sharding)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, shortened if it is long."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    for known in ("No space left on device", "Disk quota exceeded", "Permission denied"):
        if known in str(error):
            return known
    return text if len(text) <= 160 else text[:160] + "..."
