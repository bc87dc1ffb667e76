"""The notebook, executed on a small run in its own kernel."""

import base64
import io
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from nbclient import NotebookClient

from mmrec_jax.report.drawing import draw
from mmrec_jax.report.plots import plot_saliency
from small_runs import ROOT


def test_every_cell_runs_and_draws_its_pictures(trained_run, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained_run, tmp_path / "run")
    monkeypatch.setenv("WORKDIR", str(workdir))
    notebook = nbformat.read(ROOT / "notebooks/inference.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # none is committed
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [
        plt.imread(io.BytesIO(base64.b64decode(output.data["image/png"])))
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    assert all(picture.std() > 0.05 for picture in pictures)  # not blank
    assert "tokens read" in "".join(output.get("text", "") for output in outputs)
    results = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "distance" in results
    assert "never before" in results


def test_kept_tokens_are_framed_and_the_salient_ones_darker(tmp_path):
    def drawn(saliency, kept):
        values = list("abcdefgh"), np.array(saliency), np.array(kept), 8
        return plt.imread(draw(tmp_path / "p.png", plot_saliency, *values))[..., :3]

    nothing, some = [False] * 8, [False] * 4 + [True] + [False] * 3
    plain, framed = drawn([0.0, 1.0] * 4, nothing), drawn([0.0, 1.0] * 4, some)
    changed = np.flatnonzero(np.abs(plain - framed).max(axis=(0, 2)) > 0.2)
    middle = plain.shape[1] * 4.5 / 8
    assert abs(changed.mean() - middle) < plain.shape[1] / 16
    columns = np.array_split(drawn([0.0] * 4 + [1.0] * 4, nothing)[:30], 8, axis=1)
    brightness = [column.mean() for column in columns]
    assert min(brightness[1:3]) > max(brightness[5:7]) + 0.2
