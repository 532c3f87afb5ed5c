"""What the page says of evaluations made up, case by case."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from helpers.report_pages import Page, drawn, made_up, page_of
from urnet_jax.evaluate import inspection

HOSTILE = '<script>alert("1")</script> & $x$ '


def test_text_from_outside_is_text(run):
    split, made = made_up(run, drawn(40))
    made.predictions[0, 3] = 5
    names = tuple(f"{HOSTILE}{i}" for i in range(10))
    split = dataclasses.replace(split, dataset=HOSTILE, class_names=names)
    found = Page(page_of(run, split, made))
    assert found.counts["script"] == 0 and found.counts["b"] == 0
    words = found.words()
    assert f"ResNet-8 on {HOSTILE}" in "".join(found.text["h1"] + [" "])
    assert words.count('<script>alert("1")</script>') > 20
    assert f"at 0.6: {HOSTILE}5" in words and "1 image is right at the one" in words
    assert any(HOSTILE in text for text in found.values("img", "alt"))


def test_images_of_a_subset_are_those_of_their_numbers(run):
    few = run.subset(40)
    evaluation = run.evaluate((0.6, 0.8), few)
    evaluation.gates[:, 0], evaluation.gates[:, 1:] = 1, 0
    alts = Page(page_of(run, few, evaluation)).values("img", "alt")
    shown = {int(alt.split()[1]) for alt in alts if alt.startswith("Image ")}
    assert shown <= set(few.numbers.tolist()) and max(shown) > 40


def test_where_nothing_differs_it_says_so(run):
    found = Page(page_of(run, *made_up(run, np.ones((2, 6, 3)))))
    words = found.words()
    assert "all images use equally many blocks: none is easier than another" in words
    assert "No image is right at S = 0.8 and wrong at S = 0.6." in words
    assert "The image, the first of the split." in words
    assert [row[1:] for row in found.tables[1][1:]] == [["1", "100.0"]] * 2


def test_of_many_classes_the_ends_are_shown(run):
    few = Page(page_of(run, *made_up(run, drawn(80), num_classes=20)))
    split, made = made_up(run, drawn(80), num_classes=40)
    many = Page(page_of(run, split, made))
    widest = made.gates.sum(axis=2).std(axis=1).argmax()
    by_class = [made.gates[widest][made.labels == label].mean(axis=0) for label in range(40)]
    spread = 100 * np.ptp(by_class, axis=0)
    said = f"differ most in block {1 + spread.argmax()}, by {spread.max():.1f} points."
    assert said in " ".join(many.values("img", "alt"))
    assert "images of each class use" in few.words()
    assert "the 10 classes that use most (above) and the 10 that use least" in many.words()
    assert many.counts["li"] == 8 + 8 + 1


@pytest.mark.parametrize(
    ("gated", "sentence"),
    [
        (False, "This network is plain: it has no gates, and all of its 3 blocks run"),
        (True, "This checkpoint is of phase pretrain, in which gates are not used, and all"),
    ],
)
def test_without_gates_there_is_a_table_and_one_sentence(run, gated, sentence):
    split, made = made_up(run, np.ones((1, 6, 3)), (1.0,))
    arch: Any = made.arch
    made = dataclasses.replace(made, arch=dataclasses.replace(arch, gated=gated))
    plain = dataclasses.replace(run, meta=dataclasses.replace(run.meta, phase="pretrain"))
    found = Page(page_of(plain, split, made))
    assert sentence in found.words()
    assert found.counts["img"] == found.counts["figure"] == 0
    assert len(found.tables) == 1 and found.tables[0][1][:2] == ["1", "100.00"]
    assert "6 of digits, split test" in found.words()


@pytest.mark.parametrize(
    ("fields", "sentence", "with_images"),
    [
        ({"gate.random_drop": "always"}, "which are drawn at random; a block runs if it is", False),
        ({"model.gate_network": "external"}, "A ResNet-8 beside it sees the image", True),
        ({}, "a small gate sees the features", True),
    ],
)
def test_it_says_who_decides_which_blocks_run(run, fields, sentence, with_images, monkeypatch):
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    other = dataclasses.replace(run, meta=dataclasses.replace(run.meta, config=config))
    # The weights are of block gates; what one image does is of no matter here.
    swept = run.sweep(3)
    monkeypatch.setattr(inspection.Run, "sweep", lambda *_, **__: swept)
    found = Page(page_of(other, *made_up(run, drawn(100))))
    assert sentence in found.words()
    assert ("says nothing of the image" in found.words()) is not with_images
    # Top-1 against FLOPs and usage; and with images, many more.
    assert (found.counts["img"] > 2) is with_images
