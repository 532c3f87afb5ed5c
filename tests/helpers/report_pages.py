"""Pages read as a browser would, and pages of evaluations made up."""

import collections
import dataclasses
import html.parser
import re
from typing import Any

import numpy as np

from urnet_jax.evaluate import files
from urnet_jax.evaluate.evaluation import Evaluation
from urnet_jax.evaluate.page import report
from urnet_jax.evaluate.run import Run
from urnet_jax.nets.cost import flops_per_sample

VOID = {"meta", "link", "img"}


class Page(html.parser.HTMLParser):
    """Elements, text and tables of a page; a tag that does not fit is an error."""

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.counts = collections.Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = collections.defaultdict(list)
        self.tables: list[list[list[str]]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] += 1
        assert len({name for name, _ in attrs}) == len(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.text[where].append(data)
        if where in ("th", "td"):
            self.tables[-1][-1][-1] += data

    def words(self) -> str:
        kept = (text for tag, text in self.text.items() if tag not in ("style", "title"))
        return re.sub(r"\s+", " ", " ".join(sum(kept, [])))

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def made_up(run: Run, gates: Any, scales=(0.6, 0.8), num_classes=10) -> tuple[Any, Evaluation]:
    """A split of the run's images, and an evaluation in which all predictions are right."""
    gates = np.asarray(gates, np.uint8)
    n = gates.shape[1]
    labels = (np.arange(n) % num_classes).astype(np.int32)
    split: Any = run.split()
    split = dataclasses.replace(split, num_examples=n, images=split.images[:n], labels=labels)
    return split, Evaluation(
        arch=run.arch,
        scales=scales,
        index=np.arange(n),
        labels=labels,
        predictions=np.tile(labels, (len(scales), 1)),
        loss=np.zeros((len(scales), n), np.float32),
        gates=gates,
        flops=np.stack([flops_per_sample(run.arch, g) for g in gates]).astype(float),
    )


def page_of(run: Run, split: Any, made: Evaluation) -> str:
    meta = run.meta
    about = {"dataset": split.dataset, "split": "test", "phase": meta.phase, "step": meta.step}
    return report.make(run, split, made, files.describe(made, about | {"execution": "auto"}))


def drawn(n: int, scales: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (scales, n, 3))
