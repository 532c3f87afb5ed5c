"""What a config may hold: its fields, their ranges, and how configs are loaded and kept."""

import dataclasses
import difflib
import importlib.resources
import inspect
import json
import math
import pathlib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from urnet_jax import consistency, kinds
from urnet_jax.data import datasets
from urnet_jax.errors import UserError
from urnet_jax.fields import FIELDS, LATER, Field
from urnet_jax.nets.mode import Build
from urnet_jax.phases import PHASES

Config: TypeAlias = Any
"""An `ml_collections.ConfigDict`; from its source, checkers infer a type without sections."""


GROUPS = 8
"""Parts of a batch that each draw one S, where S is drawn per `group`."""


def field(name: str, known: Mapping[str, Field] = FIELDS) -> Field:
    """The field of that dotted name; a UserError that names the nearest one if there is none.

    Args:
      name: as `model.depth`.
      known: all fields, as `fields_of` gives them.
    """
    if name in known:
        return known[name]
    inside = [other.removeprefix(f"{name}.") for other in known if other.startswith(f"{name}.")]
    if inside:
        raise UserError(f"{name} is a section of the config; set its fields: {', '.join(inside)}.")
    (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise UserError(f"{name!r} is not a config field; the nearest known one is {nearest}.")


def fields_of(config: Config) -> Mapping[str, Field]:
    """Every field of the config, those of its kind of network among them."""
    model = config.get("model")
    kind = model.get("kind", "resnet") if isinstance(model, ConfigDict) else "resnet"
    return kinds.fields(kind) if isinstance(kind, str) else FIELDS


def not_allowed(name: str, value: object, known: Mapping[str, Field] = FIELDS) -> UserError:
    """The error that `value` is not what the known field `name` may be."""
    return UserError(f"{name} is {value!r}; expected {field(name, known).expected}.")


def validate(config: Config) -> None:
    """Checks every field, so that a run never fails late for a reason its config shows.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range, or fields
        contradict one another; the first that is found.
    """
    values, known = flatten(config), fields_of(config)
    for name, value in values.items():
        if not field(name, known).allows(value):
            raise not_allowed(name, value, known)
    for name, missing in known.items():
        if name not in values:
            raise UserError(f"{name} is missing from the config; set it to {missing.expected}.")
    arch = architecture(config)
    datasets.check(config.data)
    consistency.check(config, arch, num_groups(config, config.data.batch_size))


def phases_to_run(config: Config) -> list[str]:
    """The phases that have a length, in order; a plain network has no gates to train alone.

    Raises:
      UserError: no phase has a length.
    """
    phases = [phase for phase in PHASES if config[phase].epochs > 0]
    if not architecture(config).gated:
        phases = [phase for phase in phases if PHASES[phase].moves_rest]
    if not phases:
        raise UserError(
            "No phase has a length: set pretrain.epochs, gates.epochs or joint.epochs above 0 "
            "(a plain network has no phase gates)."
        )
    return phases


def architecture(
    config: Config, num_classes: int | None = None, image_channels: int | None = None
) -> Any:
    """The description of the config's network, see `nets.contract.Description`.

    Args:
      config: a config with its sections `data` and `model`.
      num_classes: by default those of the dataset.
      image_channels: by default those of the dataset.

    Raises:
      UserError: the dataset or the kind is unknown, or such a network does not exist, for example
        a depth that no CIFAR ResNet has.
    """
    dataset, model = datasets.dataset(config.data), config.model
    try:
        return kinds.description(model.kind)(
            num_classes=num_classes or dataset.num_classes,
            image_size=datasets.size_in_training(config.data),
            image_channels=image_channels or dataset.image_channels,
            **{name: model[name] for name in kinds.own_fields(model.kind)},
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def evaluated(config: Config) -> Any:
    """The description of the config's network for images as evaluation sees them."""
    arch, size = architecture(config), datasets.size_in_evaluation(config.data)
    return arch if arch.image_size == size else dataclasses.replace(arch, image_size=size)


def network(config: Config) -> tuple[Any, Build]:
    """What the functions of `nets.network` take: the description, and what it is built with."""
    model = config.model
    return architecture(config), Build(model.dtype, model.precision, model.gate_bias)


def num_groups(config: Config, batch_size: int) -> int:
    """Into how many equal parts of samples in a row, each with its own S, a batch falls."""
    parts = {"sample": batch_size, "group": math.gcd(batch_size, GROUPS), "step": 1}
    return parts[config.scale.draw]


def load(path_or_name: str) -> Config:
    """Loads a config file and locks it; `validate` checks what it holds.

    Args:
      path_or_name: a Python file with a function `get_config()`, or the name of a config that
        comes with the package, as `digits` or `configs/digits.py`. What follows a colon is given
        to `get_config`: `table1:urnet`.

    Raises:
      UserError: no such file or name, or the file's `get_config()` gives no ConfigDict.
    """
    whole = pathlib.Path(path_or_name).is_file()
    name, *argument = [path_or_name] if whole else path_or_name.rsplit(":", 1)
    file = _find(name)
    namespace: dict[str, Any] = {"__name__": "config", "__file__": str(file)}
    try:
        code = compile(file.read_text(encoding="utf-8"), str(file), "exec")
    except (SyntaxError, ValueError) as error:
        raise UserError(f"config {path_or_name} is not valid Python: {error}.") from error
    try:
        exec(code, namespace)
        get_config = namespace.get("get_config", lambda *_: None)
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f"config {name} has no rows: name it without ':{argument[0]}'.")
        config = get_config(*argument)
    except UserError:
        raise
    except Exception as error:  # The user's own code may raise anything.
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"config {path_or_name} cannot be run ({said}); correct it.") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path_or_name} has no get_config() that returns a ConfigDict.")
    # A field's type at loading decides what an override may be: 30 must not shut out 0.5.
    known = fields_of(config)
    for name, value in flatten(config).items():
        if name in known and known[name].kind is float and type(value) is int:
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
    """The config, locked; one from before a field existed gets what it meant then."""
    known = fields_of(config)
    with config.unlocked():
        for name, value in LATER.items():
            if name not in known:  # of another kind of network
                continue
            section, last = name.split(".")
            if section not in config:
                config[section] = ConfigDict()
            fields: Any = config[section]
            # A value where a section should be is said by `validate`.
            if isinstance(fields, ConfigDict) and last not in fields:
                fields[last] = value
    return config.lock()


def skips(config: Config, phase: str = "joint") -> bool:
    """Whether the network of a phase leaves something out, by gates or at random."""
    own_gates = PHASES[phase].own_gates
    return own_gates and (architecture(config).gated or config.gate.random_drop != "never")


def heeds_scale(config: Config, phase: str = "joint") -> bool:
    """Whether it does less for a smaller S; gates may see the image alone."""
    return skips(config, phase) and getattr(architecture(config), "gate_scale", True)


def weighs_only(config: Config) -> bool:
    """Whether gates only weigh what random drop leaves ("block attention")."""
    return config.gate.random_drop != "never" and architecture(config).gated


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
