"""Pictures of dense prediction: images, their truth, what the network says at several S.

run = inspection.load("runs/camvid")
maps.plot(maps.predict(run, (0.4, 1.0), samples=(3, 17)))
maps.answer(run, pixels, scale=0.6)  # of an image of your own: the class of each pixel
"""

import dataclasses
import functools
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image

from urnet_jax import config as config_lib
from urnet_jax.data import augment
from urnet_jax.data.maps import LabelMaps
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

_MOST_IN_LEGEND = 40  # classes: more have no room there
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
    _check_kind(run)
    split = run.split(split) if isinstance(split, str) else split
    grid, numbers = check_scales(scales), np.asarray(samples, np.int32)
    if not numbers.size:
        raise UserError("samples is empty; expected numbers of images, as (3, 17).")
    images, labels = examples(split, places(split, numbers))
    step, full, answers, gates = _step_of(run), config_lib.evaluated(run.config), [], []
    for scale in grid:
        for image, number in zip(images, numbers, strict=True):
            said, used = step(*_inputs(run, image, int(number), scale))
            answers.append(np.asarray(said))
            gates.append(np.asarray(used))
    shares = flops_per_sample(full, np.concatenate(gates)) / (2.0 * full.cost.full_macs)
    return Shown(
        tuple(numbers.tolist()), grid, images, labels,
        np.concatenate(answers).reshape(len(grid), *labels.shape), shares.reshape(len(grid), -1),
        split.class_names,
    )  # fmt: skip


def answer(run: Run, image: np.ndarray, scale: float = 1.0) -> Int[np.ndarray, "h w"]:
    """The class of each pixel of an image that is in no dataset, as the network says at one S.

    The image is scaled as evaluation does, into `data.eval_size`; the answer is scaled back.

    Args:
      run: of a network for dense prediction.
      image: uint8 [h, w, 3] of any size, in RGB, as of
        `np.asarray(PIL.Image.open(path).convert("RGB"))`.
      scale: S.

    Raises:
      UserError: the network says a class for the image, or the image is not of that form.
    """
    _check_kind(run)
    (scale,) = check_scales((scale,))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"The image is {image.dtype} of shape {image.shape}; expected uint8 of [height, width, "
            "3], RGB of 0 to 255."
        )
    data = run.config.data
    seen, window = LabelMaps(tuple(data.eval_size), data.num_classes).whole(image)
    said = np.asarray(_step_of(run)(*_inputs(run, seen, 0, scale))[0])[0]
    there = Image.fromarray(said[: window.height, : window.width].astype(np.uint8))
    return np.asarray(there.resize(image.shape[1::-1], Image.Resampling.NEAREST)).astype(np.int32)


def _check_kind(run: Run) -> None:
    if labels_of(run.arch) != "map":
        raise UserError(
            f"The {run.arch.describe()} says one class for an image, and no map: look at "
            "run.plot_samples."
        )


def _inputs(run: Run, image: UInt8[np.ndarray, "h w 3"], number: int, scale: float) -> Any:
    """What `_step_of` takes, of one image at one S."""
    offset = np.zeros(1) if run.offset is None else np.asarray(run.offset(scale))
    return (
        run.params, run.batch_stats, image[None], np.full(1, number, np.int32),
        np.full(1, scale, np.float32), offset.astype(np.float32).reshape(1, -1),
    )  # fmt: skip


def _step_of(run: Run) -> Any:
    """f(params, batch_stats, images, numbers, S, offset) -> each pixel's class, and the gates."""
    return _compiled(config_lib.to_json(run.config), run.meta.phase)


@functools.lru_cache(maxsize=2)
def _compiled(config_json: str, phase: str) -> Any:
    """`_step_of` a run of this config, compiled once for all images."""
    config = config_lib.from_json(config_json)
    arch, build = config_lib.network(config)
    graph, task = network.graph(arch, build), network.task(arch)
    mode = choose(arch, Mode(execution="auto" if config_lib.skips(config, phase) else "dense"), 1)

    def step(
        params: Any, batch_stats: Any, images: Any, numbers: Any, scale: Any, offset: Any
    ) -> Any:
        pixels = augment.normalize(images, *augment.normalization(config.data.name))
        inputs = gate_inputs(config, phase, scale, numbers, offset)
        output, _ = network.apply(graph, params, batch_stats, pixels, inputs, mode)
        return task.answer(output.prediction), output.gates

    return jax.jit(step)


def plot(shown: Shown, width: float = 10.2, notes: Sequence[str] = ()) -> Figure:
    """A row for each image: itself, its truth, and for each S the answer above where it is wrong.

    Black pixels are ignored; in the lower pictures red ones are wrong and grey ones are not
    counted. Above each answer stands its share of FLOPs, below it that of right pixels.

    Args:
      shown: of `predict`.
      width: in inches.
      notes: of each image, to be written below its truth; none by default.
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
            said, share = shown.answers[k, i], shown.flops_shares[k, i]
            top[2 + k].imshow(coloured(said, colours), interpolation="nearest")
            title = f"S = {scale:g}: {100 * share:.0f} % of FLOPs"
            top[2 + k].set_title(title, fontsize=7)
            below[2 + k].imshow(wrong(shown.labels[i], said), interpolation="nearest")
            below[2 + k].set_title(f"{100 * shown.right[k, i]:.1f} % right", fontsize=7)
        if notes:
            text = textwrap.fill(notes[i], 26)
            note = below[1].text(0, 0.98, text, transform=below[1].transAxes, va="top", fontsize=7)
            note.set_in_layout(False)
        if i == 0 and len(colours) <= _MOST_IN_LEGEND:
            _legend(below[0], shown.class_names or list(map(str, range(len(colours)))), colours)
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
    """Where an answer is wrong: red; light grey where it is right, grey where nothing counts."""
    picture = np.where((label == answer)[..., None], _RIGHT, _WRONG)
    return np.where((label < 0)[..., None], _UNCOUNTED, picture)


def _legend(axes: Any, names: Sequence[str], colours: Float[np.ndarray, "K 3"]) -> None:
    marks = [
        axes.scatter([], [], marker="s", s=18, color=colour, label=name)
        for name, colour in zip(names, colours, strict=False)
    ]
    legend = axes.legend(
        handles=marks, loc="upper left", ncols=2, fontsize=5.5, frameon=False, borderpad=0,
        handletextpad=0.2, columnspacing=0.6,
    )  # fmt: skip
    legend.set_in_layout(False)


def by_class(evaluation: Evaluation, class_names: Sequence[str] = ()) -> pd.DataFrame:
    """Each class's intersection over union in percent (rows) at each S (columns).

    Rows are called as `class_names` says, as `run.split().class_names`, or have their numbers.
    """
    if evaluation.counts is None:
        raise UserError("The evaluation is of one class for an image: look at its top-1.")
    if class_names and len(class_names) != len(evaluation.counts[0, 0]):
        raise UserError(
            f"class_names are {len(class_names)}, and the network has "
            f"{len(evaluation.counts[0, 0])} classes: name each once, or none."
        )
    columns = {
        scale: of_classes(counts.sum(axis=0))
        for scale, counts in zip(evaluation.scales, evaluation.counts, strict=True)
    }
    table = pd.DataFrame(columns, index=list(class_names) or None)
    return table.rename_axis(index="class", columns="scale")
