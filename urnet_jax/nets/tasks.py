"""What a network is for: its loss, and what is measured of each sample."""

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int


class Measure(NamedTuple):
    """What says how good a network is, in percent.

    Attributes:
      name: in columns and files, as `top1` in `top1_percent`.
      title: for people.
    """

    name: str
    title: str

    @property
    def column(self) -> str:
        """Of tables."""
        return f"{self.name}_percent"

    @property
    def at_the_start(self) -> str:
        """The title as the first word of a sentence: 'Top-1', and 'mIoU' as it is."""
        capital = self.title != self.title.lower()
        return self.title if capital else self.title[:1].upper() + self.title[1:]


TOP1, MIOU = Measure("top1", "top-1"), Measure("miou", "mIoU")
PIXELS = Measure("pixels_right", "pixels right")


def measure_of(columns: Iterable[str]) -> Measure:
    """That of a table of `evaluation.summarize`, or of a line of it: the first of its percentages.

    One that a task of your own brings has its name for a title.
    """
    titles = {measure.name: measure.title for measure in (TOP1, MIOU)}
    names = (c.removesuffix("_percent") for c in columns if c.endswith("_percent"))
    name = next(names, TOP1.name)
    return Measure(name, titles.get(name, name))


@runtime_checkable
class Task(Protocol):
    """Loss and measures per sample of predictions and labels.

    Attributes:
      measure: of an evaluation, made of `counts` by `score`.
      trained: the mean of `correct`, which training shows on its way.
    """

    measure: ClassVar[Measure]
    trained: ClassVar[Measure]

    def loss(self, prediction: Array, label: Array) -> Float[Array, " B"]:
        """What training makes small, in nats."""
        ...

    def distance(self, prediction: Array, teacher: Array, temperature: float) -> Float[Array, " B"]:
        """How far predictions are from a teacher's, in nats, whatever the labels are."""
        ...

    def answer(self, prediction: Array) -> Array:
        """What the network says."""
        ...

    def correct(self, prediction: Array, label: Array) -> Bool[Array, " B"] | Float[Array, " B"]:
        """Whether that is right, or which share of it."""
        ...

    def counts(self, prediction: Array, label: Array) -> Int[Array, "B ..."]:
        """What the measure is computed from, once it is added up over samples."""
        ...

    def score(self, counts: Int[np.ndarray, "..."]) -> float:
        """The measure in percent, of counts that are added up; NaN of nothing."""
        ...


class Classification:
    """One class of K for each sample."""

    measure: ClassVar[Measure] = TOP1
    trained: ClassVar[Measure] = TOP1

    def loss(self, prediction: Float[Array, "B K"], label: Int[Array, " B"]) -> Float[Array, " B"]:
        """Cross entropy in nats, in float32."""
        return optax.softmax_cross_entropy_with_integer_labels(
            prediction.astype(jnp.float32), label
        )

    def distance(
        self, prediction: Float[Array, "B K"], teacher: Float[Array, "B K"], temperature: float
    ) -> Float[Array, " B"]:
        """KL divergence of softened classes, times the temperature's square (1503.02531)."""
        return _divergence(prediction, teacher, temperature)

    def answer(self, prediction: Float[Array, "B K"]) -> Int[Array, " B"]:
        """The likeliest class."""
        return prediction.argmax(-1).astype(jnp.int32)

    def correct(
        self, prediction: Float[Array, "B K"], label: Int[Array, " B"]
    ) -> Bool[Array, " B"]:
        """Whether the likeliest class is the label."""
        return self.answer(prediction) == label

    def counts(self, prediction: Float[Array, "B K"], label: Int[Array, " B"]) -> Int[Array, "B 2"]:
        """Right answers, and answers."""
        right = self.correct(prediction, label).astype(jnp.int32)
        return jnp.stack([right, jnp.ones_like(right)], axis=1)

    def score(self, counts: Int[np.ndarray, " 2"]) -> float:
        """Top-1: the share of right answers."""
        return float(100 * counts[0] / counts[1]) if counts[1] else float("nan")


class Segmentation:
    """One class of K for each pixel; labels below 0 count nowhere."""

    measure: ClassVar[Measure] = MIOU
    trained: ClassVar[Measure] = PIXELS

    def loss(
        self, prediction: Float[Array, "B H W K"], label: Int[Array, "B H W"]
    ) -> Float[Array, " B"]:
        """Cross entropy in nats, in float32: the mean over an image's labelled pixels."""
        counted = label >= 0
        of_pixels = optax.softmax_cross_entropy_with_integer_labels(
            prediction.astype(jnp.float32), jnp.maximum(label, 0)
        )
        return _mean_where(of_pixels, counted)

    def distance(
        self, prediction: Float[Array, "B H W K"], teacher: Float[Array, "B H W K"],
        temperature: float,
    ) -> Float[Array, " B"]:  # fmt: skip
        """As in `Classification`, the mean over an image's pixels, labelled or not."""
        return _divergence(prediction, teacher, temperature).mean(axis=(1, 2))

    def answer(self, prediction: Float[Array, "B H W K"]) -> Int[Array, "B H W"]:
        """The likeliest class of each pixel."""
        return prediction.argmax(-1).astype(jnp.int32)

    def correct(
        self, prediction: Float[Array, "B H W K"], label: Int[Array, "B H W"]
    ) -> Float[Array, " B"]:
        """The share of labelled pixels whose likeliest class is the label."""
        right = (self.answer(prediction) == label).astype(jnp.float32)
        return _mean_where(right, label >= 0)

    def counts(
        self, prediction: Float[Array, "B H W K"], label: Int[Array, "B H W"]
    ) -> Int[Array, "B K K2"]:
        """Each image's confusion matrix: pixels of the label (rows) with the answer (columns)."""
        classes = prediction.shape[-1]
        cell = jnp.where(label < 0, classes**2, label * classes + self.answer(prediction))
        of_image: Any = lambda cells: jnp.bincount(cells.reshape(-1), length=classes**2 + 1)  # noqa: E731
        counted = jax.vmap(of_image)(cell)[:, :-1]
        return counted.reshape(-1, classes, classes).astype(jnp.int32)

    def score(self, counts: Int[np.ndarray, "K K2"]) -> float:
        """mIoU: the mean over classes of pixels in both of answer and label by those in either.

        A class that neither the labels nor the answers have is left out.
        """
        found = of_classes(counts)
        found = found[np.isfinite(found)]
        return float(found.mean()) if found.size else float("nan")


def of_classes(counts: Int[np.ndarray, "K K2"]) -> Float[np.ndarray, " K"]:
    """Each class's intersection over union in percent, of a confusion matrix; NaN of none."""
    counts = counts.astype(np.int64)
    both = np.diagonal(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return np.where(either > 0, 100 * both / np.maximum(either, 1), np.nan)


def _divergence(prediction: Array, teacher: Array, temperature: float) -> Array:
    """Of the last axis, in float32."""
    asked, said = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
        for logits in (teacher, prediction)
    )
    return temperature**2 * jnp.sum(jnp.exp(asked) * (asked - said), axis=-1)


def _mean_where(values: Float[Array, "B H W"], counted: Bool[Array, "B H W"]) -> Float[Array, " B"]:
    """Means over the pixels that count; 0 where none does."""
    total = jnp.where(counted, values, 0.0).sum(axis=(1, 2))
    return total / jnp.maximum(1, counted.sum(axis=(1, 2)))
