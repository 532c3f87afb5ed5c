"""Pictures of dense prediction: images, their truth, what the network says at several S.

shown = maps.predict(inspection.load("runs/camvid"), (0.4, 1.0), samples=(3, 17))
maps.plot(shown)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from urnet_jax.config import evaluated, skips
from urnet_jax.config import network as network_of
from urnet_jax.data import augment
from urnet_jax.data.splits import Split, examples, places
from urnet_jax.errors import UserError
from urnet_jax.evaluate.evaluation import Evaluation, check_scales
from urnet_jax.evaluate.figures import NotebookFigure
from urnet_jax.evaluate.run import Run
from urnet_jax.evaluate.step import gate_inputs
from urnet_jax.nets import network
from urnet_jax.nets.cost import flops_per_sample
from urnet_jax.nets.execution import choose
from urnet_jax.nets.labels import labels_of
from urnet_jax.nets.mode import Mode
from urnet_jax.nets.tasks import of_classes

_IGNORED = (0.0, 0.0, 0.0)
_RIGHT, _WRONG, _UNCOUNTED = (0.93, 0.93, 0.93), (0.79, 0.16, 0.12), (0.6, 0.6, 0.6)


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """n images of a split, and what a network says of them at k scales.

    Attributes:
      samples: their numbers in the split.
      scales: S, ascending.
      images: as evaluation sees them.
      labels: the class of each pixel; below 0 where it is ignored.
      answers: what the network says of each pixel at each S.
      flops_shares: of each image at each S, of the whole network's.
      class_names: what the classes are called, in order; empty where they have numbers only.
    """

    samples: tuple[int, ...]
    scales: tuple[float, ...]
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, "n h w"]
    answers: Int[np.ndarray, "k n h w"]
    flops_shares: Float[np.ndarray, "k n"]
    class_names: tuple[str, ...] = ()

    @property
    def right(self) -> Float[np.ndarray, "k n"]:
        """The share of an image's labelled pixels that are right."""
        counted = self.labels >= 0
        hits = ((self.answers == self.labels) & counted).sum(axis=(2, 3))
        return hits / np.maximum(1, counted.sum(axis=(1, 2)))


def predict(
    run: Run, scales: Sequence[float], samples: Sequence[int], split: str | Split = "test"
) -> Shown:
    """What a run's network says of each pixel of some images, at some S.

    Args:
      run: of a network for dense prediction.
      scales: S, in any order.
      samples: the images' numbers in the whole split.
      split: by its name, or opened.

    Raises:
      UserError: the network says a class for the image, or the split has no such image.
    """
    if labels_of(run.arch) != "map":
        raise UserError(
            f"The {run.arch.describe()} says one class for an image, and no map: look at "
            "run.plot_samples."
        )
    split = run.split(split) if isinstance(split, str) else split
    grid = check_scales(scales)
    images, labels = examples(split, places(split, np.asarray(samples)))
    numbers = np.asarray(samples, np.int32)
    step, full, answers, gates = jax.jit(_step_of(run)), evaluated(run.config), [], []
    for scale in grid:
        offset = np.zeros(1) if run.offset is None else np.asarray(run.offset(scale))
        of_one = np.full(1, scale, np.float32), offset.astype(np.float32).reshape(1, -1)
        for i in range(len(images)):
            one = slice(i, i + 1)
            answer, used = step(run.params, run.batch_stats, images[one], numbers[one], *of_one)
            answers.append(np.asarray(answer))
            gates.append(np.asarray(used))
    shares = flops_per_sample(full, np.concatenate(gates)) / (2.0 * full.cost.full_macs)
    return Shown(
        tuple(map(int, samples)), grid, images, labels,
        np.concatenate(answers).reshape(len(grid), *labels.shape), shares.reshape(len(grid), -1),
        split.class_names,
    )  # fmt: skip


def _step_of(run: Run) -> Any:
    """f(params, batch_stats, images, numbers, S, offset) -> each pixel's class, and the gates."""
    arch, build = network_of(run.config)
    graph, task = network.graph(arch, build), network.task(arch)
    mode = choose(arch, Mode(execution="auto" if skips(run.config, run.meta.phase) else "dense"), 1)

    def step(
        params: Any, batch_stats: Any, images: Any, numbers: Any, scale: Any, offset: Any
    ) -> Any:
        pixels = augment.normalize(images, *augment.normalization(run.config.data.name))
        inputs = gate_inputs(run.config, run.meta.phase, scale, numbers, offset)
        output, _ = network.apply(graph, params, batch_stats, pixels, inputs, mode)
        return task.answer(output.prediction), output.gates

    return step


def plot(shown: Shown, width: float = 10.2) -> Figure:
    """A row for each image: itself, its truth, and for each S the answer above where it is wrong.

    Black pixels are ignored; in the lower pictures red ones are wrong and dark grey ones are not
    counted. Under each answer stands its share of FLOPs and of right pixels.
    """
    columns, (n, h, w) = 2 + len(shown.scales), shown.labels.shape
    cell = width / columns
    figure = NotebookFigure(
        figsize=(width, n * (2 * cell * h / w + 0.35) + 0.5), dpi=150, layout="constrained"
    )
    classes = int(max(shown.labels.max(), shown.answers.max())) + 1
    colours = palette(max(classes, len(shown.class_names)))
    grid = figure.subplots(2 * n, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i in range(n):
        top, below = grid[2 * i], grid[2 * i + 1]
        top[0].imshow(shown.images[i].squeeze(), interpolation="nearest")
        top[0].set_title(f"#{shown.samples[i]}", fontsize=7)
        top[1].imshow(coloured(shown.labels[i], colours), interpolation="nearest")
        top[1].set_title("truth", fontsize=7)
        for k, scale in enumerate(shown.scales):
            answer, share = shown.answers[k, i], shown.flops_shares[k, i]
            top[2 + k].imshow(coloured(answer, colours), interpolation="nearest")
            title = f"S = {scale:g}: {100 * share:.0f} % of FLOPs"
            top[2 + k].set_title(title, fontsize=7)
            below[2 + k].imshow(wrong(shown.labels[i], answer), interpolation="nearest")
            below[2 + k].set_title(f"{100 * shown.right[k, i]:.1f} % right", fontsize=7)
        if i == 0 and shown.class_names:
            _legend(below[0], shown.class_names, colours)
    return figure


def palette(classes: int) -> Float[np.ndarray, "K 3"]:
    """A colour for each class, neighbours unlike one another."""
    hues = (np.arange(classes) * 0.618034) % 1.0
    values = np.where(np.arange(classes) % 2, 0.62, 0.88)
    return hsv_to_rgb(np.stack([hues, np.full(classes, 0.62), values], axis=1))


def coloured(
    classes: Int[np.ndarray, "h w"], colours: Float[np.ndarray, "K 3"]
) -> Float[np.ndarray, "h w 3"]:
    """A map in its classes' colours; black where it is ignored."""
    return np.where((classes >= 0)[..., None], colours[np.maximum(classes, 0)], _IGNORED)


def wrong(
    label: Int[np.ndarray, "h w"], answer: Int[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Where an answer is wrong: red; light grey where it is right, dark where nothing counts."""
    picture = np.where((label == answer)[..., None], _RIGHT, _WRONG)
    return np.where((label < 0)[..., None], _UNCOUNTED, picture)


def _legend(axes: Any, names: Sequence[str], colours: Float[np.ndarray, "K 3"]) -> None:
    marks = [
        axes.scatter([], [], marker="s", s=18, color=colour, label=name)
        for name, colour in zip(names, colours, strict=False)
    ]
    axes.legend(
        handles=marks, loc="upper left", ncols=2, fontsize=5.5, frameon=False, borderpad=0,
        handletextpad=0.2, columnspacing=0.6,
    )  # fmt: skip


def by_class(evaluation: Evaluation) -> pd.DataFrame:
    """Each class's intersection over union in percent (columns) at each S (rows)."""
    assert evaluation.counts is not None
    rows = [of_classes(counts.sum(axis=0)) for counts in evaluation.counts]
    return pd.DataFrame(rows, index=pd.Index(evaluation.scales, name="scale"))
