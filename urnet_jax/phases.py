"""What a training phase is: one description, which the step, the optimiser and evaluation read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run, with its own length, schedule and start.

    Attributes:
      name: of its section of the config.
      moves_gates: whether the gates' parameters and statistics are trained.
      moves_rest: whether all others are. What is not trained stays bit-identical.
      own_gates: whether the network's gates decide what runs; else everything runs, S is ignored,
        and the gates are not trained yet.
    """

    name: str
    moves_gates: bool
    moves_rest: bool
    own_gates: bool


PHASES: dict[str, Phase] = {
    phase.name: phase
    for phase in (
        Phase("pretrain", moves_gates=False, moves_rest=True, own_gates=False),
        Phase("gates", moves_gates=True, moves_rest=False, own_gates=True),
        Phase("joint", moves_gates=True, moves_rest=True, own_gates=True),
    )
}
"""By name, in the order that they run: the plain network, the gates alone, everything."""
