"""Draws docs/images/rooms.png: the rooms of mmrec_jax, their modules, and who imports whom.

    python -m docs.draw_rooms

The picture carries the imports that it was drawn from, so that a test can tell whether it is still
true (tests/test_layout.py).
"""

import textwrap
import tomllib
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/images/rooms.png"
PACKAGE = "mmrec_jax"
# These get no arrows.
FOUNDATION = ["config", "knobs", "files", "checksums", "errors", "tables", "waiting"]
WIDTH, HEIGHT = 6.0, 0.74  # of a floor


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top, as the contract in pyproject.toml has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [layer.split(" | ") for layer in settings["contracts"][0]["layers"]]
    return [layer for layer in layers if layer[0] not in FOUNDATION]


def imports() -> dict[tuple[str, str], int]:
    """How many modules of one room import something of another, for each pair of rooms."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    importers: dict[tuple[str, str], set[str]] = {}
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            a, b = (f"{name}.".split(".")[1] for name in (importer, imported))
            if a and b and a != b:
                importers.setdefault((a, b), set()).add(importer)
    return {rooms: len(modules) for rooms, modules in sorted(importers.items())}


def description() -> str:
    """Modules and imports as text, as the picture carries them."""
    rooms = [room for floor in floors() for room in floor]
    lines = [f"{room}: {modules(room)}" for room in rooms]
    return "\n".join(lines + [f"{a} -> {b}: {count}" for (a, b), count in imports().items()])


def modules(room: str) -> str:
    """The modules of a room in one line, and its folders."""
    entries = sorted((ROOT / PACKAGE / room).iterdir())
    folders = [f"{entry.name}/" for entry in entries if (entry / "__init__.py").exists()]
    files = [entry.stem for entry in entries if entry.suffix == ".py" and entry.stem[0] != "_"]
    return "  ".join(files + folders)


def draw() -> None:
    figure, axes = plt.subplots(figsize=(9.5, 8.5), layout="constrained")
    top = {}  # y of each room's floor
    for row, floor in enumerate(floors()):
        width = WIDTH / len(floor)
        for column, room in enumerate(floor):
            top[room] = -row
            _draw_room(axes, room, modules(room), column * width, -row, width)
    lowest = -len(floors())
    _draw_room(axes, "imported by nearly every room", "  ".join(FOUNDATION), 0, lowest, WIDTH)
    for side, goes_here in ((-1, lambda room: room == "data"), (1, lambda room: room != "data")):
        _draw_imports(axes, top, side, goes_here)
    axes.set_xlim(-2.5, WIDTH + 2.5)
    axes.set_ylim(lowest - HEIGHT - 0.1, 0.1)
    axes.set_axis_off()
    figure.savefig(PICTURE, dpi=110, metadata={"Description": description(), "Software": None})


def _draw_room(axes, name: str, inside: str, x: float, y: float, width: float) -> None:
    gap = 0.06
    box = plt.Rectangle((x + gap, y - HEIGHT), width - 2 * gap, HEIGHT)
    box.set(facecolor="#f3f6fa", edgecolor="#555f6d")
    axes.add_patch(box)
    inside = textwrap.fill(inside, int(15 * width))
    axes.text(x + 0.15, y - 0.17, name, weight="bold", va="center", size=10)
    axes.text(x + 0.15, y - 0.29, inside, va="top", size=7, linespacing=1.15)


def _draw_imports(axes, top: dict[str, float], side: int, goes_here) -> None:
    """A line down beside the floors for each importing room, with an arrow into what it imports."""
    edge = WIDTH if side > 0 else 0
    edges = [(a, b) for a, b in imports() if goes_here(b) and b not in FOUNDATION]
    importers = sorted({a for a, _ in edges}, key=lambda room: -top[room])
    for lane, importer in enumerate(importers):
        x, color = edge + side * (0.35 + 0.33 * lane), f"C{lane}"
        imported = [b for a, b in edges if a == importer]
        start = top[importer] - 0.6
        ends = [top[room] - 0.14 - 0.09 * lane for room in imported]
        axes.plot([edge, x, x], [start, start, min(ends)], color=color, linewidth=1.3)
        axes.plot([edge], [start], "o", color=color, markersize=4)
        for end in ends:
            axes.annotate(
                "",
                xy=(edge, end),
                xytext=(x, end),
                arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0},
            )


if __name__ == "__main__":
    draw()
    print(description())
