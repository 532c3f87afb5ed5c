"""A finished run: its network, with the data that it was trained for."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh
from matplotlib.figure import Figure

from urnet_jax.config import Config, architecture, skips
from urnet_jax.data import splits
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import Split, examples
from urnet_jax.errors import UserError
from urnet_jax.evaluate import plots
from urnet_jax.evaluate.evaluation import Evaluation, Offset, evaluate
from urnet_jax.evaluate.gate_tables import gate_table
from urnet_jax.evaluate.step import EvalStep, make_eval_step
from urnet_jax.nets.contract import Description
from urnet_jax.nets.labels import labels_of
from urnet_jax.nets.network import Tree
from urnet_jax.phases import PHASES
from urnet_jax.runs import calibration
from urnet_jax.runs.calibration import Calibration
from urnet_jax.runs.load import load_network
from urnet_jax.runs.meta import Meta
from urnet_jax.xla import sharding

SWEEP = tuple(np.round(np.linspace(0, 1, 21), 2).tolist())
"""Scales at which a sweep looks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A network as a run left it, and the data that it was trained for.

    Attributes:
      meta: of the checkpoint, the run's config included.
      params: the network's parameters.
      batch_stats: BatchNorm's running statistics.
      calibration: of the checkpoint, if it has one: by it S is the share of FLOPs that is used.
    """

    meta: Meta
    params: Tree
    batch_stats: Tree
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        # Without it a cell that ends with a run would print every weight.
        return f"Run({self.arch.describe()}, step {self.meta.step}, phase {self.meta.phase})"

    @property
    def config(self) -> Config:
        return self.meta.config

    @property
    def arch(self) -> Description:
        return architecture(self.config)

    @property
    def has_trained_gates(self) -> bool:
        """Whether gates that have been trained decide which blocks run."""
        own_gates = self.arch.gated and PHASES[self.meta.phase].own_gates
        return own_gates and self.config.gate.random_drop == "never"

    @property
    def offset(self) -> Offset | None:
        """What its calibration adds to the gates' logits at each S."""
        return None if self.calibration is None else self.calibration.offset

    def split(self, name: str = "test") -> Split:
        """The split `train` or `test`; a UserError where its data is not in `data.dir`."""
        return open_split(self.config.data, name)

    def subset(self, count: int, split: str | Split = "test") -> Split:
        """`count` examples spread evenly over a split, for a quick look, or all if it has no more.

        Raises:
          UserError: `count` is not positive.
        """
        split = self.split(split) if isinstance(split, str) else split
        if count < 1:
            raise UserError(f"The subset was given {count} examples; expected 1 or more.")
        if count >= split.num_examples:
            return split
        chosen = np.linspace(0, split.num_examples - 1, count).round().astype(int)
        return splits.take(split, chosen)

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """All devices of this process, which share each batch; None where there is but one."""
        devices = sharding.in_order(jax.local_devices())
        return Mesh(devices, ("data",)) if len(devices) > 1 else None

    @functools.cached_property
    def variables(self) -> tuple[Tree, Tree]:
        """`params` and `batch_stats`, on each of those devices."""
        held = self.params, self.batch_stats
        return held if self.mesh is None else sharding.replicate(held, self.mesh)

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        """The evaluation of a batch, compiled once."""
        # Kept, for its compilation takes longer than a few thousand small images.
        return make_eval_step(self.config, self.meta.phase, mesh=self.mesh)

    def evaluate(
        self, scales: Sequence[float] | None = None, split: str | Split = "test"
    ) -> Evaluation:
        """What the network did with each example at each scale, the gates' logits included.

        Args:
          scales: by default the config's `eval.scales`.
          split: by its name, or opened.
        """
        split = self.split(split) if isinstance(split, str) else split
        grid = self.config.eval.scales if scales is None else scales
        size = min(self.config.eval.batch_size, split.num_examples)
        return evaluate(
            self.eval_step, *self.variables, split, self.config, grid, size,
            progress=False, mesh=self.mesh, offset=self.offset,
        )  # fmt: skip

    def gates(
        self, scales: Sequence[float] | None = None, split: str | Split = "test"
    ) -> pd.DataFrame:
        """`gate_table` of `evaluate`; a UserError where nothing is ever skipped."""
        if not skips(self.config, self.meta.phase):
            raise UserError(
                f"The {self.arch.describe()} after phase {self.meta.phase} has no trained gates to "
                "look into: look at what run.evaluate gives."
            )
        return gate_table(self.evaluate(scales, split))

    def sweep(
        self, sample: int, scales: Sequence[float] = SWEEP, split: str | Split = "test"
    ) -> pd.DataFrame:
        """The gates of one example as S goes from one end to the other, as `gate_table` gives them.

        Args:
          sample: its number in the whole split, also where `split` is a subset.
          scales: by default from 0 to 1 by 0.05.
          split: by its name, or opened.

        Raises:
          UserError: the split has no such example.
        """
        split = self.split(split) if isinstance(split, str) else split
        return self.gates(scales, splits.take(split, splits.places(split, np.array([sample]))))

    def plot_samples(
        self, table: pd.DataFrame, split: str | Split = "test", columns: int = 8
    ) -> Figure:
        """The images of the rows of `samples` or of a choice of them, in order, with captions.

        These say the class, the prediction where it is wrong, and the blocks used.
        """
        if labels_of(self.arch) == "map":
            raise UserError(
                f"The {self.arch.describe()} says a class for each pixel: look at its images with "
                "evaluate.maps.plot."
            )
        split = self.split(split) if isinstance(split, str) else split
        images, _ = examples(split, splits.places(split, table["sample"].to_numpy()))
        rows: Any = table.itertuples()
        captions = [
            f"#{row.sample}: class {row.label}"
            + ("" if row.correct else f", said {row.prediction}")
            + f"\n{row.blocks} blocks"
            for row in rows
        ]
        if "prediction_at_less" in table:
            said = table["prediction_at_less"]
            captions = [
                f"{c}\nsaid {p} at the lower S" for c, p in zip(captions, said, strict=True)
            ]
        return plots.plot_images(images, captions, columns)


def load(
    workdir: epath.PathLike, which: Literal["newest", "best"] | int = "newest",
    data_dir: str = "", *, calibrated: bool = True,
) -> Run:  # fmt: skip
    """A run's network.

    Args:
      workdir: of the run; nothing else is needed, but the data where the network is to see some.
      which: its checkpoint, see `load.load_network`.
      data_dir: where the dataset lies now; by default where the config says.
      calibrated: uses the checkpoint's calibration, if it has one.

    Raises:
      UserError: the workdir holds no such checkpoint, the network says a class for the whole image
        and has no trained gates, or its blocks are dropped at random.
    """
    meta, params, batch_stats = load_network(workdir, which)
    if meta.config.gate.random_drop != "never":
        raise UserError(
            f"In {workdir} chance decides which blocks of the network run (gate.random_drop) and "
            "says nothing of a sample: look at what evaluate.py shows, top-1 and usage."
        )
    if data_dir:
        meta.config.data.dir = data_dir
    held = calibration.read(workdir, meta.step) if calibrated else None
    run = Run(meta, params, batch_stats, held)
    if labels_of(run.arch) != "map":  # Of which there is more to see than gates.
        check_gates(run, workdir)
    return run


def check_gates(run: Run, workdir: epath.PathLike) -> None:
    """Raises a UserError where a run's network has no trained gates."""
    arch, meta = run.arch, run.meta
    if not (arch.gated and PHASES[meta.phase].own_gates):
        kind = "of phase pretrain" if arch.gated else "of a plain network"
        raise UserError(
            f"The checkpoint of step {meta.step} in {workdir} is {kind}, which has no trained "
            "gates to look into: name the workdir of a run that has trained some."
        )
