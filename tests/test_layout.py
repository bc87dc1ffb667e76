"""The structure of the package, and the files that are generated from it."""

import subprocess
import sys

import pytest
from PIL import Image

from docs.draw_rooms import PICTURE, description
from mmrec_jax.commands.config_help import text
from small_runs import ROOT


def test_the_picture_of_the_rooms_is_current():
    drawn = Image.open(PICTURE).text["Description"]
    assert drawn == description(), "redraw it: python -m docs.draw_rooms"


def test_the_page_of_knobs_is_current():
    command = "python -m mmrec_jax.commands.config_help > docs/config.md"
    assert (ROOT / "docs/config.md").read_text() == text(), f"regenerate it: {command}"


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("mmrec_jax", set()),
        ("mmrec_jax.data.prepare", {"tokenizers"}),
        ("mmrec_jax.inference.language_model", {"jax", "orbax", "tokenizers"}),
        ("mmrec_jax.report.evaluation", {"jax", "orbax", "tokenizers", "matplotlib"}),
        ("mmrec_jax.training.loop", {"jax", "orbax", "tokenizers", "tensorboardX"}),
    ],
)
def test_a_command_imports_only_what_it_needs(module, packages):
    """Each of the packages below takes from a tenth of a second to several seconds."""
    slow = {
        "grain", "jax", "matplotlib", "orbax", "pyarrow", "tensorboardX", "tensorflow",
        "tensorflow_datasets", "tokenizers",
    }  # fmt: skip
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert slow.intersection(result.stdout.split()) == packages


def test_importing_the_package_leaves_the_allocator_alone():
    """Importing the package does not call glibc's mallopt."""
    code = (
        "import ctypes, sys\n"
        "opened = []\n"
        "class Spy(ctypes.CDLL):\n"
        "    def __getattr__(self, name):\n"
        "        opened.append(name)\n"
        "        return super().__getattr__(name)\n"
        "ctypes.CDLL = Spy\n"
        "{}\n"
        "print('mallopt' in opened)\n"
    )

    def calls_mallopt(action):
        command = [sys.executable, "-c", code.format(action)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        return result.stdout.split()[-1] == "True"

    assert not calls_mallopt("import mmrec_jax")
    assert calls_mallopt("from mmrec_jax.commands import process; process.keep_freed_memory()")
