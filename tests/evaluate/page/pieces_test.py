"""Every piece of a page: its text is escaped, and nothing of it is left out unseen."""

import jinja2
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from helpers.report_pages import Page
from urnet_jax.evaluate.page.pieces import (
    Beside,
    Facts,
    Images,
    Paragraph,
    Picture,
    Piece,
    Plot,
    Section,
    Table,
    render,
)

HOSTILE = """</p></style><script src='x'>alert("1")</script>{{ 1 + 1 }}{% raw %}&amp;'"""


def pieces() -> list[Piece]:
    picture = Picture(Image.fromarray(np.zeros((8, 8), np.uint8)), HOSTILE, [HOSTILE, HOSTILE])
    inner = Plot(Figure((3, 2)), HOSTILE, HOSTILE), Plot(Figure((9, 2)), HOSTILE, HOSTILE)
    return [
        Paragraph(HOSTILE),
        Facts({HOSTILE: HOSTILE, "Command": [HOSTILE, HOSTILE]}),
        Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]]),
        Images([picture], HOSTILE),
        Beside(inner),
        Beside([Beside(inner), Images([picture] * 9, HOSTILE, many=True)], wide=True),
    ]


def test_all_text_is_escaped_wherever_it_stands():
    content = render(HOSTILE, pieces(), [Section(HOSTILE, pieces())], pieces())
    found = Page(content)
    assert found.counts["script"] == 0
    assert "<script" not in content and "'x'" not in content
    # The title twice, the section's heading, and three times the pieces: a paragraph, 4 facts, 6
    # cells, the captions of 4 plots, and captions and lines of one picture (3) and of nine (19).
    shown = sum(text.count(HOSTILE) for texts in found.text.values() for text in texts)
    assert shown == 2 + 1 + 3 * (1 + 4 + 6 + 3 + 4 + 19)
    assert found.values("img", "alt") == [HOSTILE] * 3 * (1 + 4 + 9)
    assert found.values("div", "aria-label") == [HOSTILE] * 3 * 3


def test_a_piece_looks_as_its_fields_say():
    found = Page(render("A title", pieces()))
    assert found.values("div", "class") == [
        "card scroll", "side", "plot", "plot scroll", "column", "side", "plot", "plot scroll",
    ]  # fmt: skip
    assert found.values("ul", "class") == ["images one", "images many"]
    assert found.values("img", "class") == ["pixels"] * 10
    assert found.tables == [[[HOSTILE] * 2] * 3]


def test_a_field_that_is_missing_is_an_error():
    class Paragraph(Piece):
        """Without text."""

    with pytest.raises(jinja2.UndefinedError, match="text"):
        render("A title", [Paragraph()])
