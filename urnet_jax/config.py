"""What a config may hold: its fields, their ranges, and how configs are loaded and kept."""

import dataclasses
import difflib
import importlib.resources
import json
import math
import pathlib
from importlib.resources.abc import Traversable
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from urnet_jax import sources
from urnet_jax.architecture import Architecture
from urnet_jax.errors import UserError

Config: TypeAlias = Any
"""An `ml_collections.ConfigDict`; from its source, checkers infer a type without sections."""

PHASES = ("pretrain", "gates", "joint")
"""In the order they run: the plain network, the gates alone, everything."""


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

    kind: type  # bool, int, float, str, or tuple (of floats)
    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf  # like high, but itself out of range
    choices: tuple[str, ...] = ()
    empty: bool = True  # whether a tuple may be

    @property
    def expected(self) -> str:
        """For people: 'a number from 0 to 1'."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        name = _KIND_NAMES[self.kind]
        if self.kind is tuple and not self.empty:
            name = "a tuple of one or more numbers"
        if self.below < math.inf:
            return f"{name} from {self.low} to below {self.below}"
        if self.high < math.inf:
            return f"{name} from {self.low} to {self.high}"
        return f"{name} of at least {self.low}" if self.low > -math.inf else name

    def allows(self, value: Any) -> bool:
        if self.kind is tuple:
            each = dataclasses.replace(self, kind=float)
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
    "data.augment": _choice(*sources.AUGMENTATIONS),
    "data.crop_padding": Field(int, low=0),
    "data.workers": Field(int, low=0),
    "data.threads": _COUNT,
    "model.family": _choice("cifar", "imagenet"),
    "model.depth": _COUNT,
    "model.width": _COUNT,
    "model.shortcut": _choice("A", "pool", "B"),
    "model.dtype": _choice("float32", "bfloat16"),
    "model.gated": _SWITCH,
    "model.gate_reduction": _COUNT,
    "model.gate_bias": Field(float),
    "model.scan": _choice("auto", "loop", "unroll"),
    "init.from": _TEXT,
    "gate.sigmoid_probability": _SHARE,
    "gate.draw": _choice("gate", "sample", "step"),
    "scale.min": _SHARE,
    "scale.max": _SHARE,
    "scale.draw": _choice("sample", "step"),
    "scale.loss": _choice("sample", "batch"),
    "scale.beta": _NOT_NEGATIVE,
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


def field(name: str) -> Field:
    """The field of that dotted name; a UserError that names the nearest one if there is none."""
    if name in FIELDS:
        return FIELDS[name]
    inside = [known.removeprefix(f"{name}.") for known in FIELDS if known.startswith(f"{name}.")]
    if inside:
        raise UserError(f"{name} is a section of the config; set its fields: {', '.join(inside)}.")
    (nearest,) = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)
    raise UserError(f"{name!r} is not a config field; the nearest known one is {nearest}.")


def not_allowed(name: str, value: object) -> UserError:
    """The error that `value` is not what the known field `name` may be."""
    return UserError(f"{name} is {value!r}; expected {field(name).expected}.")


def validate(config: Config) -> None:
    """Checks every field, so that a run never fails late for a reason its config shows.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range, or fields
        contradict one another; the first that is found.
    """
    values = flatten(config)
    for name, value in values.items():
        if not field(name).allows(value):
            raise not_allowed(name, value)
    for name, known in FIELDS.items():
        if name not in values:
            raise UserError(f"{name} is missing from the config; set it to {known.expected}.")
    low, high = config.scale.min, config.scale.max
    if low > high:
        raise UserError(f"scale.min is {low}, more than scale.max, {high}; lower scale.min.")
    architecture(config)
    sources.check_augmentation(config.data)


def architecture(
    config: Config, num_classes: int | None = None, image_channels: int | None = None
) -> Architecture:
    """The network that a config describes.

    Args:
      config: a config with its sections `data` and `model`.
      num_classes: by default those of the dataset.
      image_channels: by default those of the dataset.

    Raises:
      UserError: the dataset is unknown, or such a network does not exist, for example a depth that
        no CIFAR ResNet has.
    """
    dataset, model = sources.dataset(config.data), config.model
    try:
        return Architecture(
            family=model.family,
            depth=model.depth,
            num_classes=num_classes or dataset.num_classes,
            image_size=config.data.image_size,
            image_channels=image_channels or dataset.image_channels,
            width=model.width,
            shortcut=model.shortcut,
            gated=model.gated,
            gate_reduction=model.gate_reduction,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def load(path_or_name: str) -> Config:
    """Loads a config file and locks it; `validate` checks what it holds.

    Args:
      path_or_name: a Python file with a function `get_config()`, or the name of a config that
        comes with the package, as `digits` or `configs/digits.py`.

    Raises:
      UserError: no such file or name, or the file's `get_config()` gives no ConfigDict.
    """
    file = _find(path_or_name)
    namespace: dict[str, Any] = {"__name__": "config", "__file__": str(file)}
    try:
        code = compile(file.read_text(encoding="utf-8"), str(file), "exec")
    except (SyntaxError, ValueError) as error:
        raise UserError(f"config {path_or_name} is not valid Python: {error}.") from error
    try:
        exec(code, namespace)
        config = namespace.get("get_config", lambda: None)()
    except Exception as error:  # The user's own code may raise anything.
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"config {path_or_name} cannot be run ({said}); correct it.") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path_or_name} has no get_config() that returns a ConfigDict.")
    # A field's type at loading decides what an override may be: 30 must not shut out 0.5.
    for name, value in flatten(config).items():
        if name in FIELDS and FIELDS[name].kind is float and type(value) is int:
            with config.ignore_type():
                config.update_from_flattened_dict({name: float(value)})
    return _completed(config)


def to_json(config: Config) -> str:
    """The config as JSON text, from which `from_json` makes an equal one."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The locked config of a text by `to_json`; a UserError if the text is not one."""
    try:
        tree = json.loads(text, object_hook=_with_tuples)
    except json.JSONDecodeError:
        tree = None
    if not isinstance(tree, dict):
        raise UserError("the stored config is not a JSON object; restore its file.")
    return _completed(ConfigDict(tree))


def flatten(config: Config) -> dict[str, Any]:
    """The values of all fields by their dotted names; a section without fields is a value."""
    values = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            values |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            values[key] = value
    return values


def _completed(config: ConfigDict) -> Config:
    """The config, locked; one from before there was a section `init` has the weights of then."""
    with config.unlocked():
        config.init = config.get("init", ConfigDict({"from": ""}))
    return config.lock()


def _find(path_or_name: str) -> pathlib.Path | Traversable:
    path = pathlib.Path(path_or_name)
    if path.is_file():
        return path
    shipped = _shipped()
    name = path.name.removesuffix(".py")
    if str(path.parent) in (".", "configs") and name in shipped:
        return shipped[name]
    raise UserError(
        f"config {path_or_name!r} is neither a file nor one of the shipped configs "
        f"{', '.join(shipped)}."
    )


def _shipped() -> dict[str, Traversable]:
    """The configs that come with the package: in a wheel as urnet_jax.configs, else beside it."""
    try:
        folder = importlib.resources.files("urnet_jax.configs")
    except ModuleNotFoundError:
        folder = pathlib.Path(__file__).parent.parent / "configs"
    names = sorted(f.name.removesuffix(".py") for f in folder.iterdir() if f.name.endswith(".py"))
    return {name: folder / f"{name}.py" for name in names if name != "__init__"}


def _with_tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in tree.items()}
