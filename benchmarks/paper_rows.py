"""What `benchmarks/paper.py` trains: the rows of the paper's table 1, its figures, open choices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs.table1 import ROWS as TABLE1
from urnet_jax.errors import UserError

BASE = "base"
"""The plain network that every row begins with."""

PLAIN = "random_drop_test"
"""The row that, at S = 1, is the plain network trained as long as the others."""

SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)

DATA: dict[str, dict[str, Any]] = {
    "cifar10": {},
    "cifar100": {"data.name": "cifar100"},
    "digits": {"data.name": "digits", "data.image_size": 8, "data.augment": "crop",
               "data.crop_padding": 1, "data.batch_size": 64, "eval.batch_size": 360},
}  # fmt: skip
"""Datasets, with the fields that they need; the digits, which need no download, to try it out."""

SHORT = {
    "joint.schedule": "cosine",
    "joint.learning_rate": 0.05,
    "joint.final_learning_rate": 0.0,
    "joint.warmup_epochs": 0.25,
    "joint.clip_norm": 1.0,
    "joint.weight_decay": 5e-4,
    "gates.learning_rate": 0.1,
    "gates.clip_norm": 1.0,
    # Adam with 3e-3, then 2e-3: the scale loss reaches each of N gates divided by N, too little for
    # the backbone's rate, and SGD with a larger one leaves hidden units dead.
    "gates.gate_optimizer": "adam",
    "gates.gate_learning_rate_factor": 0.03,
    "joint.gate_optimizer": "adam",
    "joint.gate_learning_rate_factor": 0.04,
}
"""Rates of a schedule of few epochs, the same for all rows; the paper's (1e-3 to 1e-5) are meant
for 500 epochs and would not move a gate in three."""

SHORT_BASE = {
    "pretrain.schedule": "cosine",
    "pretrain.learning_rate": 0.02,
    "pretrain.warmup_epochs": 0.25,
    "pretrain.weight_decay": 5e-4,
    "pretrain.clip_norm": 1.0,
}
"""Rates with which a network that is trained already is tuned on other data."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One network: a row of table 1 with some fields changed.

    Attributes:
      table1: the row's name in `configs/table1.py`.
      fields: what it changes.
    """

    table1: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _urnet(**fields: Any) -> Row:
    return _changed("urnet", fields)


def _ours(**fields: Any) -> Row:
    return _changed("ours", fields)


def _changed(table1: str, fields: Mapping[str, Any]) -> Row:
    return Row(table1, {name.replace("__", "."): value for name, value in fields.items()})


BY_SGD = {
    "gates__gate_optimizer": "sgd",
    "gates__gate_learning_rate_factor": 1.0,
    "joint__gate_optimizer": "sgd",
    "joint__gate_learning_rate_factor": 20.0,
}
"""Gates learn by the backbone's optimiser, at a rate of which SGD does not leave them dead."""

SETS: dict[str, dict[str, Row]] = {
    "table1": {name: Row(name) for name in TABLE1},
    # beta = 2 is the row urnet.
    "figure5": {f"beta_{beta}": _urnet(scale__beta=float(beta)) for beta in (1, 4, 8)},
    "figure8": {
        f"fixed_{scale:g}": _urnet(
            scale__schedule="fixed", scale__fixed=scale, eval__scales=(scale,)
        )
        for scale in (0.2, 0.4, 0.6, 0.8)
    },
    # Each differs from the row urnet in one choice that the paper leaves open, or in the seed: what
    # that changes is chance.
    "choices": {
        "p_per_sample": _urnet(gate__draw="sample"),
        "p_per_step": _urnet(gate__draw="step"),
        "loss_per_batch": _urnet(scale__loss="group"),
        "scale_per_sample": _urnet(scale__draw="sample"),
        "bias_0": _urnet(model__gate_bias=0.0),
        "bias_2": _urnet(model__gate_bias=2.0),
        "gates_by_sgd": _urnet(**BY_SGD),
        "loss_of_steps": _urnet(scale__usage="step"),
        "straight_through": _urnet(gate__straight_through=True, gate__sigmoid_probability=0.0),
        "seed_1": _urnet(seed=1),
        "seed_2": _urnet(seed=2),
    },
    # Each changes one thing of the row ours, or the seed.
    "ablation": {
        "ours_p_0.1": _ours(gate__sigmoid_probability=0.1),
        "ours_by_sample": _ours(scale__draw="sample", scale__loss="sample"),
        "ours_scale_to_1": _ours(scale__min=0.2, scale__max=1.0),
        "ours_loss_of_gates": _ours(scale__usage="gate"),
        "ours_beta_8": _ours(scale__beta=8.0),
        "ours_noise": _ours(gate__noise=True),
        "ours_by_sgd": _ours(**BY_SGD),
        "ours_seed_1": _ours(seed=1),
        "ours_seed_2": _ours(seed=2),
    },
}
"""Sets of rows, by the part of the paper that they make again; `choices` it leaves open, and
`ablation` is of our own recipe."""

BESIDE = {"figure5": "urnet", "figure8": "urnet", "choices": "urnet", "ablation": "ours"}
"""The row of table 1 that a set is compared with, and that comes with it."""


def chosen(names: str) -> dict[str, Row]:
    """The rows of a list of sets and rows, separated by commas, each once, in that order.

    A set comes with the row that it is compared with.

    Raises:
      UserError: one of them is neither.
    """
    every = {name: row for rows in SETS.values() for name, row in rows.items()}
    found: dict[str, Row] = {}
    for name in map(str.strip, names.split(",")):
        if name not in SETS and name not in every:
            raise UserError(
                f"--rows holds {name!r}; expected sets ({', '.join(SETS)}) or rows "
                f"({', '.join(every)}), separated by commas."
            )
        beside = {BESIDE[name]: every[BESIDE[name]]} if name in BESIDE else {}
        found |= beside | (SETS.get(name) or {name: every[name]})
    return found
