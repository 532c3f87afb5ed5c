"""Draws who imports whom, and lists the rooms of each wing, from the code: `make graph`.

The order of the wings is that of the contract in pyproject.toml, from the top. Each wing has a line
of its own colour, which leaves its box at the right, runs down, and ends in an arrow at each wing
that it imports. An import that the contract forbids would run up, in red, at the left.
"""

import ast
import collections
import dataclasses
import pathlib
import sys
import textwrap
import tomllib
from xml.sax.saxutils import escape

import grimp

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "urnet_jax"
DRAWING = ROOT / "docs" / "images" / "imports.svg"
ROOMS = ROOT / "docs" / "rooms.md"

LEFT, BOX, LANE, SLOT, LINE, GAP = 56, 520, 46, 21, 18, 20
COLOURS = ("#3949ab", "#00838f", "#c62828", "#6a1b9a", "#2e7d32", "#ef6c00", "#5d4037", "#37474f")
WRONG = "#d50000"
STYLE = """\
text { font: 13px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #455a64 }
.wing { font-weight: 700; font-size: 16px }
.room { font: 12.5px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #263238 }
.count { font-size: 12px; font-weight: 700; text-anchor: middle }
.line { fill: none; stroke-width: 1.8 }"""


@dataclasses.dataclass(frozen=True)
class Wing:
    """A box of the drawing: a package, or rooms that stand beside one another at the root.

    Attributes:
      name: what the box is called.
      about: the first paragraph of its docstring; rooms at the root have none together.
      rooms: the first paragraphs of its rooms' docstrings by the rooms' names.
      modules: the full names of what belongs to it.
    """

    name: str
    about: str
    rooms: dict[str, str]
    modules: frozenset[str]


def wings() -> list[Wing]:
    """The wings that exist, in the order of the contract."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contract["contracts"] if c["type"] == "layers"]
    names = [part.strip(" ()") for layer in layers for part in layer.split("|")]
    found: list[Wing] = []
    at_root: list[str] = []
    for name in (*names, None):
        folder = ROOT / PACKAGE / (name or "")
        if name and folder.with_suffix(".py").exists():
            at_root.append(name)
            continue
        if at_root:
            found.append(_wing(", ".join(at_root), "", {room: room for room in at_root}))
            at_root = []
        if name and folder.is_dir():
            rooms = {}
            for path in sorted(folder.rglob("*.py")):
                *inner, room = path.relative_to(folder).with_suffix("").parts
                inner += [] if room == "__init__" else [room]
                rooms[".".join(inner) or "__init__"] = ".".join((name, *inner))
            found.append(_wing(name, _docstring(folder / "__init__.py"), rooms))
    return found


def _wing(name: str, about: str, modules: dict[str, str]) -> Wing:
    files = {room: ROOT / PACKAGE / m.replace(".", "/") for room, m in modules.items()}
    files = {
        room: path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for room, path in files.items()
    }
    rooms = {room: _docstring(file) for room, file in files.items() if room != "__init__"}
    return Wing(name, about, rooms, frozenset(f"{PACKAGE}.{m}" for m in modules.values()))


def _docstring(file: pathlib.Path) -> str:
    said = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(said.split("\n\n")[0].split())


def imports(found: list[Wing]) -> dict[tuple[int, int], int]:
    """How many pairs of rooms import one another, by the numbers of importing and imported wing."""
    sys.path.insert(0, str(ROOT))  # Not the package that may be installed elsewhere.
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    sys.path.pop(0)
    where = {module: number for number, wing in enumerate(found) for module in wing.modules}
    pairs = (
        (where[importer], where[imported])
        for importer in sorted(where)
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported in where
    )
    return dict(collections.Counter(pair for pair in pairs if pair[0] != pair[1]))


def draw(found: list[Wing], counts: dict[tuple[int, int], int]) -> str:
    """The drawing, as SVG."""
    into = {j: sorted((i for i, k in counts if k == j and i < j), reverse=True) for _, j in counts}
    importers = sorted({i for i, j in counts if i < j}, reverse=True)
    lane = {i: LEFT + BOX + 64 + LANE * n for n, i in enumerate(importers)}
    colour = {i: COLOURS[n % len(COLOURS)] for n, i in enumerate(sorted(importers))}
    boxes, lines, y = [], [], GAP
    top, leave, arrive = {}, {}, {}
    for number, wing in enumerate(found):
        text = _text(wing, y, colour.get(number, COLOURS[-1]))
        slots = into.get(number, []) + ([number] if number in lane else [])
        height = max(LINE * len(text) + 16, SLOT * len(slots) + 10)
        first = y + (height - SLOT * (len(slots) - 1)) / 2
        for n, importer in enumerate(slots):
            (leave if importer == number else arrive)[importer, number] = first + SLOT * n
        top[number] = y
        accent = colour.get(number, COLOURS[-1])
        boxes += [
            f'<rect x="{LEFT}" y="{y}" width="{BOX}" height="{height}" rx="6" fill="#f5f7fa" '
            f'stroke="#cfd8dc"/><rect x="{LEFT}" y="{y}" width="6" height="{height}" rx="3" '
            f'fill="{accent}"/>',
            *text,
        ]
        y += height + GAP
    for i in sorted(importers):
        own = {j: height for (importer, j), height in arrive.items() if importer == i}
        lines += _line(lane[i], leave[i, i], own, {j: counts[i, j] for j in own}, colour[i])
    lines += _wrong(counts, top)
    width = max(lane.values(), default=LEFT + BOX) + 40
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" '
        f'width="{width}" height="{y}" role="img">',
        "<title>Which wing imports which, and how many rooms do</title>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect width="{width}" height="{y}" rx="8" fill="white"/>',
        *lines, *boxes, "</svg>", "",
    ])  # fmt: skip


def _text(wing: Wing, y: float, accent: str) -> list[str]:
    """A line of SVG for each line of a box's text."""
    heads = {wing.name: wing.about} if wing.about else wing.rooms
    lines: list[str] = []
    for name, about in heads.items():
        first, *rest = textwrap.wrap(f"{name}\N{NO-BREAK SPACE} {about.replace('`', '')}", 64)
        bold = f'<tspan class="wing" style="fill: {accent}">{escape(name)}</tspan>'
        lines += [bold + escape(first.removeprefix(name)), *map(escape, rest)]
    rooms = textwrap.wrap("  ".join(wing.rooms), 62) if wing.about else []
    lines += [f'<tspan class="room">{escape(line)}</tspan>' for line in rooms]
    x, first = LEFT + 20, y + 24
    return [f'<text x="{x}" y="{first + LINE * n}">{line}</text>' for n, line in enumerate(lines)]


def _line(
    x: float, start: float, ends: dict[int, float], counts: dict[int, int], colour: str
) -> list[str]:
    """A wing's line: from its box to its lane, down, and to the boxes of those it imports."""
    right = LEFT + BOX
    drawn = [
        f'<path class="line" d="M{right} {start}H{x}V{max(ends.values())}" stroke="{colour}"/>'
    ]
    for wing, y in ends.items():
        drawn += [
            f'<path class="line" d="M{x} {y}H{right + 8}" stroke="{colour}"/>',
            f'<path d="M{right + 1} {y}l9 -5v10z" fill="{colour}"/>',
            f'<rect x="{right + 15}" y="{y - 9}" width="26" height="18" rx="9" fill="white" '
            f'stroke="{colour}"/>',
            f'<text class="count" x="{right + 28}" y="{y + 4.5}" style="fill: {colour}">'
            f"{counts[wing]}</text>",
        ]
    return drawn


def _wrong(counts: dict[tuple[int, int], int], top: dict[int, float]) -> list[str]:
    """A red line for each pair of wings of which the lower imports the upper."""
    drawn = []
    for n, (importer, imported) in enumerate(pair for pair in sorted(counts) if pair[0] > pair[1]):
        x, start, end = LEFT - 14 - 6 * (n % 6), top[importer] + 12 + 4 * n, top[imported] + 12
        drawn += [
            f'<path class="line" d="M{LEFT} {start}H{x}V{end}H{LEFT - 8}" stroke="{WRONG}"/>',
            f'<path d="M{LEFT} {end}l-9 -4v8z" fill="{WRONG}"/>',
        ]
    return drawn


def list_rooms(found: list[Wing]) -> str:
    """The page that lists the rooms, in Markdown."""
    lines = [
        "# Rooms",
        "",
        "`make graph` writes this page from the docstrings. Who imports whom is drawn in",
        "[Architecture](architecture.md).",
    ]
    for wing in found:
        page = f"api/{wing.name if wing.about else 'root'}.md"
        lines += ["", f"## {wing.name}".replace("__main__", "\\_\\_main\\_\\_"), ""]
        lines += [wing.about, ""] if wing.about else []
        lines += ["| room | what it holds |", "|---|---|"]
        parent = f"{PACKAGE}.{wing.name}" if wing.about else PACKAGE
        for room, about in wing.rooms.items():
            name = f"`{room}`" if room == "__main__" else f"[`{room}`]({page}#{parent}.{room})"
            lines.append(f"| {name} | {about.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def contents() -> dict[pathlib.Path, str]:
    """What `make graph` writes, by file."""
    found = wings()
    return {DRAWING: draw(found, imports(found)), ROOMS: list_rooms(found)}


if __name__ == "__main__":
    for path, text in contents().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
