"""Verifies the checksums of runs and of the cache, and says what can be trusted.

python -m mmrec_jax.runs.check --workdir=runs/tiny
python -m mmrec_jax.runs.check --cache
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.commands import cli
from mmrec_jax.commands.compiled_programs import SUFFIX, is_intact
from mmrec_jax.data.token_cache import open_prepared
from mmrec_jax.errors import UserError, printable
from mmrec_jax.files import cache_root
from mmrec_jax.runs.metrics import damaged_lines
from mmrec_jax.runs.workdir import read_config, read_tokenizer


class Verdict(NamedTuple):
    """What was verified, and what is wrong with it."""

    what: str
    problem: str = ""
    remark: str = ""

    @property
    def state(self) -> str:
        return self.problem or self.remark or "good"


def check_workdir(path: Path) -> Iterator[Verdict]:
    """Everything in a workdir that is read back.

    Raises:
        UserError: it is not a workdir.
    """
    if not (path / "config.json").exists():
        raise UserError(f"{path} is not a workdir: it has no config.json")
    yield _verdict("config.json", lambda: read_config(path))
    yield _verdict("tokenizer.json and data.json", lambda: read_tokenizer(path))
    if (path / "data").exists():
        yield _verdict("data", lambda: open_prepared(path / "data", check=True))
    lines = damaged_lines(path)
    first = f"damaged lines: {len(lines):,}, the first is line {lines[0]:,}" if lines else ""
    yield Verdict("metrics.jsonl", first)
    for folder in sorted(path.glob("checkpoints/[0-9]*"), key=lambda x: (len(x.name), x.name)):
        yield _checkpoint(folder)


def check_cache(root: Path) -> Iterator[Verdict]:
    """The prepared corpora and the compiled programs in the cache."""
    for index in sorted(root.glob("*/index.json")):
        yield _verdict(index.parent.name, lambda index=index: open_prepared(index.parent, True))
    programs = [*root.glob(f"compiled/*/*{SUFFIX}")]
    broken = [path for path in programs if not is_intact(path)]
    problem = f"{len(broken):,} damaged, such as {broken[0]}" if broken else ""
    yield Verdict(f"{len(programs):,} compiled programs", problem)


def _checkpoint(folder: Path) -> Verdict:
    what, sealed = f"checkpoint {folder.name}", True
    if not (folder / "_CHECKPOINT_METADATA").exists():
        return Verdict(what, remark="incomplete: being written, or left by a killed process")

    def verify():
        nonlocal sealed
        sealed = checksums.verify_folder(folder)

    verdict = _verdict(what, verify)
    return verdict if sealed else Verdict(what, remark="has no checksums: older code wrote it")


def _verdict(what: str, read: Callable[[], object]) -> Verdict:
    try:
        read()
    except (Damaged, UserError) as problem:
        return Verdict(what, str(problem))
    return Verdict(what)


def main():
    workdirs, with_cache = flags.FLAGS.workdir, flags.FLAGS.cache
    if not workdirs and not with_cache:
        raise UserError("give --workdir=PATH, or --cache")
    checks = [(name, check_workdir(Path(name))) for name in workdirs]
    if with_cache:
        checks.append((str(cache_root()), check_cache(cache_root())))
    damaged, unsealed = [], 0
    for name, verdicts in checks:
        verdicts = list(verdicts)
        print(printable(name))
        width = max(len(verdict.what) for verdict in verdicts)
        for verdict in verdicts:  # not a table, which would cut off long messages
            print(f"  {verdict.what:<{width}}  {printable(verdict.state)}")
        damaged += [f"{verdict.what} in {name}" for verdict in verdicts if verdict.problem]
        unsealed += any(verdict.remark for verdict in verdicts)
    if damaged:
        raise UserError(f"damaged: {', '.join(damaged)}; train.py sets damaged checkpoints aside")
    print("nothing is damaged" + (", as far as there are checksums" if unsealed else ""))


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", [], "Workdir to verify; may be repeated.")
    flags.DEFINE_bool("cache", False, "Verify the cache.")
    cli.run(main)
