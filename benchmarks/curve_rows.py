"""What `benchmarks/curve.py` trains: static networks, the resizable one, and it without a part."""

from typing import Any

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

STATIC = {"resnet8": (), "resnet20": (8, 14, 20), "resnet56": (20, 32, 44, 56)}
"""Depths of the static networks that a base is compared with, itself the last."""

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

CONFIG = "cifar10_resnet20"
"""What the resizable network is trained by; the static ones by its phase of the plain network."""

ONE_PASS: dict[str, Any] = {
    "distill.weight": 0.0,
    "scale.anchors": (*config_lib.load(CONFIG).scale.anchors, 1.0, 1.0),
}
"""Without a pass for the whole network, S = 1 is among the anchors."""

WITHOUT: dict[str, dict[str, Any]] = {
    "distillation": ONE_PASS,
    "prior": {"model.gate_prior": 0.0, "model.gate_bias": 0.5, "scale.guard": 0.0},
    "anchors": {
        "scale.schedule": "ranged", "scale.min": 0.15, "scale.max": 1.0, "scale.dual_rate": 0.0,
    },
    "controller": {"scale.dual_rate": 0.0},
    "guard": {"scale.guard": 0.0},
    "noise": {"gate.noise": False},
    "norm": {"model.gate_norm": False},
    "labels": {"distill.cross_entropy": 0.0},
    "softened answers": {"distill.temperature": 1.0},
    "jitter": {"scale.jitter": 0.0},
    # The prior is of FLOPs: to be compared with the row without a prior.
    "prior and FLOPs": {
        "model.gate_prior": 0.0, "model.gate_bias": 0.5, "scale.guard": 0.0, "scale.of": "blocks",
    },
}  # fmt: skip
"""Ingredients of the recipe by name, and the fields that leave one out."""

WITH: dict[str, dict[str, Any]] = {"averaged weights": {"joint.ema_decay": 0.999}}
"""What the recipe does not have, by name, and the fields that add it."""

CHANGED = {f"without {name}": fields for name, fields in WITHOUT.items()} | {
    f"with {name}": fields for name, fields in WITH.items()
}
"""The rows of the ablation."""


def depths(base: str) -> tuple[int, ...]:
    """Of the static networks for a base, as `resnet20`.

    Raises:
      UserError: it is no residual network.
    """
    if base in STATIC:
        return STATIC[base] or (8,)
    depth = base.removeprefix("resnet")
    if not depth.isdecimal() or int(depth) < 8 or (int(depth) - 2) % 6:
        raise UserError(f"--base is {base!r}; expected resnet20, resnet56 and so on.")
    third = (int(depth) - 2) // 6
    return tuple(6 * n + 2 for n in sorted({max(1, third * k // 3) for k in (1, 2, 3)}))
