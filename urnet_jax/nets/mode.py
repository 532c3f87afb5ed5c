"""How a network is built and run: what is static. Without JAX, for commands and configs ask too."""

import dataclasses
from typing import Literal, NamedTuple, get_args

Execution = Literal["auto", "dense", "cond", "compact", "pieces", "filters"]
"""How units are run; the outputs are the same, to rounding.

`dense`: every unit for every sample, masked by the gates; the reference, and what training does.
`cond`: a unit is skipped where the whole batch skips it.
`compact`: the samples that run a unit are gathered, padded to the smallest of a few static
capacities, and scattered back.
`pieces`: the samples that run a unit are gathered in pieces of a few static sizes that add up to
them exactly, and scattered back.
`filters`: the samples that run a unit go through it one after another, each by the filters of the
channels that its gates leave open alone.
`auto`: what was fastest where it was measured, as `execution.choose` says.
"""

EXECUTIONS: tuple[str, ...] = get_args(Execution)

Statistics = Literal["running", "batch"]
"""What BatchNorm normalises with: its running statistics, or the batch's, which update those."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """What is the same for all samples of a call, and static.

    Attributes:
      batch_norm: of the network beside its gates. A phase that trains gates alone leaves it
        `running`.
      gates_batch_norm: of the gates, where they have any.
      straight_through: hard gates have the gradient of sigmoids.
      temperature: of those sigmoids, which it softens above 1; a step stays where it is.
      unroll: equal units run one after another instead of in a loop: that compiles longer, and its
        backward pass is many times faster on CPU.
      execution: how units are run.

    Raises:
      ValueError: `execution` is unknown, or skips units while the batch's statistics are asked for.
    """

    batch_norm: Statistics = "running"
    gates_batch_norm: Statistics = "running"
    straight_through: bool = False
    temperature: float = 1.0
    unroll: bool = False
    execution: Execution = "dense"

    def __post_init__(self) -> None:
        if self.execution not in EXECUTIONS:
            raise ValueError(
                f"execution is {self.execution!r}; expected one of {', '.join(EXECUTIONS)}."
            )
        if "batch" in (self.batch_norm, self.gates_batch_norm) and self.execution != "dense":
            raise ValueError(
                f"execution is {self.execution!r} with a batch's own statistics, to which every "
                "sample belongs: set it to 'dense'."
            )


class Build(NamedTuple):
    """What a network is built with besides its description.

    Attributes:
      dtype: of activations, `float32` or `bfloat16`; parameters and statistics are float32.
      precision: of multiplications: `highest` is the dtype's own; a backend's `default` may round
        float32 to bfloat16 (TPU) or TF32 (GPU), and `high` lies between.
      gate_bias: the initial bias of gate logits; positive: gates begin open.
    """

    dtype: str = "float32"
    precision: str = "highest"
    gate_bias: float = 0.5
