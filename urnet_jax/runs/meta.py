"""What a checkpoint says of itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.phases import PHASES

Score: TypeAlias = tuple[int, float]

FOLDER = "checkpoints"
"""Of a run's workdir; it holds a folder for each step."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
      step: training steps taken over all phases, and batches taken from the input.
      phase: the phase that the state belongs to.
      phase_step: steps taken in it.
      phase_steps: steps that the phase has in all.
      steps_per_epoch: training steps of one epoch.
      config: the run's config.
      top1_percent: top-1, or mIoU where labels are maps, the mean over the scales of the evaluation
        at this step; None where there was none.
      class_names: what the classes are called, in order; empty where they have numbers only.
    """

    step: int
    phase: str
    phase_step: int
    phase_steps: int
    steps_per_epoch: float
    config: Config
    top1_percent: float | None = None
    class_names: tuple[str, ...] = ()

    @property
    def score(self) -> Score | None:
        """What orders checkpoints that were evaluated: a later phase, then a higher top-1.

        Phases are evaluated at other scales, and their top-1 does not compare.
        """
        if self.top1_percent is None:
            return None
        return list(PHASES).index(self.phase), self.top1_percent

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"config": config_lib.to_json(self.config)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Meta":
        """Undoes `to_json`.

        Raises:
          AttributeError, KeyError, TypeError or ValueError: `saved` is of another form.
        """
        config, names = config_lib.from_json(saved["config"]), saved.get("class_names", ())
        meta = cls(**{**saved, "config": config, "class_names": tuple(names)})
        config_lib.architecture(meta.config)
        if meta.phase not in PHASES:
            raise ValueError(f"its phase is {meta.phase!r}")
        return meta
