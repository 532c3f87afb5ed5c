"""Exact evaluation over a grid of S: every example once for each S."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float64, Int, UInt8
from tqdm import tqdm

from urnet_jax.config import Config, evaluated, heeds_scale
from urnet_jax.data.batches import eval_batches
from urnet_jax.data.splits import Split
from urnet_jax.errors import UserError
from urnet_jax.nets import network
from urnet_jax.nets.contract import Description
from urnet_jax.nets.cost import flops_per_sample
from urnet_jax.nets.labels import labels_of
from urnet_jax.nets.tasks import PIXELS, Measure
from urnet_jax.xla import sharding

Offset = Callable[[float], Any]
"""f(S) -> what is added to the logits of all gates, a number, or of each, [G]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network did on each of n examples at each of k scales.

    Attributes:
      arch: the network, for images of the size that it was evaluated at; it has N blocks.
      scales: S, ascending; one that does not heed S has the one entry 1.
      index: each example's number in its split.
      labels: each example's class; -1 where labels are maps, which are too large to keep.
      predictions: the class of the largest logit; likewise.
      loss: cross entropy, in nats.
      gates: 1 where the sample used the block, else 0; blocks in network order.
      flops: of each sample: its blocks, all gates, stem and head.
      gate_logits: what the gates were made of, 0 and above open; None where they were not asked
        for, or the network has none.
      correct: what the task says of each prediction; None: whether it is the label.
      counts: what the task's measure is made of, see `Task.counts`; None: whether it is right.
    """

    arch: Description
    scales: tuple[float, ...]
    index: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    predictions: Int[np.ndarray, "k n"]
    loss: Float[np.ndarray, "k n"]
    gates: UInt8[np.ndarray, "k n N"]
    flops: Float64[np.ndarray, "k n"]
    gate_logits: Float[np.ndarray, "k n N"] | None = None
    correct: Bool[np.ndarray, "k n"] | Float[np.ndarray, "k n"] | None = None
    counts: Int[np.ndarray, "k n ..."] | None = None

    @property
    def right(self) -> Bool[np.ndarray, "k n"] | Float[np.ndarray, "k n"]:
        """Whether an example was right, as its task says, or which share of its pixels."""
        return self.predictions == self.labels if self.correct is None else self.correct

    @property
    def measure(self) -> Measure:
        """What says how good the network is: top-1, or what its task has in its place."""
        return network.task(self.arch).measure

    @property
    def measured(self) -> Float[np.ndarray, " k"]:
        """The measure in percent, at each S."""
        if self.counts is None:
            return 100 * self.right.mean(axis=1)
        task = network.task(self.arch)
        return np.array([task.score(of_scale.sum(axis=0)) for of_scale in self.counts], float)

    @property
    def num_gates(self) -> int:
        """N, the number of gates."""
        return self.gates.shape[2]

    @property
    def gate_groups(self) -> list[tuple[str, int]]:
        """Names of the parts of the network, in order, and how many gates each has."""
        return list(self.arch.gate_groups)

    @property
    def full_flops(self) -> float:
        """FLOPs of a sample that uses every block, gates included."""
        return 2.0 * self.arch.cost.full_macs


def check_scales(scales: Iterable[float]) -> tuple[float, ...]:
    """The grid of S, sorted and without repeats.

    Raises:
      UserError: the grid is empty or holds something else than numbers from 0 to 1.
    """
    grid = sorted({float(scale) for scale in scales})
    wrong = [scale for scale in grid if not 0.0 <= scale <= 1.0]
    if wrong or not grid:
        found = f"the scale {wrong[0]:g}" if wrong else "no scale"
        raise UserError(
            f"The evaluation was given {found}; expected numbers from 0 to 1, as in "
            "--scales=0.2,0.5,1.0."
        )
    return tuple(grid)


def evaluate(
    eval_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    batch_stats: Any,
    split: Split,
    config: Config,
    scales: Iterable[float],
    batch_size: int,
    progress: bool = True,
    mesh: Mesh | None = None,
    offset: Offset | None = None,
) -> Evaluation:
    """Runs every example of the split exactly once for each S.

    All processes of a run call it together, and get the same.

    Args:
      eval_step: of `evaluate.step.make_eval_step`.
      params: that `eval_step` takes.
      batch_stats: that `eval_step` takes.
      split: of `open_split`.
      config: the run's config, which describes the data and the network.
      scales: the grid of S, in any order. A network that does not heed S is evaluated once, at 1.
      batch_size: samples per step, at least, which the results do not depend on: what is missing
        to a multiple of the number of devices, and to a whole last batch, is padding.
      progress: shows a progress bar on stderr if that is a terminal.
      mesh: that `eval_step` was made for.
      offset: what is added to the gates' logits at each S, as `Calibration.offset` gives it.

    Raises:
      UserError: a scale is not in [0, 1].
    """
    grid = check_scales(scales) if heeds_scale(config) else (1.0,)
    mesh = mesh or Mesh(jax.local_devices()[:1], ("data",))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    step = functools.partial(eval_step, params, batch_stats)
    results = _dispatched(step, split, config, grid, batch_size, mesh, offset)
    kept = (
        "prediction", "correct", "counts", "loss", "gates", "label", "gate_logits", "read",
    )  # fmt: skip
    parts = [{name: [] for name in kept} for _ in grid]
    total, hidden = split.num_examples * len(grid), None if progress else True
    with tqdm(total=total, desc="evaluate", unit="img", disable=hidden, leave=False) as bar:
        for k, examples, result in _one_behind(results):
            for name in result.keys() & set(kept):
                parts[k][name].append(np.asarray(result[name])[:examples])
            bar.update(examples)
    return _evaluation(evaluated(config), grid, split, parts)


def _evaluation(
    of_size: Description, grid: tuple[float, ...], split: Split,
    parts: list[dict[str, list[np.ndarray]]],
) -> Evaluation:  # fmt: skip
    """What the batches gave, by S, joined; without the images that cannot be decoded."""
    held = [name for name in parts[0] if parts[0][name]]
    rows = {name: np.stack([np.concatenate(part[name]) for part in parts]) for name in held}
    # An image that cannot be decoded has the label -1.
    read = rows["read"][0]
    if not read.any():
        raise UserError(f"No image of the split {split.title!r} can be decoded and has a label.")
    rows = {name: values[:, read] for name, values in rows.items()}
    numbers = np.arange(split.num_examples) if split.numbers is None else split.numbers
    return Evaluation(
        arch=of_size,
        scales=grid,
        index=numbers[read],
        labels=rows["label"][0] if "label" in rows else np.full(read.sum(), -1),
        predictions=rows.get("prediction", np.full(rows["loss"].shape, -1)),
        loss=rows["loss"],
        gates=(rows["gates"] > 0).astype(np.uint8),
        flops=np.stack([flops_per_sample(of_size, g) for g in rows["gates"]]).astype(np.float64),
        gate_logits=rows.get("gate_logits"),
        correct=rows["correct"],
        counts=rows["counts"],
    )


def _dispatched(
    step: Callable[..., dict[str, jax.Array]], split: Split, config: Config,
    grid: tuple[float, ...], batch_size: int, mesh: Mesh, offset: Offset | None,
) -> Iterator[tuple[int, int, dict[str, jax.Array]]]:  # fmt: skip
    """What `step` gives for each batch at each S: place of S in the grid, examples, results."""
    _, hosts = _place(mesh)
    requests = []
    for scale in grid:
        of_all = {"scale": scale, "offset": 0.0 if offset is None else offset(scale)}
        local = {
            name: np.tile(
                np.asarray(value, np.float32), (batch_size // hosts, *[1] * np.ndim(value))
            )
            for name, value in of_all.items()
        }
        requests.append(sharding.global_batch(local, mesh))
    # Batches are outermost, so that each is read and decoded once for all S.
    for first, inputs in _inputs(split, config, batch_size, mesh):
        for k, request in enumerate(requests):
            result = step(
                inputs["image"], inputs["label"], request["scale"], inputs["index"],
                offset=request["offset"],
            )  # fmt: skip
            yield k, min(batch_size, split.num_examples - first), result


def _place(mesh: Mesh) -> tuple[int, int]:
    """Which of the mesh's hosts this is, and how many those are."""
    hosts = len({device.process_index for device in mesh.devices.flat})
    return jax.process_index() if hosts > 1 else 0, hosts


def _inputs(
    split: Split, config: Config, batch_size: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """The split's batches, in order and on the mesh, each with the place of its first example."""
    host, hosts = _place(mesh)
    local_size = batch_size // hosts
    batches = eval_batches(split, config.data, batch_size, host, hosts)
    for first, batch in zip(range(0, split.num_examples, batch_size), batches, strict=True):
        own = np.arange(local_size) + first + host * local_size
        if not np.array_equal(batch["index"], np.where(own < split.num_examples, own, -1)):
            raise RuntimeError("The input did not deliver every example in order: a defect.")
        inputs = {name: batch[name] for name in ("image", "label", "index")}
        if split.numbers is not None:
            numbers = split.numbers[np.minimum(own, split.num_examples - 1)]
            inputs["index"] = np.where(batch["index"] < 0, -1, numbers).astype(np.int32)
        yield first, sharding.global_batch(inputs, mesh)


def _one_behind(results: Iterator[Any]) -> Iterator[Any]:
    """Yields each result only once the next is dispatched, so that the device never waits."""
    previous = next(results, None)
    for result in results:
        yield previous
        previous = result
    if previous is not None:
        yield previous


def summarize(evaluation: Evaluation) -> pd.DataFrame:
    """One row for every S, with the units in the columns' names.

    Means and standard deviations (of the population) are over samples. `blocks_*` count the
    residual blocks that a sample used of `blocks_total`; `usage_mean` is their share. `flops_share`
    is `flops_mean` as a share of `flops_full`, the network with every block used. `distinct_paths`
    counts the different sets of blocks that samples used. Where labels are maps, `miou_percent`
    takes the place of `top1_percent`, and `pixels_right_percent`, the mean over images, that of
    `correct`.
    """
    total, full, right = evaluation.num_gates, evaluation.full_flops, evaluation.right
    of_samples: dict[str, Any] = {evaluation.measure.column: evaluation.measured}
    if labels_of(evaluation.arch) == "map":
        of_samples |= {PIXELS.column: 100 * right.mean(axis=1, dtype=np.float64)}
    else:
        of_samples = {"correct": right.sum(axis=1)} | of_samples
    blocks, flops = evaluation.gates.sum(axis=2, dtype=np.int64), evaluation.flops
    return pd.DataFrame(
        {
            "scale": evaluation.scales,
            "examples": len(evaluation.index),
            **of_samples,
            "loss_mean": evaluation.loss.mean(axis=1, dtype=np.float64),
            "blocks_mean": blocks.mean(axis=1),
            "blocks_std": blocks.std(axis=1),
            "blocks_min": blocks.min(axis=1),
            "blocks_max": blocks.max(axis=1),
            "blocks_total": total,
            "usage_mean": blocks.mean(axis=1) / total,
            "flops_mean": flops.mean(axis=1),
            "flops_std": flops.std(axis=1),
            "flops_full": full,
            "flops_share": flops.mean(axis=1) / full,
            "distinct_paths": [len(np.unique(paths, axis=0)) for paths in evaluation.gates],
        }
    )
