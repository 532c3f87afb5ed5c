"""What `benchmarks/curve.py` trains: static networks, the resizable one, and it without a part."""

from typing import Any

from urnet_jax.errors import UserError

STATIC = {"resnet8": (), "resnet20": (8, 14, 20), "resnet56": (20, 32, 44, 56)}
"""Depths of the static networks that a base is compared with, itself the last."""

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

RECIPE: dict[str, Any] = {
    "model.gate_prior": 20.0,
    "model.gate_norm": True,
    "model.gate_bias": 0.0,
    "gate.sigmoid_probability": 0.0,
    "gate.straight_through": True,
    "gate.noise": True,
    "scale.of": "flops",
    "scale.schedule": "anchors",
    "scale.anchors": (0.2, 0.25, 0.3, 0.36, 0.44, 0.54, 0.66, 0.82),
    "scale.jitter": 0.02,
    "scale.draw": "group",
    "scale.loss": "group",
    "scale.usage": "step",
    "scale.beta": 32.0,
    "scale.dual_rate": 0.05,
    "scale.guard": 1.0,
    "distill.weight": 0.5,
    "distill.temperature": 2.0,
    "distill.cross_entropy": 0.5,
    "distill.fades_by": 0.0,
}
"""The recipe: fields in which the resizable network's config differs from that of its base."""

ONE_PASS: dict[str, Any] = {
    "distill.weight": 0.0,
    "scale.anchors": (*RECIPE["scale.anchors"], 1.0, 1.0),
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
}  # fmt: skip
"""Ingredients by name, and the fields that leave one out of the recipe."""


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
