"""A trained network as an application calls it: pixels in, classes out, at any S.

predictor = urnet_jax.load("runs/mine")
answer = predictor(images, scale=0.5)
answer.classes, answer.flops
"""

import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float32, Float64, Int

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.nets.contract import Description
from urnet_jax.nets.cost import flops_per_sample, sides
from urnet_jax.nets.mode import Execution
from urnet_jax.runs import bundle as bundle_lib
from urnet_jax.runs.bundle import Bundle
from urnet_jax.serve import budgets, pixels
from urnet_jax.serve.step import CLOSED, Answer, compile_step
from urnet_jax.xla import sharding

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""For which a predictor compiles. A batch is padded to the next, and what pads it skips every
block; a larger one is answered in parts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a network said of n images.

    Attributes:
      classes: the likeliest class of each.
      probabilities: of each of K classes.
      gates: of G gates in network order: 1 where the image used what is gated, else 0.
      flops: of each image.
      scale: the S that each was given; 1 for a network whose gates do not see it.
    """

    classes: Int[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n K"]
    gates: Float32[np.ndarray, "n G"]
    flops: Float64[np.ndarray, " n"]
    scale: Float32[np.ndarray, " n"]

    def split(self, rows: Sequence[int]) -> list["Prediction"]:
        """Its parts of so many images each, in order."""
        ends = [0, *itertools.accumulate(rows)]
        whole = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return [
            Prediction(*(values[start:end] for values in whole))
            for start, end in itertools.pairwise(ends)
        ]


class Predictor:
    """Answers for batches of any size, each image at its own S; safe to call from many threads."""

    def __init__(
        self, bundle: Bundle, *, batch_sizes: Sequence[int] = BATCH_SIZES,
        execution: Execution = "auto", devices: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        """Compiles nothing yet.

        Args:
          bundle: the network.
          batch_sizes: for which it is compiled; several devices share a batch, so that each is
            rounded up to a multiple of their number.
          execution: how gated blocks are run; all give the same answers, to rounding.
          devices: that share each batch; by default all of this process.

        Raises:
          UserError: a batch size is not positive, chance decides which blocks run, or the network
            says a class for each pixel.
        """
        self.bundle = bundle
        self._execution: Execution = execution
        bundle_lib.check_served(self.arch)
        if self.config.gate.random_drop != "never":
            raise UserError(
                "In this network chance decides which blocks run (gate.random_drop), so that it "
                "has no S to serve: train one without."
            )
        if not batch_sizes or min(batch_sizes) < 1:
            raise UserError(f"batch_sizes is {tuple(batch_sizes)}; expected numbers from 1 up.")
        found = sharding.in_order(devices or jax.local_devices())
        self._mesh = Mesh(found, ("data",)) if len(found) > 1 else None
        self.batch_sizes = tuple(sorted({-(-n // len(found)) * len(found) for n in batch_sizes}))
        held = bundle.params, bundle.batch_stats
        self._variables: Any = (
            jax.device_put(held, found[0])
            if self._mesh is None
            else sharding.replicate(held, self._mesh)
        )
        self._compiled: dict[int, Callable[..., Answer]] = {}
        self._compiling = threading.Lock()

    def __repr__(self) -> str:
        return f"Predictor({self.arch.describe()}, step {self.bundle.meta.step})"

    @property
    def config(self) -> Config:
        return self.bundle.meta.config

    @functools.cached_property
    def arch(self) -> Description:
        return config_lib.architecture(self.config)

    @property
    def heeds_scale(self) -> bool:
        """Whether the network does less for a smaller S."""
        return config_lib.heeds_scale(self.config, self.bundle.meta.phase)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return *sides(self.arch.image_size), self.arch.image_channels

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, in order; empty where the data has numbers only."""
        return self.bundle.meta.class_names

    @property
    def full_flops(self) -> float:
        """FLOPs of an image that uses the whole network."""
        return 2.0 * self.arch.cost.full_macs

    @property
    def compilations(self) -> int:
        """How many programs it has compiled; under load that number stays what it is."""
        return len(self._compiled)

    def warm_up(self, batch_sizes: Sequence[int] | None = None) -> float:
        """Compiles for these batch sizes, by default for all, and runs each once; the seconds."""
        start = time.monotonic()
        for size in self.batch_sizes if batch_sizes is None else batch_sizes:
            blank = np.zeros((self._padded(size), *self.image_shape), np.uint8)
            self(blank)
        return time.monotonic() - start

    def __call__(
        self, images: Any, *, scale: Any = None, flops: Any = None, latency_ms: Any = None
    ) -> Prediction:
        """Classifies images. With none of the three budgets the whole network runs, S = 1.

        Args:
          images: [n, H, W, C], pixels of 0 to 255, as uint8 or floating point.
          scale: S from 0 to 1, one for all images or one for each.
          flops: the share of the network's FLOPs, from 0 to 1, that images may use in the mean,
            one for all or one for each; that needs a calibration.
          latency_ms: what the whole call may take; that needs a profile of this device. Of one for
            each image the least counts.

        Raises:
          UserError: images of another shape or type, or that are not numbers; an S or a share
            outside of [0, 1]; two budgets at once; a budget that cannot be met, or a network that
            does not know S.
        """
        checked = pixels.check(images, self.image_shape)
        asked = budgets.Asked(scale, flops, latency_ms)
        scales = budgets.scales(self, asked, len(checked))
        return self.predict(checked, scales)

    def predict(
        self, images: Float32[np.ndarray, "n H W C"], scale: Float32[np.ndarray, " n"]
    ) -> Prediction:
        """As a call, for images and S that are known to be right."""
        largest = self.batch_sizes[-1]
        parts = [
            self._of_batch(images[start : start + largest], scale[start : start + largest])
            for start in range(0, max(1, len(images)), largest)
        ]
        answer = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        flops = flops_per_sample(self.arch, answer["gates"])
        used = scale if self.heeds_scale else np.ones_like(scale)
        return Prediction(**answer, flops=np.asarray(flops, np.float64), scale=used)

    def _of_batch(self, images: np.ndarray, scale: np.ndarray) -> Answer:
        """The answers for at most as many images as the largest batch has."""
        count = len(images)
        size = self._padded(count)
        calibration = self.bundle.calibration
        offset = np.full(size, CLOSED, np.float32)
        offset[:count] = 0.0 if calibration is None else calibration.offset(scale)
        padding = size - count
        answer = self._step(size)(
            np.concatenate([images, np.zeros((padding, *self.image_shape), np.float32)]),
            np.concatenate([scale, np.zeros(padding, np.float32)]),
            offset,
        )
        return {name: np.asarray(values)[:count] for name, values in answer.items()}

    def _padded(self, count: int) -> int:
        """The batch size for so many images; the largest where none has room for them."""
        return next((n for n in self.batch_sizes if n >= count), self.batch_sizes[-1])

    def _step(self, size: int) -> Callable[..., Answer]:
        """The program for a batch size; whoever comes first compiles it, and others wait."""
        if size not in self._compiled:
            with self._compiling:
                if size not in self._compiled:
                    self._compiled[size] = compile_step(
                        self.config, self.bundle.meta.phase, self._variables, size,
                        self._execution, self._mesh,
                    )  # fmt: skip
        return self._compiled[size]


def load(
    path: epath.PathLike, which: Literal["newest", "best"] | int = "newest", *,
    keep_compiled: bool = False, **options: Any,
) -> Predictor:  # fmt: skip
    """See `urnet_jax.load`."""
    if keep_compiled:
        from urnet_jax.xla import cache

        cache.keep_compiled()
    return Predictor(open_network(path, which), **options)


def open_network(path: epath.PathLike, which: Literal["newest", "best"] | int = "newest") -> Bundle:
    """The network of a bundle, or of a run's checkpoint.

    Raises:
      UserError: the path holds neither, or another checkpoint than a bundle's is asked for.
    """
    if bundle_lib.is_bundle(path):
        if which != "newest":
            raise UserError(f"{path} is a bundle, which holds one network: leave `which` out.")
        return bundle_lib.read(path)
    from urnet_jax.runs import export  # Orbax is needed from here on, and for no bundle.

    return export.bundle_of(path, which)
