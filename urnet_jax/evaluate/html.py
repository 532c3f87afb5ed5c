"""Pages that are one file: text, tables and pictures, and nothing that lies elsewhere.

Pieces of a page are strings of HTML. What they are made of is text, and is escaped here; only
`column`, `side_by_side`, `section` and `page` take pieces.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from urnet_jax.evaluate.figures import to_png

_CSS_PIXELS = 96  # of an inch
# Beside another piece, or on a phone, a plot of this width has letters that can be read.
_NARROW = 3.8  # inches
_WIDE = 10.2
_MOST_NARROW_COLUMNS = 12
_DPI = 200

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6675; --ground: #f4f6f8;
  --card: #fff; --line: #d9dfe6; --shade: rgb(0 0 0 / .2); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #a3aebb; --ground: #12171e; --card: #1b222c; --line: #323c49;
    --shade: rgb(0 0 0 / .6); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .5rem; }
h2 { text-wrap: balance; }
p { max-width: 44rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(5.5rem, auto) minmax(0, 1fr);
  gap: .3rem 1rem; margin: 1rem 0; font-size: .95rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: .85rem; }
code span { display: inline-block; max-width: 100%; word-break: break-all; }
.side { display: grid; gap: 1rem; align-items: start; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem; margin: 1rem 0; min-width: 0; }
.side > .card, .column > .card:first-child { margin-top: 0; margin-bottom: 0; }
.column { min-width: 0; }
.column > .card + * { margin-top: 1rem; }
.scroll { overflow-x: auto; }
.card.scroll { /* a shade on each side where the table goes on */
  background: linear-gradient(90deg, var(--card), transparent) left / 2rem 100% no-repeat local,
    linear-gradient(-90deg, var(--card), transparent) right / 2rem 100% no-repeat local,
    linear-gradient(90deg, var(--shade), transparent) left / .75rem 100% no-repeat scroll,
    linear-gradient(-90deg, var(--shade), transparent) right / .75rem 100% no-repeat scroll,
    var(--card); }
.scroll:focus-visible { outline: 2px solid #2f7fc1; outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .85rem; }
th, td { padding: .4rem .25rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: pre; }
tbody tr:last-child > * { border-bottom: 0; }
figcaption { margin-bottom: .6rem; overflow-wrap: anywhere; }
.plot { background: #fff; border-radius: .25rem; padding: .25rem; }
.plot img { display: block; width: 100%; max-width: 32rem; height: auto; margin: 0 auto; }
.plot.scroll img { width: auto; max-width: none; margin: 0; }
.images { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .75rem .5rem;
  list-style: none; margin: 0; padding: 0; }
.images li { font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
.images img { display: block; width: 100%; height: auto; margin-bottom: .25rem;
  border-radius: .2rem; }
.images .pixels { image-rendering: pixelated; }
.images span { display: block; }
.images.one { grid-template-columns: minmax(0, 10rem); }
@media (min-width: 48rem) {
  main { padding: 2.5rem 2rem 4rem; }
  h1 { font-size: 2rem; }
  table { font-size: 1rem; }
  th, td { padding: .4rem .6rem; }
  .images.many { grid-template-columns: repeat(8, minmax(0, 1fr)); }
}
"""


class Picture(NamedTuple):
    """An image of a sample, and what is written below it."""

    png: bytes
    width: int  # pixels of the PNG
    height: int
    alt: str
    lines: Sequence[str]


def text(content: object) -> str:
    """The content as text that stands in a page as it is, in attributes too."""
    return html.escape(str(content))


def paragraph(content: str) -> str:
    """A paragraph of text."""
    return f"<p>{text(content)}</p>"


def facts(pairs: Mapping[str, object]) -> str:
    """Names and what they stand for, one below the other; a list is the words of a command."""
    rows = "\n".join(f"<dt>{text(k)}</dt><dd>{_fact(v)}</dd>" for k, v in pairs.items())
    return f"<dl>\n{rows}\n</dl>"


def _fact(value: object) -> str:
    if isinstance(value, list):  # Of inline blocks, so that no line ends within --flag.
        words = " ".join(f"<span>{text(word)}</span>" for word in value)
        return f"<code>{words}</code>"
    return text(value)


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
      label: what the table holds, for those who do not see it.
      columns: their heads, of one or more lines; the first names the rows.
      rows: cells, the first of which is the row's head.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "\n".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="card scroll" role="region" tabindex="0" aria-label="{text(label)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def width(columns: int) -> float:
    """The width in inches that suits a map of so many columns here."""
    return _NARROW if columns <= _MOST_NARROW_COLUMNS else _WIDE


def plot(figure: Figure, caption: str, alt: str) -> str:
    """A plot under its caption, on white ground whatever the reader's colours are.

    Args:
      figure: the plot. One of `width` of few columns shrinks and grows with the page; a wider one
        keeps its width, and scrolls by itself where there is less room.
      caption: how to read it.
      alt: what is seen in it, for those who do not see it.
    """
    inches = figure.get_figwidth()
    place, style = 'class="plot"', ""
    if inches > _NARROW:
        place = f'class="plot scroll" role="region" tabindex="0" aria-label="{text(caption)}"'
        style = f' style="width: {_CSS_PIXELS * inches:.0f}px"'
    source = _inline(to_png(figure, _DPI))
    image = f'<img src="{source}"{style} alt="{text(alt)}">'
    return _figure(caption, f"<div {place}>{image}</div>")


def images(pictures: Sequence[Picture], caption: str, *, many: bool = False) -> str:
    """Images under a caption: in rows of 4, or of 8 where there is room and they are `many`."""
    items = "\n".join(
        f'<li><img src="{_inline(p.png)}" width="{p.width}" height="{p.height}"'
        f'{_pixels(p)} alt="{text(p.alt)}">'
        + "".join(f"<span>{text(line)}</span>" for line in p.lines)
        + "</li>"
        for p in pictures
    )
    kind = "images one" if len(pictures) == 1 else "images many" if many else "images"
    return _figure(caption, f'<ul class="{kind}">\n{items}\n</ul>')


def side_by_side(*pieces: str) -> str:
    """Pieces beside each other where there is room, else one below the other."""
    return '<div class="side">\n' + "\n".join(pieces) + "\n</div>"


def column(*pieces: str) -> str:
    """Pieces one below the other, as one piece."""
    return '<div class="column">\n' + "\n".join(pieces) + "\n</div>"


def section(heading: str, *pieces: str) -> str:
    """A part of the page under its heading."""
    return f"<section>\n<h2>{text(heading)}</h2>\n" + "\n".join(pieces) + "\n</section>"


def page(title: str, *pieces: str) -> str:
    """The whole file. It needs no other file, no network and no script."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n"
        # Else browsers ask for one beside the page.
        '<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n"
        + "\n".join(pieces)
        + "\n</main>\n</body>\n</html>\n"
    )


def _figure(caption: str, content: str) -> str:
    caption = f"<figcaption>{text(caption)}</figcaption>"
    return f'<figure class="card">\n{caption}\n{content}\n</figure>'


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _pixels(picture: Picture) -> str:
    # Enlarged several times: its pixels are shown, not blurred.
    return ' class="pixels"' if picture.width <= 64 else ""
