"""Reports: the page shows what the run has logged, and a browser displays all of it."""

import dataclasses
import html.parser
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax import checksums
from mmrec_jax.errors import UserError
from mmrec_jax.report import plots
from mmrec_jax.report.page import EPOCHS, write_comparison, write_report
from mmrec_jax.report.run_log import GapRow, gap_rows, judge, read_log, read_status
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import locked
from mmrec_jax.training.loop import train
from small_runs import ROOT, config, one_error_line, run

HOSTILE = (
    '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> & <b>bold</b>\n'
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run on a corpus of HTML, and its report."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "corpus.txt").write_text(HOSTILE * 40)
    cfg = config(data__source="text", data__path=str(folder / "corpus.txt"), train__num_epochs=3)
    path = folder / "<i>run</i>"
    train(cfg, path)
    write_report(path)
    return path


class Cells(html.parser.HTMLParser):
    """The rows of the table with a given id."""

    def __init__(self, table_id: str):
        super().__init__()
        self._id, self._inside, self._in_cell, self.rows = table_id, False, False, []

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._inside = dict(attributes).get("id") == self._id
        self._in_cell = self._inside and tag in ("td", "th")
        if self._inside and tag == "tr":
            self.rows.append([])
        if self._in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell = False
        if tag == "table":
            self._inside = False

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def assert_epochs_are_logged(page_text: str, workdir: Path) -> None:
    cells = Cells("epochs")
    cells.feed(page_text)
    names, *rows = cells.rows
    assert names == list(EPOCHS)
    lines = read_metrics(workdir, "epoch")
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        for name, text in zip(names, row, strict=True):
            number = text.rstrip("%").replace(",", "")
            digits = len(number.partition(".")[2])
            value = line[name] * (100 if text.endswith("%") else 1)
            assert float(number) == pytest.approx(value, abs=0.51 * 10**-digits)


def test_the_page_shows_what_was_logged(finished):
    page = (finished / "report.html").read_text()
    assert_epochs_are_logged(page, finished)
    best = min(line["loss"] for line in read_metrics(finished, "evaluation"))
    assert f"<dd>{best:.4f}</dd>" in page
    assert "Finished: all epochs done." in page
    for picture in ("loss", "series", "positions", "distances", "half_lives"):
        for name in (f"{picture}.png", f"{picture}-dark.png", f"{picture}-dark-narrow.png"):
            assert (finished / "report" / name).stat().st_size > 5_000
    assert page.count("data:image/png;base64,") == 20


def test_corpus_text_is_escaped(finished):
    page = (finished / "report.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page  # of the folder's name
    assert "&lt;" in page  # in the passage, one character per token


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_displays_the_complete_page(finished, scheme, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said, requested = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto((finished / "report.html").resolve().as_uri())
        assert said == []
        assert all(url.startswith(("file:", "data:")) for url in requested)
        images = page.evaluate(
            "[...document.images].map(i => [i.complete && i.naturalWidth, i.currentSrc])"
        )
        assert len(images) == 5
        assert all(image_width > 500 for image_width, _ in images)
        in_file = (finished / "report.html").read_text()
        wide = width > 640
        assert len({source for _, source in images}) == 5
        assert all(in_file.count(source) == 1 for _, source in images)
        assert all((image_width > 760) == wide for image_width, _ in images)
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert_epochs_are_logged(page.content(), finished)
        browser.close()


def test_tensorboard_reads_what_was_logged(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished / "tensorboard"), {"scalars": 0})
    events.Reload()
    checked = 0
    for kind in ("train", "evaluation", "epoch"):
        for line in read_metrics(finished, kind):
            for name, value in line.items():
                if name in ("kind", "step"):
                    continue
                (scalar,) = (
                    s.value for s in events.Scalars(f"{kind}/{name}") if s.step == line["step"]
                )
                assert scalar == pytest.approx(value, rel=1e-6)
                checked += 1
    assert checked > 500


# --- runs of every status ---


def copy_with(finished: Path, folder: Path, lines: list[dict], checkpoints: bool = False) -> Path:
    """The same workdir with other lines in its metrics.jsonl."""
    path = folder / "run"
    shutil.copytree(finished, path)
    (path / "report.html").unlink()
    if not checkpoints:
        shutil.rmtree(path / "checkpoints")
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def log_lines(finished: Path, until: int) -> list[dict]:
    lines = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    return [
        line for line in lines if line["step"] <= until and line.get("event") in (None, "started")
    ]


@pytest.mark.parametrize(
    ("until", "event", "sentence"),
    [
        (30, {"event": "interrupted", "reason": "SIGTERM"}, "Interrupted by SIGTERM after step 30"),
        (30, {"event": "diverged", "reason": "the loss is not finite"}, "Diverged at step 30: the"),
        (30, {"event": "stopped early", "reason": "stopped early: in 2"}, "Stopped early"),
        (30, None, "Ended unexpectedly after step 30 of"),
        (1, {"event": "finished", "reason": "all 1 steps done"}, "Finished: all 1 steps done."),
        (0, None, "No step has been recorded yet."),
    ],
    ids=["interrupted", "diverged", "early", "killed", "one", "none"],
)  # fmt: skip
def test_a_report_states_the_status_of_a_run(finished, tmp_path, until, event, sentence):
    lines = log_lines(finished, until)
    if event:
        lines.append({"kind": "event", "step": until, **event})
    path = copy_with(finished, tmp_path, lines)
    page = write_report(path).read_text()
    assert sentence in page
    assert "Without a checkpoint" in page


def test_a_report_states_that_a_run_is_in_progress(finished, tmp_path):
    path = copy_with(finished, tmp_path, log_lines(finished, 30), checkpoints=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 31, "lo')  # in the middle of a line
    with locked(path):
        assert "Running: step 30 of" in write_report(path).read_text()
        with pytest.raises(UserError, match="another process is training in"), locked(path):
            pass
    assert read_status(read_log(path), path).text.startswith("Ended unexpectedly")


def test_a_folder_that_is_not_a_workdir_gives_one_error_line(tmp_path):
    line = one_error_line(run("report.py", f"--workdir={tmp_path}"))
    assert f"{tmp_path} is not a workdir" in line


# --- comparison ---


def test_a_comparison_shows_only_what_differs(finished, tmp_path):
    other = copy_with(finished, tmp_path, log_lines(finished, 10_000))
    values = checksums.read_sealed(other / "config.json")
    values["train"]["learning_rate"], values["name"] = 0.5, "other"
    (other / "config.json").write_text(json.dumps(values))
    page = write_comparison([finished, other], tmp_path / "both/report.html").read_text()
    assert "<td>train.learning_rate</td><td>0.0003</td><td>0.5</td>" in page.replace("\n", "")
    assert "train.warmup_steps" not in page
    for folder in (finished, other):
        best = min(line["loss"] for line in read_metrics(folder, "evaluation"))
        assert f"<td>{best:.4f}</td>" in page
    assert (tmp_path / "both/report/comparison.png").exists()


# --- the verdict ---


def rows(training, validation):
    return [
        GapRow(10 * i, *pair) for i, pair in enumerate(zip(training, validation, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("training", "validation", "text"),
    [
        ([3.0, 2.0, 1.5], [3.1, 2.2, 1.8], "Fitting: validation loss 1.8000, +0.3000"),
        ([3.0, 2.0, 1.0, 0.5], [3.1, 2.2, 2.3, 2.5], "Overfitting since step 20"),
        (
            [3.0, 2.0, 2.0, 2.0],
            [3.0, 2.1, 2.1, 2.1],
            "Plateau: since step 30, validation",
        ),
        # Both rise: that is not overfitting.
        ([3.0, 2.0, 2.5], [3.0, 2.0, 2.6], "Plateau"),
        ([3.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], "Plateau"),
        ([3.0], [3.0], "Too early to tell"),
    ],
)
def test_the_verdict_follows_its_rule(training, validation, text):
    verdict, _ = judge(rows(training, validation))
    assert verdict.startswith(text)
    if text.startswith("Overfitting"):
        by_epoch, _ = judge(rows(training, validation), steps_per_epoch=15)
        assert "since epoch 2, step 20:" in by_epoch


def test_training_loss_of_an_evaluation_is_the_mean_since_the_previous_one(finished):
    log = read_log(finished)
    losses = [line["loss"] for line in read_metrics(finished, "train")]
    ends = [0, *(line["step"] for line in read_metrics(finished, "evaluation"))]
    for row, first, last in zip(gap_rows(log), ends, ends[1:], strict=False):
        assert row.training == pytest.approx(np.mean(losses[first:last]))


def test_a_curve_of_many_steps_keeps_its_mean_and_its_range():
    figure = plots.Figure()
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    values = rng.standard_normal(50_000)
    plots._curve(axes, np.arange(50_000), values, color="C0")
    (line,), (band,) = axes.get_lines(), axes.collections
    assert len(line.get_xdata()) == plots.BINS
    assert line.get_ydata().mean() == pytest.approx(values.mean(), abs=1e-3)
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((values.min(), values.max()))


@pytest.mark.slow
def test_overfitting_on_little_text_is_detected(tmp_path):
    text = (ROOT / "README.md").read_text()[:5_000]
    (tmp_path / "little.txt").write_text(text)
    cfg = config(
        data__source="text",
        data__path=str(tmp_path / "little.txt"),
        data__validation_fraction=0.2,
        model__dim=64,
        model__vocab_size=200,
        train__learning_rate=3e-3,
        train__num_epochs=12,
        train__patience=0,
    )
    train(dataclasses.replace(cfg, name="little"), tmp_path / "run")
    assert judge(gap_rows(read_log(tmp_path / "run")))[0].startswith("Overfitting")
