"""How plots are drawn: as a PNG file, or for the report page.

Every function `plot_...` of plots.py plots on a figure. `draw` saves such a figure as a PNG file,
and `draw_for_page` draws it for light and dark and for wide and narrow screens.
"""

import base64
import itertools
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

_INK = {"light": "#1d2129", "dark": "#e4e6eb"}
_PAPER = {"light": "#ffffff", "dark": "#16181d"}
_CYCLE = {
    "light": [
        "#2563a8",
        "#c2410c",
        "#15803d",
        "#7c3aed",
        "#a16207",
        "#be185d",
        "#0e7490",
        "#525252",
    ],
    "dark": [
        "#6fb1f5",
        "#fb923c",
        "#5fd38a",
        "#b99cf8",
        "#e5c04b",
        "#f58ac0",
        "#67d3e3",
        "#b5b5b5",
    ],
}


def draw(path: Path, plot: Callable[..., None], *values) -> Path:
    """Draws a PNG file: `plot` is called with a figure and the values."""
    with matplotlib.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        _draw(path, (7, 4), 120, plot, values)
    return path


def draw_for_page(
    folder: Path, name: str, plot: Callable[..., None], *values, height: float = 3.4
) -> dict[str, str]:
    """Draws a figure as <name>.png and <name>-dark.png, and each again as -narrow.png.

    Args:
        plot: is called with a figure, of 7.2 or 4 inches in width, and the values.
        height: of the figure, in inches.

    Returns:
        The files as URIs: `light`, `dark`, `light_narrow` and `dark_narrow`.
    """
    picture = {}
    for theme, narrow in itertools.product(("light", "dark"), (False, True)):
        papers = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style = {
            **dict.fromkeys(papers, _PAPER[theme]),
            **dict.fromkeys(inks, _INK[theme]),
            "axes.prop_cycle": matplotlib.cycler(color=_CYCLE[theme]),
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "font.size": 11,
        }
        path = folder / f"{name}{'-dark' * (theme == 'dark')}{'-narrow' * narrow}.png"
        with matplotlib.rc_context(style):
            size = (4.0 if narrow else 7.2, height)
            _draw(path, size, 180 if narrow else 110, plot, values)
        encoded = base64.b64encode(path.read_bytes()).decode()
        picture[theme + "_narrow" * narrow] = f"data:image/png;base64,{encoded}"
    return picture


def _draw(path: Path, size: tuple[float, float], dpi: int, plot, values) -> None:
    figure = Figure(figsize=size, layout="constrained")
    plot(figure, *values)
    figure.savefig(path, dpi=dpi)


def shorten(number: float, kilo: int = 1000, form: str = "{:g}{}") -> str:
    """A number as text, such as 12.5K; `kilo` is what a K stands for."""
    for size, letter in ((kilo**3, "B"), (kilo**2, "M"), (kilo, "K")):
        if abs(number) >= size:
            return form.format(number / size, letter)
    return f"{number:g}"
