"""Kinds of networks, found by name, and the fields that each brings to a config's section `model`.

A kind is a description (`nets.contract.Description`), a frozen dataclass. Its fields, but for those
that the dataset decides, are fields of the config. Kinds that come with the library have short
names; any other is named as "package.module:Class", and needs no change here.
"""

import dataclasses
import importlib
import typing
from typing import Any, Literal

from urnet_jax.errors import MissingCode, UserError
from urnet_jax.fields import FIELDS, Field

KINDS = {
    "resnet": "urnet_jax.nets.architecture:Architecture",
    "channel_resnet": "urnet_jax.nets.channels.architecture:ChannelGated",
    "segmenter": "urnet_jax.nets.dense.architecture:Segmenter",
    "channel_segmenter": "urnet_jax.nets.dense.architecture:ChannelSegmenter",
}

_OF_DATA = ("num_classes", "image_size", "image_channels")


def description(kind: str) -> Any:
    """The class that describes networks of a kind.

    Raises:
      UserError: there is none of that name.
    """
    module, _, name = KINDS.get(kind, kind).partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise MissingCode(
            f"model.kind is {kind!r}, which cannot be found ({error}); expected one of "
            f"{', '.join(KINDS)}, or a class of your own, named as 'package.module:Class', whose "
            "module is on PYTHONPATH."
        ) from error
    if not dataclasses.is_dataclass(found):
        raise UserError(
            f"model.kind is {kind!r}, which is no dataclass that describes networks; "
            "docs/networks.md says what one has."
        )
    return found


def own_fields(kind: str) -> tuple[str, ...]:
    """The names of a kind's fields in the section `model`."""
    names = (f.name for f in dataclasses.fields(description(kind)))
    return tuple(name for name in names if name not in _OF_DATA)


def fields(kind: str) -> dict[str, Field]:
    """Every field of a config whose network is of this kind, by its dotted name."""
    others = {f"model.{name}" for name in own_fields("resnet")}
    common = {name: field for name, field in FIELDS.items() if name not in others}
    if kind == "resnet":
        return FIELDS
    hints = typing.get_type_hints(description(kind))
    return common | {f"model.{name}": _field(kind, name, hints[name]) for name in own_fields(kind)}


def _field(kind: str, name: str, hint: Any) -> Field:
    """What a dataclass's field may be; its ranges are for the dataclass to check."""
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal and all(isinstance(choice, str) for choice in choices):
        return Field(str, choices=choices)
    if hint in (bool, int, float, str):
        return Field(hint)
    if hint == tuple[float, ...]:
        return Field(tuple)
    raise UserError(
        f"The field {name} of the network {kind} is of type {hint}; expected one that a config can "
        "hold: bool, int, float, str, a Literal of texts or tuple[float, ...]."
    )
