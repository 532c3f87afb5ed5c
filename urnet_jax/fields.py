"""The fields that a config has: what each may be."""

import dataclasses
import math
from typing import Any

from urnet_jax.data import datasets, records
from urnet_jax.phases import PHASES

_KIND_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a tuple of numbers",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field of a config may be; a tuple's range holds for each of its numbers."""

    kind: type  # bool, int, float, str, or tuple (of floats, or of ints where `whole`)
    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf  # like high, but itself out of range
    choices: tuple[str, ...] = ()
    empty: bool = True  # whether a tuple may be
    whole: bool = False  # whether a tuple's numbers have to be

    @property
    def expected(self) -> str:
        """For people: 'a number from 0 to 1'."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        name = _KIND_NAMES[self.kind]
        if self.kind is tuple and not self.empty:
            name = "a tuple of one or more numbers"
        if self.whole:
            name = "a tuple of whole numbers"
        if self.below < math.inf:
            return f"{name} from {self.low} to below {self.below}"
        if self.high < math.inf:
            return f"{name} from {self.low} to {self.high}"
        return f"{name} of at least {self.low}" if self.low > -math.inf else name

    def allows(self, value: Any) -> bool:
        if self.kind is tuple:
            each = dataclasses.replace(self, kind=int if self.whole else float)
            full = isinstance(value, tuple) and bool(value or self.empty)
            return full and all(map(each.allows, value))
        if self.kind in (bool, str):
            return type(value) is self.kind and (not self.choices or value in self.choices)
        # By type and not isinstance, since to Python a bool is an int.
        if type(value) is not int and not (self.kind is float and type(value) is float):
            return False
        return math.isfinite(value) and self.low <= value <= self.high and value < self.below


def _choice(*choices: str) -> Field:
    return Field(str, choices=choices)


_TEXT = Field(str)
_SWITCH = Field(bool)
_COUNT = Field(int, low=1)
_NOT_NEGATIVE = Field(float, low=0)
_SHARE = Field(float, low=0, high=1)

_PHASE = {
    "epochs": Field(float, low=0, high=1e5),
    "init_from": _TEXT,
    "learning_rate": _NOT_NEGATIVE,
    "final_learning_rate": _NOT_NEGATIVE,
    "schedule": _choice("cosine", "step", "constant"),
    "step_fractions": Field(tuple, low=0, high=1),
    "step_factor": _SHARE,
    "warmup_epochs": _NOT_NEGATIVE,
    "gate_optimizer": _choice("sgd", "adam"),
    "gate_learning_rate_factor": _NOT_NEGATIVE,
    "momentum": Field(float, low=0, below=1),
    "weight_decay": _NOT_NEGATIVE,
    "clip_norm": _NOT_NEGATIVE,
    "ema_decay": Field(float, low=0, below=1),
}

FIELDS: dict[str, Field] = {
    "seed": Field(int, low=0, high=2**32 - 1),
    "accumulate_steps": _COUNT,
    "data.name": _TEXT,
    "data.num_classes": Field(int, low=0),
    "data.dir": _TEXT,
    "data.image_size": _COUNT,
    "data.batch_size": _COUNT,
    "data.augment": _choice(*datasets.AUGMENTATIONS),
    "data.crop_padding": Field(int, low=0),
    "data.workers": Field(int, low=0),
    "data.threads": _COUNT,
    "data.unreadable": _choice(*records.UNREADABLE),
    "data.labels": _choice(*datasets.LABELS),
    "data.ignored_label": Field(int, low=-1, high=255),
    "data.eval_size": Field(tuple, low=1, whole=True),
    "model.kind": _TEXT,
    "model.family": _choice("cifar", "imagenet"),
    "model.depth": _COUNT,
    "model.width": _COUNT,
    "model.shortcut": _choice("A", "pool", "B"),
    "model.dtype": _choice("float32", "bfloat16"),
    "model.precision": _choice("highest", "high", "default"),
    "model.gated": _SWITCH,
    "model.gate_network": _choice("block", "external"),
    "model.gate_reduction": _COUNT,
    "model.gate_prior": _NOT_NEGATIVE,
    "model.gate_norm": _SWITCH,
    "model.gate_bias": Field(float),
    "model.scan": _choice("auto", "loop", "unroll"),
    "init.from": _TEXT,
    "init.head": _choice("kept", "new"),
    "gate.sigmoid_probability": _SHARE,
    "gate.draw": _choice("gate", "sample", "step"),
    "gate.straight_through": _SWITCH,
    "gate.noise": _SWITCH,
    "gate.temperature": Field(float, low=0.01, high=100),
    "gate.random_drop": _choice("never", "test", "always"),
    "scale.min": _SHARE,
    "scale.max": Field(float, low=0, high=2),
    "scale.draw": _choice("sample", "group", "step"),
    "scale.of": _choice("blocks", "flops"),
    "scale.schedule": _choice("ranged", "fixed", "anchors"),
    "scale.fixed": _SHARE,
    "scale.noise": _NOT_NEGATIVE,
    "scale.anchors": Field(tuple, low=0, high=1),
    "scale.jitter": _NOT_NEGATIVE,
    "scale.loss": _choice("sample", "group"),
    "scale.usage": _choice("gate", "step"),
    "scale.beta": _NOT_NEGATIVE,
    "scale.dual_rate": _NOT_NEGATIVE,
    "scale.guard": _NOT_NEGATIVE,
    "shaping.weight": _NOT_NEGATIVE,
    "shaping.alpha": Field(float, low=0.01, high=100),
    "shaping.beta": Field(float, low=0.01, high=100),
    "shaping.mean": _choice("prior", "scale"),
    "shaping.parts": _COUNT,
    "shaping.fades_by": _SHARE,
    "l0.weight": _NOT_NEGATIVE,
    "l0.begins": _SHARE,
    "l0.full": _SHARE,
    "distill.weight": _NOT_NEGATIVE,
    "distill.temperature": Field(float, low=0.1, high=100),
    "distill.cross_entropy": _NOT_NEGATIVE,
    "distill.fades_by": _SHARE,
    **{f"{phase}.{name}": known for phase in PHASES for name, known in _PHASE.items()},
    "eval.scales": Field(tuple, low=0, high=1, empty=False),
    "eval.every_epochs": _NOT_NEGATIVE,
    "eval.batch_size": _COUNT,
    "checkpoint.every_epochs": _NOT_NEGATIVE,
    "checkpoint.keep": _COUNT,
    "checkpoint.keep_best": Field(int, low=0),
    "log.every_steps": _COUNT,
    "log.tensorboard": _SWITCH,
}
"""Every field of a config by its dotted name; `configs/digits.py` says what each one means."""

LATER: dict[str, Any] = {
    "data.unreadable": "error",
    "data.labels": "class",
    "data.ignored_label": -1,
    "data.eval_size": (),
    "init.from": "",
    "init.head": "kept",
    "model.kind": "resnet",
    # Those runs were all on CPU, where the precisions are one.
    "model.precision": "highest",
    "model.gate_network": "block",
    "model.gate_prior": 0.0,
    "model.gate_norm": False,
    "model.gate_blocks": False,
    "gate.straight_through": False,
    "gate.noise": False,
    "gate.temperature": 1.0,
    "gate.random_drop": "never",
    "scale.usage": "gate",
    "scale.schedule": "ranged",
    "scale.fixed": 1.0,
    "scale.noise": 0.1,
    "scale.of": "blocks",
    "scale.anchors": (),
    "scale.jitter": 0.0,
    "scale.dual_rate": 0.0,
    "scale.guard": 0.0,
    "shaping.weight": 0.0,
    "shaping.alpha": 0.6,
    "shaping.beta": 0.4,
    "shaping.mean": "prior",
    "shaping.parts": 1,
    "shaping.fades_by": 0.0,
    "l0.weight": 0.0,
    "l0.begins": 0.0,
    "l0.full": 0.0,
    "distill.weight": 0.0,
    "distill.temperature": 2.0,
    "distill.cross_entropy": 1.0,
    "distill.fades_by": 0.0,
    **{f"{phase}.gate_optimizer": "sgd" for phase in PHASES},
}
"""Fields that came after the first configs, with what a config without them means."""
