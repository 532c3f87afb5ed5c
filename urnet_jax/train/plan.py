"""After which of its steps a phase is evaluated, and saved."""

import dataclasses

from urnet_jax.config import Config
from urnet_jax.train import optimizer


@dataclasses.dataclass(frozen=True)
class Plan:
    """After which steps of a phase its network is evaluated and saved."""

    num_steps: int
    eval_every: int  # 0: only at the end
    save_every: int  # likewise

    @classmethod
    def of(cls, config: Config, phase: str, steps_per_epoch: float) -> "Plan":
        epochs = config[phase].epochs, config.eval.every_epochs, config.checkpoint.every_epochs
        return cls(*(optimizer.num_steps(number, steps_per_epoch) for number in epochs))

    def evaluates(self, n: int) -> bool:
        return n >= self.num_steps or bool(self.eval_every and n % self.eval_every == 0)

    def saves(self, n: int) -> bool:
        return n >= self.num_steps or bool(self.save_every and n % self.save_every == 0)
