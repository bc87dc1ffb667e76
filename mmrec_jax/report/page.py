"""The report page of one run or of several, report.html: a single file without dependencies.

Pictures are saved as PNG files in the folder `report` next to the page, and also embedded in it.
The templates escape everything that comes from a corpus or a config.
"""

import concurrent.futures
import dataclasses
import datetime
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from mmrec_jax.config import FILE_SOURCES, Config, flatten
from mmrec_jax.errors import UserError
from mmrec_jax.files import check_writable, write_text
from mmrec_jax.learning.breakdown import FEWEST
from mmrec_jax.learning.cost import count_flops, count_parameters
from mmrec_jax.report import plots
from mmrec_jax.report.drawing import draw_for_page, shorten
from mmrec_jax.report.model_parts import read_model
from mmrec_jax.report.run_log import RULE, RunLog, gap_rows, judge, read_log, read_status
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.workdir import has_checkpoints, read_config, read_data, run_names
from mmrec_jax.waiting import waiting

MOST_ROWS = 60  # of a table; a longer one shows only its first and last rows
EPOCHS = {  # columns of the epoch table: a name in metrics.jsonl and how its numbers are shown
    "epoch": "d", "steps": ",d", "first": ".4f", "last": ".4f", "mean": ".4f", "min": ".4f",
    "max": ".4f", "change %": "+.1f", "val loss": ".4f", "perplexity": ",.3f", "accuracy": ".2%",
    "tokens/s": ",.0f", "seconds": ",.1f",
}  # fmt: skip
GAPS = {"step": ",d", "training loss": ".4f", "validation loss": ".4f", "gap": "+.4f"}
POSITIONS = {"tokens of context (bucket start)": ",d", "tokens": ",d", "loss": ".4f"}


def write_report(path: Path, with_model: bool = True) -> Path:
    """Writes report.html into a workdir, whatever the status of its run.

    `with_model` includes the best checkpoint: samples, memory, loss by context.

    Raises:
        UserError: the folder is not a workdir, or cannot be written to.
    """
    config, log = read_config(path), read_log(path)
    steps, best_step, finished = _read_checkpoints(path)
    status = read_status(log, path, finished)
    draw = functools.partial(draw_for_page, _pictures_folder(path))
    gaps = gap_rows(log)
    starts = [event for event in log.events if event.get("steps_per_epoch")]
    verdict, advice = judge(gaps, starts[-1]["steps_per_epoch"] if starts else 0)
    drawing = concurrent.futures.ThreadPoolExecutor(1)  # while the model's parts are compiled
    curves = {}
    if len(log.train["step"]):
        curves["loss"] = drawing.submit(draw, "loss", plots.plot_losses, log)
        curves["series"] = drawing.submit(draw, "series", plots.plot_series, log, height=5.0)
    parts, note = None, ""
    if with_model and not steps:
        note = "Without a checkpoint, the model itself cannot be shown."
    elif with_model:
        try:
            with waiting("evaluating the model and writing samples"):
                parts = read_model(path, steps[-1] if best_step is None else best_step)
        except UserError as error:  # an unreadable checkpoint, splits that were deleted
            note = f"The model could not be shown: {error}."
    pictures = {name: picture.result() for name, picture in curves.items()}
    positions = parts.breakdown.buckets("position") if parts else []
    if parts:
        pictures["positions"] = draw("positions", plots.plot_positions, positions, height=3.0)
        curve, reach = {"carried memory": parts.breakdown}, config.model.seen_tokens
        reaches = dict.fromkeys(curve, reach)
        pictures["distances"] = draw("distances", plots.plot_distances, curve, reaches, height=3.4)
        half_life = parts.half_life
        pictures["half_lives"] = draw("half_lives", plots.plot_half_lives, half_life, height=3.2)
    return _write_page(
        path / "report.html",
        "run.html.jinja",
        title=f"{config.name}: {path.resolve().name}",
        subtitle=f"{path}, {datetime.datetime.now():%d %B %Y, %H:%M}",
        status=status,
        figures=_figures(config, log),
        verdict=verdict,
        advice=advice,
        rule=RULE,
        gaps=_table(GAPS, [(*row, row.gap) for row in gaps]),
        epochs=_table(EPOCHS, [[line[name] for name in EPOCHS] for line in log.epochs]),
        checkpoints=_checkpoint_table(path, log, steps, best_step, finished),
        positions=_table(POSITIONS, [(of.first, of.tokens, of.loss) for of in positions]),
        parts=parts,
        fewest=FEWEST,
        note=note,
        pictures=pictures,
        what=_what(path, config),
        starts=_starts(log),
        knobs=flatten(dataclasses.asdict(config)).items(),
    )


def write_comparison(paths: list[Path], output: Path) -> Path:
    """Writes a page that compares the losses of several runs and their configs.

    Raises:
        UserError: a folder is not a workdir, no run has recorded a step, or the folder of the
            output cannot be written to.
    """
    names = run_names(paths)
    configs, logs = [read_config(path) for path in paths], [read_log(path) for path in paths]
    if not any(len(log.train["step"]) for log in logs):
        raise UserError("none of these runs has recorded a step yet")
    losses = draw_for_page(
        _pictures_folder(output.parent),
        "comparison",
        plots.plot_comparison,
        dict(zip(names, logs, strict=True)),
        height=4.2,
    )
    figures = [_figures(config, log) for config, log in zip(configs, logs, strict=True)]
    heads = ["run", "best validation loss", *(head for head, _ in figures[0][1:])]
    results = [[name, *(value for _, value in of)] for name, of in zip(names, figures, strict=True)]
    knobs = [flatten(dataclasses.asdict(config)) for config in configs]
    differences = [
        [key, *(of[key] for of in knobs)]
        for key in knobs[0]
        if key != "name" and len({repr(of[key]) for of in knobs}) > 1
    ]
    return _write_page(
        output,
        "comparison.html.jinja",
        title="Comparison of runs",
        subtitle=", ".join(map(str, paths)),
        names=names,
        losses=losses,
        results=[heads, *results],
        differences=[["knob", *names], *differences],
    )


def _figures(config: Config, log: RunLog) -> list[tuple[str, str]]:
    """The most important figures, as pairs of name and value."""
    finite = [line for line in log.evaluations if math.isfinite(line["loss"])]
    best = min(finite, key=lambda line: line["loss"], default=None)
    tokens = config.train.step_tokens * len(log.train["step"])
    speed, share = log.train["tokens_per_second"], log.train["mfu"]
    share = share[np.isfinite(share)]
    seconds = float(np.sum(config.train.step_tokens / speed)) if len(speed) else 0.0
    unknown = "-"
    return [
        (
            f"best validation loss (step {best['step']:,})" if best else "best validation loss",
            f"{best['loss']:.4f}" if best else unknown,
        ),
        ("perplexity", f"{best['perplexity']:,.3f}" if best else unknown),
        ("token accuracy", f"{best['accuracy']:.2%}" if best else unknown),
        ("parameters", f"{sum(count_parameters(config.model).values()):,}"),
        ("training tokens", shorten(tokens, form="{:.3g} {}")),
        ("training FLOPs", f"{tokens * count_flops(config).training:.3g}"),
        ("training time", _duration(seconds)),
        ("tokens per second", f"{np.median(speed):,.0f}" if len(speed) else unknown),
        ("model FLOP/s utilisation", f"{np.median(share):.1%}" if len(share) else unknown),
    ]


def _what(path: Path, config: Config) -> list[tuple[str, str]]:
    """Corpus and tokenizer of a run, and its source if it was grown."""
    data = config.data
    which = {**dict.fromkeys(FILE_SOURCES, data.mixture or data.path), "tfds": data.tfds_name}
    rows = [("corpus", f"{data.source} {which.get(data.source, '')}".strip())]
    try:
        tokens = read_data(path)["tokens"]
        rows.append(("tokens", ", ".join(f"{name} {count:,}" for name, count in tokens.items())))
        kind = json.loads((path / "tokenizer.json").read_text())["kind"]
        rows.append(("tokenizer", f"{data.tokenizer} ({kind}), V {config.model.vocab_size:,}"))
    except (OSError, UserError, ValueError, KeyError):
        rows.append(("tokenizer", data.tokenizer))
    if config.init_from:
        rows.append(("grown from", f"{config.init_from}, {config.growth.checkpoint} checkpoint"))
    return rows


def _starts(log: RunLog) -> list[tuple[str, list[tuple[str, str]]]]:
    """When, where and how the run was started and most recently resumed."""
    events = [e for e in log.events if e["event"] in ("started", "resumed") and "time" in e]
    starts = []
    for event in events[:1] + events[1:][-3:]:
        when = datetime.datetime.fromtimestamp(event["time"])
        versions = {"python": event["python"], **event["versions"]}
        facts = [
            ("command", event["command"]),
            ("revision", event["revision"] or "-"),
            ("machine", event["machine"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ]
        at = f" at step {event['step']:,}" if event["step"] else ""
        starts.append((f"{event['event'].capitalize()}{at} on {when:%d %B %Y, %H:%M}", facts))
    return starts


def _read_checkpoints(path: Path) -> tuple[list[int], int | None, str]:
    """Steps of the checkpoints, the best step, and why the run finished ("" if it has not)."""
    if not has_checkpoints(path):
        return [], None, ""
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    try:
        finished = checkpoints.progress(steps[-1]).get("finished", "")
    except UserError:  # damaged, or just deleted by a run in progress
        finished = ""
    return steps, checkpoints.best_step(), finished


def _checkpoint_table(
    path: Path, log: RunLog, steps: list[int], best_step: int | None, finished: str
) -> list[tuple[str, ...]]:
    losses = {line["step"]: line["loss"] for line in log.evaluations}
    last = "final" if finished else "latest"
    rows = [("step", "validation loss", "size", "")]
    for step in steps:
        files = (path / "checkpoints" / str(step)).rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file())
        names = [name for name, of in (("best", best_step), (last, steps[-1])) if of == step]
        loss = f"{losses[step]:.4f}" if step in losses else "-"
        rows.append((f"{step:,}", loss, f"{size / 1e6:,.1f} MB", ", ".join(names)))
    return rows


def _table(formats: dict[str, str], rows: Sequence[Sequence[float]]) -> list[list[str]]:
    """The names of the columns and the rows as text, with its middle left out if it is long."""
    shown = [[format(x, of) for x, of in zip(row, formats.values(), strict=True)] for row in rows]
    if len(rows) > MOST_ROWS:
        shown[MOST_ROWS // 2 : -MOST_ROWS // 2] = [["...", *[""] * (len(formats) - 1)]]
    return [list(formats), *shown]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _pictures_folder(path: Path) -> Path:
    folder = path / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise UserError(f"cannot write a report in {path}: {error.strerror}") from error
    return folder


def _write_page(path: Path, template: str, **values) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrec_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    write_text(path, page, errors="replace")
    return path
