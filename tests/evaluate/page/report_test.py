"""The page of a real run, read as a browser would, and by a browser where there is one."""

import base64
import dataclasses
import io
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.report_pages import Page, drawn, made_up, page_of
from urnet_jax.evaluate import evaluation, inspection, job, plots
from urnet_jax.evaluate import run as run_lib
from urnet_jax.evaluate.evaluation import Evaluation
from urnet_jax.evaluate.page import pieces
from urnet_jax.runs.calibration import Calibration

FILES = ["eval.csv", "eval.json", "eval_samples.npz", "top1_vs_flops.png", "block_usage.png"]


@pytest.fixture(scope="module")
def folder(finished, start, tmp_path_factory) -> pathlib.Path:
    """Where evaluate.py --report has written, of a run of three blocks."""
    output = tmp_path_factory.mktemp("report")
    before = sorted(finished.rglob("*"))
    flags = [f"--workdir={finished}", "--scales=0.2,0.6,0.8,1", "--output=out", "--report"]
    with start("evaluate.py", *flags, cwd=output) as process:
        printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert printed.splitlines()[-6:] == [f"out/{name}" for name in [*FILES, "report.html"]]
    assert {path.name for path in (output / "out").iterdir()} == {*FILES, "report.html"}
    assert sorted(finished.rglob("*")) == before
    return output / "out"


@pytest.fixture(scope="module")
def written(folder) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def read(written) -> Page:
    return Page(written)


@pytest.fixture(scope="module")
def varied(run) -> str:
    """A page on which nothing is missing."""
    split, made = made_up(run, drawn(100))
    made.predictions[0, ::4] = 5
    names = (
        "a-class-of-a-name-without-an-end" * 3,
        *(f"class of many words {i}" for i in range(9)),
    )
    return page_of(run, dataclasses.replace(split, class_names=names), made)


@pytest.mark.parametrize(
    ("of", "calibration", "share"),
    [
        ("blocks", None, "blocks"), ("flops", None, "FLOPs"),
        ("blocks", Calibration((0.2, 1.0), (0.0, 0.0), (), (), (), 1, 1), "FLOPs"),
    ],
)  # fmt: skip
def test_it_says_what_s_is_a_share_of(run, of, calibration, share):
    split, made = made_up(run, drawn(100))
    config = run.config.copy_and_resolve_references()
    config.scale.of = of
    meta = dataclasses.replace(run.meta, config=config)
    page = page_of(dataclasses.replace(run, meta=meta, calibration=calibration), split, made)
    assert f"S asks for about that share of the {share}." in page


def test_page_is_well_formed_and_says_what_it_is(written, read, folder):
    assert written.startswith('<!doctype html>\n<html lang="en">')
    assert 'charset="utf-8"' in written and "width=device-width, initial-scale=1" in written
    for tag in ("html", "head", "title", "style", "body", "main", "h1"):
        assert read.counts[tag] == 1, tag
    assert read.counts["h2"] == read.counts["section"] == 5
    assert read.counts["figure"] == read.counts["figcaption"] >= 5
    assert read.counts["script"] == 0
    record = json.loads((folder / "eval.json").read_text())
    words = read.words()
    assert "Gated ResNet-8 on digits" in words and "360 of digits, split test" in words
    assert f"step {record['step']}, phase joint" in words and record["date"] in words
    assert record["architecture"] in words and f"jax {record['versions']['jax']}" in words
    assert record["command"] in words
    assert (
        f"began from, at the end of phase pretrain: {record['plain_top1_percent']:.2f} %" in words
    )


def test_nothing_lies_outside(written, read):
    for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
        for tag in read.counts:
            assert all(value.startswith("data:") for value in read.values(tag, name))
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[\w+/=]+", "", written))
    assert len(written) < 2**20


def test_pictures_are_pngs_that_are_described(read, varied):
    check_pictures(read)
    check_pictures(Page(varied))
    assert Page(varied).counts["img"] == 6 + 8 + 8 + 16 + 1


def check_pictures(read: Page) -> None:
    sources, texts = read.values("img", "src"), read.values("img", "alt")
    assert len(sources) == len(texts) == read.counts["img"] >= 5 + 1
    assert min(map(len, texts)) > 10
    for source in sources:
        kind, content = source.split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
            assert image.format == "PNG"
            image.load()


def test_numbers_are_those_of_the_table(read, folder):
    table: Any = pd.read_csv(folder / "eval.csv")
    head, *rows = read.tables[0]
    assert " ".join(head).replace("\n", " ") == (
        "S Top-1, % FLOPs, % Blocks of 3 Blocks, min–max FLOPs, M"
    )
    assert len(rows) == len(table) == 4
    for row, want in zip(rows, table.itertuples(), strict=True):
        assert row == [
            f"{want.scale:g}",
            f"{want.top1_percent:.2f}",
            f"{100 * want.flops_share:.1f}",
            f"{want.blocks_mean:.2f} ± {want.blocks_std:.2f}",
            f"{want.blocks_min}–{want.blocks_max}",
            f"{want.flops_mean / 1e6:.2f} ± {want.flops_std / 1e6:.2f}",
        ]
    assert f"which takes {table['flops_full'].iloc[0] / 1e6:.2f} M." in read.words()
    cells = read.values("th", "scope")
    assert cells.count("col") == 6 + 3 + 4 and cells.count("row") == 4 + 4 + 4


def test_paths_and_lost_images_are_those_of_the_samples(read, folder, run):
    with np.load(folder / "eval_samples.npz") as samples:
        assert "gate_logits" not in samples
        arrays: Any = {name: samples[name] for name in samples if name != "scales"}
        seen = Evaluation(arch=run.arch, scales=tuple(samples["scales"]), **arrays)
    gates = inspection.gate_table(seen)
    want = inspection.distinct_paths(gates).to_dict()
    assert {float(s): int(paths) for s, paths, _ in read.tables[1][1:]} == want
    lost = len(inspection.right_and_wrong(gates))
    caption = f"{lost} images are" if lost > 1 else "1 image is" if lost else "No image is right"
    assert caption in read.words()


def test_it_is_evaluated_once_and_one_image_swept(finished, tmp_path, monkeypatch):
    counts = []

    def counted(*arguments: Any, **settings: Any) -> Evaluation:
        found = evaluation.evaluate(*arguments, **settings)
        counts.append((len(found.labels), len(found.scales)))
        return found

    monkeypatch.setattr(job, "evaluate", counted)
    monkeypatch.setattr(run_lib, "evaluate", counted)
    job.evaluate_workdir(finished, scales=[1.0], output=tmp_path, report=True)
    assert counts == [(360, 1), (1, len(inspection.SWEEP))]
    words = Page((tmp_path / "report.html").read_text()).words()
    assert "shown where both S = 0.6 and S = 0.8 are evaluated, which they were not" in words


def test_wide_maps_scroll_by_themselves():
    assert pieces.width_of(9) < 4 < pieces.width_of(54)
    table = pd.DataFrame(np.eye(54))
    pages = []
    for columns, caption in ((54, "Read <this>"), (9, "Read")):
        figure = plots.plot_map(table, "x", "y", "%", pieces.width_of(columns))
        pages.append(pieces.render("A", [pieces.Plot(figure, caption, "Seen")]))
    wide, narrow = pages
    assert 'class="plot scroll" role="region" tabindex="0" aria-label="Read &lt;this&gt;"' in wide
    assert 'style="width: 979px"' in wide
    assert 'class="plot scroll"' not in narrow


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
MEASURE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, images = [...document.images];
  const drawn = images.filter(image => image.complete && image.naturalWidth > 0).length;
  const sizes = [innerWidth, root.scrollWidth, document.body.scrollWidth, drawn];
  parent.postMessage(sizes.join(" "), "*");
});
</script></body>"""
# Headless Chromium's window may be no narrower than 500 pixels; a frame may be.
FRAME = """<!doctype html><title>none</title><script>
addEventListener("message", event => { document.title = event.data; });
</script><iframe src="page.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH to show the page")
@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("which", ["written", "varied"])
def test_the_page_fits_a_browser(request, which, width, tmp_path):
    content = request.getfixturevalue(which)
    (tmp_path / "page.html").write_text(content.replace("</body>", MEASURE))
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--virtual-time-budget=5000", "--dump-dom"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"file://{tmp_path / 'frame.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    inner, root, body, images = map(int, title[1].split())
    assert inner == width
    assert max(root, body) <= width
    assert images == Page(content).counts["img"]
