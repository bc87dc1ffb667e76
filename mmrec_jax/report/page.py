"""The report page of one run or of several, report.html: a single file without dependencies.

Pictures are saved as PNG files in the folder `report` next to the page, and also embedded in it.
The templates escape everything that comes from a corpus or a config.
"""

import base64
import dataclasses
import datetime
import json
import math
from pathlib import Path

import jinja2
import numpy as np

from mmrec_jax.config import Config, flatten
from mmrec_jax.errors import UserError
from mmrec_jax.files import write_text
from mmrec_jax.learning.cost import count_flops, count_parameters
from mmrec_jax.report import drawings
from mmrec_jax.report.model_parts import ModelParts, read_model
from mmrec_jax.report.run_log import RULE, RunLog, gap_rows, judge, read_log, read_status
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.workdir import has_checkpoints, read_config

_TONES = {"finished": "good", "diverged": "bad", "ended": "bad"}
MOST_ROWS = 60  # of a table; a longer one shows only its first and last rows


def write_report(path: Path, with_model: bool = True) -> Path:
    """Writes report.html into a workdir, whatever the status of its run.

    Args:
        path: the workdir.
        with_model: whether to show the best checkpoint: samples, memory, loss by context.

    Raises:
        UserError: the folder is not a workdir, or cannot be written to.
    """
    config, log = read_config(path), read_log(path)
    steps, best_step, progress = _read_checkpoints(path)
    status = read_status(log, path, progress.get("finished", ""))
    folder = _pictures_folder(path)
    gaps = gap_rows(log)
    starts = [event for event in log.events if event.get("steps_per_epoch")]
    verdict = judge(gaps, starts[-1]["steps_per_epoch"] if starts else 0)
    pictures = {}
    if len(log.train["step"]):
        pictures["loss"] = drawings.draw(
            folder,
            "loss",
            "Training and validation loss",
            lambda figure, _: drawings.plot_losses(figure, log),
        )
        pictures["series"] = drawings.draw(
            folder,
            "series",
            "Learning rate, gradient norm, tokens per second and data wait",
            lambda figure, narrow: drawings.plot_series(figure, log, narrow),
            height=5.0,
        )
    parts, notes = _read_model(path, best_step, steps) if with_model else (None, [])
    if parts:
        pictures |= _draw_model(folder, parts)
    page = _render(
        "run.html.jinja",
        title=f"{config.name}: {path.resolve().name}",
        subtitle=f"{path}, {datetime.datetime.now():%d %B %Y, %H:%M}",
        status={"text": _sentence(status.text), "tone": _TONES.get(status.kind, "")},
        figures=_figures(config, log),
        verdict=verdict,
        rule=RULE,
        gaps=_shortened(
            [
                ("step", "training loss", "validation loss", "gap"),
                *(
                    (f"{r.step:,}", f"{r.training:.4f}", f"{r.validation:.4f}", f"{r.gap:+.4f}")
                    for r in gaps
                ),
            ]
        ),
        epochs=_shortened([EPOCH_NAMES, *(epoch_row(line) for line in log.epochs)]),
        checkpoints=_checkpoint_table(path, log, steps, best_step, progress),
        positions=_position_table(parts),
        samples=parts.samples if parts else [],
        samples_note=parts.samples_note if parts else "",
        passage=parts.passage if parts else [],
        passage_note=parts.passage_note if parts else "",
        notes=notes,
        pictures=_embedded(pictures),
        what=_what(path, config, log),
        starts=_starts(log),
        knobs=[(key, f"{value}") for key, value in flatten(dataclasses.asdict(config)).items()],
    )
    return _write_page(path / "report.html", page)


def write_comparison(paths: list[Path], output: Path) -> Path:
    """Writes a page that compares the losses of several runs and their configs.

    Raises:
        UserError: a folder is not a workdir, no run has recorded a step, or the folder of the
            output cannot be written to.
    """
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    configs = dict(zip(names, map(read_config, paths), strict=True))
    logs = dict(zip(names, map(read_log, paths), strict=True))
    if not any(len(log.train["step"]) for log in logs.values()):
        raise UserError("none of these runs has recorded a step yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    picture = drawings.draw(
        _pictures_folder(output.parent),
        "comparison",
        "Validation and training losses of " + ", ".join(names),
        lambda figure, _: drawings.plot_comparison(figure, logs),
        height=4.2,
    )
    flat = {name: flatten(dataclasses.asdict(config)) for name, config in configs.items()}
    keys = [
        key
        for key in next(iter(flat.values()))
        if key != "name" and len({repr(values[key]) for values in flat.values()}) > 1
    ]
    figures = [_figures(configs[name], logs[name]) for name in names]
    results = [("run", "best validation loss", *(name for name, _ in figures[0][1:]))]
    results += [
        (name, *(value for _, value in values)) for name, values in zip(names, figures, strict=True)
    ]
    page = _render(
        "comparison.html.jinja",
        title="Comparison of runs",
        subtitle=", ".join(map(str, paths)),
        pictures=_embedded({"comparison": picture}),
        results=results,
        differences=[("knob", *names)]
        + [(key, *(f"{values[key]}" for values in flat.values())) for key in keys],
    )
    return _write_page(output, page)


EPOCH_NAMES = (
    "epoch", "steps", "first", "last", "mean", "min", "max", "change %", "val loss", "perplexity",
    "accuracy", "tokens/s", "seconds",
)  # fmt: skip
_EPOCH_FORMATS = {
    "epoch": "d", "steps": ",d", "change %": "+.1f", "perplexity": ",.3f", "accuracy": ".2%",
    "tokens/s": ",.0f", "seconds": ",.1f",
}  # fmt: skip


def epoch_row(line: dict) -> tuple[str, ...]:
    """A row of the epoch table, from an epoch's line of metrics.jsonl."""
    return tuple(format(line[name], _EPOCH_FORMATS.get(name, ".4f")) for name in EPOCH_NAMES)


def _figures(config: Config, log: RunLog) -> list[tuple[str, str]]:
    """The most important figures, as pairs of name and value."""
    finite = [line for line in log.evaluations if math.isfinite(line["loss"])]
    best = min(finite, key=lambda line: line["loss"], default=None)
    tokens = config.train.step_tokens * len(log.train["step"])
    speed = log.train["tokens_per_second"]
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
        ("training tokens", _short(tokens)),
        ("training FLOPs", f"{tokens * count_flops(config).training:.3g}"),
        ("training time", _duration(seconds)),
        ("tokens per second", f"{np.median(speed):,.0f}" if len(speed) else unknown),
    ]


def _what(path: Path, config: Config, log: RunLog) -> list[tuple[str, str]]:
    """Corpus and tokenizer of a run, and its source if it was grown."""
    data = config.data
    which = {"text": data.path, "jsonl": data.path, "tfds": data.tfds_name}
    rows = [("corpus", f"{data.source} {which.get(data.source, '')}".strip())]
    try:
        tokens = json.loads((path / "data.json").read_text())["tokens"]
        rows.append(("tokens", ", ".join(f"{name} {count:,}" for name, count in tokens.items())))
        kind = json.loads((path / "tokenizer.json").read_text())["kind"]
        rows.append(("tokenizer", f"{data.tokenizer} ({kind}), V {config.model.vocab_size:,}"))
    except (OSError, ValueError, KeyError):
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


def _read_checkpoints(path: Path) -> tuple[list[int], int | None, dict]:
    """Steps of the checkpoints, the best step, and the progress saved with the last one."""
    if not has_checkpoints(path):
        return [], None, {}
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    try:
        progress = checkpoints.progress(steps[-1])
    except Exception:  # damaged, or just deleted by a run in progress
        progress = {}
    return steps, checkpoints.best_step(), progress


def _checkpoint_table(
    path: Path, log: RunLog, steps: list[int], best_step: int | None, progress: dict
) -> list[tuple[str, ...]]:
    losses = {line["step"]: line["loss"] for line in log.evaluations}
    rows = [("step", "validation loss", "size", "")]
    for step in steps:
        files = (path / "checkpoints" / str(step)).rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file())
        last = "final" if progress.get("finished") else "latest"
        names = [name for name, of in (("best", best_step), (last, steps[-1])) if of == step]
        loss = f"{losses[step]:.4f}" if step in losses else "-"
        rows.append((f"{step:,}", loss, f"{size / 1e6:,.1f} MB", ", ".join(names)))
    return rows


def _read_model(path: Path, best_step: int | None, steps: list[int]):
    """What the report shows of the best checkpoint, and notes on what is missing."""
    if not steps:
        return None, ["Without a checkpoint, the model itself cannot be shown."]
    step = steps[-1] if best_step is None else best_step
    try:
        return read_model(path, step), []
    except UserError as error:  # an unreadable checkpoint, splits that were deleted
        return None, [f"The model could not be shown: {error}."]


def _draw_model(folder: Path, parts: ModelParts) -> dict[str, drawings.Picture]:
    return {
        "positions": drawings.draw(
            folder,
            "positions",
            "Validation loss by tokens of context, with carried memory",
            lambda figure, _: drawings.plot_positions(figure, parts.positions),
            height=3.0,
        ),
        "half_lives": drawings.draw(
            folder,
            "half_lives",
            "Half-life of every channel of the recurrence, by layer",
            lambda figure, _: drawings.plot_half_lives(figure, parts.half_life),
            height=3.2,
        ),
    }


def _position_table(parts: ModelParts | None) -> list[tuple[str, ...]]:
    rows = [("tokens of context (bucket start)", "tokens", "loss")]
    for bucket in parts.positions if parts else []:
        rows.append((f"{bucket['first']:,}", f"{bucket['tokens']:,}", f"{bucket['loss']:.4f}"))
    return rows


def _shortened(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A table, with its middle left out if it is long."""
    if len(rows) <= MOST_ROWS + 1:
        return rows
    half = MOST_ROWS // 2
    dots = ("...",) + ("",) * (len(rows[0]) - 1)
    return [*rows[: half + 1], dots, *rows[-half:]]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _short(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _pictures_folder(path: Path) -> Path:
    folder = path / "report"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write a report in {path}: {error.strerror}") from error
    return folder


def _embedded(pictures: dict[str, drawings.Picture]) -> dict[str, dict]:
    def uri(path: Path) -> str:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    return {
        name: {key: value if key == "alt" else uri(value) for key, value in it._asdict().items()}
        for name, it in pictures.items()
    }


def _render(template: str, **values) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrec_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _write_page(path: Path, page: str) -> Path:
    write_text(path, page, errors="replace")
    return path
