"""What a page is made of, as plain data, and how it becomes one file of HTML.

The templates in `templates/` lay the pieces out. Everything here is text: Jinja escapes it.
"""

import base64
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jinja2
from matplotlib.figure import Figure
from PIL.Image import Image

from urnet_jax.evaluate.figures import to_png

_CSS_PIXELS_PER_INCH = 96
_DPI = 200
# A plot of this width has letters that can be read beside another piece, or on a phone.
_NARROW = 3.8  # inches
_WIDE = 10.2
_MOST_NARROW_COLUMNS = 12
_ENLARGED_PIXELS = 64


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a page. The macro that shows it has its `kind` for a name."""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True)
class Paragraph(Piece):
    """A paragraph of text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Facts(Piece):
    """Names and what they stand for; a list holds the words of a command."""

    pairs: Mapping[str, str | list[str]]


@dataclasses.dataclass(frozen=True)
class Table(Piece):
    """A table.

    Attributes:
      label: what the table holds, for readers who do not see it.
      columns: their heads, of one or more lines; the first names the rows.
      rows: cells; the first of a row is its head.
    """

    label: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Plot(Piece):
    """A plot under its caption.

    Attributes:
      figure: a narrow one (see `width_of`) shrinks and grows with the page; a wider one keeps its
        width, and scrolls by itself where there is less room.
      caption: how to read it.
      alt: what it shows, for readers who do not see it.
    """

    figure: Figure
    caption: str
    alt: str

    @property
    def source(self) -> str:
        return _inline(to_png(self.figure, _DPI))

    @property
    def wide(self) -> bool:
        return bool(self.figure.get_figwidth() > _NARROW)

    @property
    def width_px(self) -> int:
        return round(_CSS_PIXELS_PER_INCH * self.figure.get_figwidth())


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a sample, and the lines below it."""

    image: Image
    alt: str
    lines: Sequence[str]

    @property
    def source(self) -> str:
        return _inline(to_png(self.image))

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @property
    def enlarged(self) -> bool:
        """Whether the page shows it several times as large, with its pixels sharp."""
        return self.width <= _ENLARGED_PIXELS


@dataclasses.dataclass(frozen=True)
class Images(Piece):
    """Images under a caption: in rows of 4, or of 8 where there is room and they are `many`."""

    pictures: Sequence[Picture]
    caption: str
    many: bool = False


@dataclasses.dataclass(frozen=True)
class Beside(Piece):
    """Pieces beside each other where there is room; one below the other where one is `wide`."""

    pieces: Sequence[Piece]
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page under its heading."""

    heading: str
    pieces: Sequence[Piece]


def width_of(columns: int) -> float:
    """The width in inches that suits a map of so many columns on a page."""
    return _NARROW if columns <= _MOST_NARROW_COLUMNS else _WIDE


def is_wide(*columns: int) -> bool:
    """Whether one of several maps of so many columns is too wide to stand beside another piece."""
    return width_of(max(columns)) > _NARROW


def render(
    title: str,
    introduction: Sequence[Piece],
    sections: Sequence[Section] = (),
    end: Sequence[Piece] = (),
) -> str:
    """The whole page as HTML. It needs no other file, no network and no script."""
    template = _environment().get_template("report.html.jinja")
    return template.render(title=title, introduction=introduction, sections=sections, end=end)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("urnet_jax.evaluate.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
