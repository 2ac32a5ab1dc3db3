"""Draw the layout of the package from its imports: `python docs/images/layout.py`.

Writes `layout.svg` beside this file. Each box is a module or package directly below `linnaeus`; the rows are `LAYERS`
of `tests/test_style.py`. A line leads from a package to one that it imports. Imports that follow from other lines are
left out (transitive reduction): if `cli` imports `training` and `training` imports `data`, a direct import of `data` by
`cli` adds no line. `tests/test_architecture.py` compares the lines in the file with the imports.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from test_style import FILES, LAYERS, RANK, imports_of, module_of  # noqa: E402

from linnaeus.theme import PRINT  # noqa: E402

IMAGE = Path(__file__).with_name("layout.svg")
HIDDEN = {"__main__", "_version"}  # entry point and version number: every package may import them
BOX = (1.9, 0.52)  # width and height
STEP = (2.15, 1.15)  # distance between boxes in a row, and between rows
LINE, TEXT, FILL = PRINT["accent"], PRINT["text"], PRINT["raised"]


def package_imports() -> set[tuple[str, str]]:
    """(importing package, imported package) for all imports between packages, also those inside functions."""
    pairs = set()
    for file in FILES:
        importer = module_of(file)[:1]
        for _, name in imports_of(file) if importer else ():
            if name[0] == "linnaeus" and name[1:2] != importer and name[1] in RANK:
                pairs.add((importer[0], name[1]))
    return {(a, b) for a, b in pairs if not HIDDEN & {a, b}}


def transitive_reduction(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges of an acyclic graph that do not follow from the other edges."""
    successors: dict[str, set[str]] = {}
    for start, end in edges:
        successors.setdefault(start, set()).add(end)

    def reachable(start: str) -> set[str]:
        direct = successors.get(start, set())
        return direct.union(*map(reachable, direct))

    return {(a, b) for a, b in edges if not any(b in reachable(c) for c in successors[a] - {b})}


def lines() -> set[tuple[str, str]]:
    """The lines of the image."""
    return transitive_reduction(package_imports())


def positions(edges: set[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """The center of each box. Boxes move within their rows as long as lines become shorter or cross fewer boxes."""
    rows = [[name for name in layer if name not in HIDDEN] for layer in LAYERS]
    centers: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        for i, name in enumerate(row):
            centers[name] = ((i - (len(row) - 1) / 2) * STEP[0], number * STEP[1])
    columns = [i * STEP[0] / 2 for i in range(-5, 6)]
    for _ in range(10):
        for row in rows:
            for name in row:
                y = centers[name][1]
                others = [centers[other][0] for other in row if other != name]
                free = [x for x in columns if all(abs(x - other) >= STEP[0] for other in others)]
                centers[name] = min(((x, y) for x in free), key=lambda place: cost(edges, centers | {name: place}))
    return centers


def cost(edges: set[tuple[str, str]], centers: dict[str, tuple[float, float]]) -> float:
    """Horizontal extent of all lines, plus a penalty for each box that a line crosses."""
    total = 0.0
    for start, end in edges:
        (x0, y0), (x1, y1) = centers[start], centers[end]
        total += abs(x0 - x1)
        for x, y in centers.values():
            crossing = x0 + (x1 - x0) * (y0 - y) / (y0 - y1)
            total += 10 * (y1 < y < y0 and abs(crossing - x) < BOX[0] * 0.6)
    return total


def draw(path: Path) -> None:
    """Write the image; each line has the id `import:IMPORTER:IMPORTED`."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "layout", "font.family": "DejaVu Sans"})
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    edges = lines()
    centers = positions(edges)
    figure, axes = plt.subplots(figsize=(9, 10.5))
    for start, end in sorted(edges):
        (x0, y0), (x1, y1) = centers[start], centers[end]
        arrow = axes.annotate(
            "",
            xy=(x1, y1 + BOX[1] / 2),
            xytext=(x0, y0 - BOX[1] / 2),
            arrowprops={"arrowstyle": "-|>", "color": LINE, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0},
        )
        assert arrow.arrow_patch is not None
        arrow.arrow_patch.set_gid(f"import:{start}:{end}")
    for name, (x, y) in centers.items():
        corner = (x - BOX[0] / 2, y - BOX[1] / 2)
        axes.add_patch(
            FancyBboxPatch(corner, *BOX, boxstyle="round,pad=0,rounding_size=0.1", fc=FILL, ec=LINE, zorder=3)
        )
        axes.text(x, y, name, ha="center", va="center", color=TEXT, fontsize=9.5 if len(name) > 10 else 11, zorder=4)
    width = max(abs(x) for x, _ in centers.values()) + BOX[0]
    axes.set(xlim=(-width, width), ylim=(-STEP[1] / 2, (len(LAYERS) - 0.5) * STEP[1]))
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", facecolor=PRINT["background"], metadata={"Date": None})


if __name__ == "__main__":
    draw(IMAGE)
