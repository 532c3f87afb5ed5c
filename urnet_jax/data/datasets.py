"""What is known of a dataset before it is opened, and what a config may ask of it."""

import difflib
from typing import Any, NamedTuple

from urnet_jax.errors import UserError

CLASS_AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
"""Of images that each have a class."""

MAP_AUGMENTATIONS = ("none", "scale_crop_flip")
"""Of images that each have a label map."""

AUGMENTATIONS = (*CLASS_AUGMENTATIONS, "scale_crop_flip")

LABELS = ("class", "map")
"""What an image has: one class, or a class for each pixel."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels in [0, 1], per channel."""


class Dataset(NamedTuple):
    """What is known of a dataset before it is opened."""

    num_classes: int
    image_channels: int = 3
    augmentations: tuple[str, ...] = CLASS_AUGMENTATIONS
    version: str = ""  # that `tfds build` prepares, or another


DATASETS = {
    "digits": Dataset(10, 1, ("none", "crop", "crop_flip")),
    "cifar10": Dataset(10, version="3.0.2"),
    "cifar100": Dataset(100, version="3.0.2"),
    "imagenet2012": Dataset(1000, 3, ("none", "random_resized_crop"), "5.1.0"),
}
"""The datasets that are known by name; under any other name, users bring their own."""


IGNORED = "urnet_ignored_label"
"""Under which name a prepared dataset says what `data.ignored_label` its maps were checked for."""


def dataset(data: Any) -> Dataset:
    """What is known of the dataset before it is opened; `data` is the config's section.

    Raises:
      UserError: `data.name` is unknown and comes without `data.num_classes`, or it is known and
        has another number of classes; or its label maps cannot hold them.
    """
    known = DATASETS.get(data.name)
    num_classes = data.num_classes
    if known is None and data.name and data.labels == "map":
        check_ignored(num_classes, data.ignored_label, "data.")
    if known is None and data.name and num_classes:
        return Dataset(num_classes)
    if known is None:
        raise UserError(
            f"data.name is {data.name!r}; expected one of {', '.join(DATASETS)} (the nearest is "
            f"{nearest(data.name, cutoff=0.0)}), or the name of a prepared dataset of your own, "
            f"with data.num_classes, which is {num_classes}, set to how many classes it has."
        )
    if num_classes not in (0, known.num_classes):
        raise UserError(
            f"data.num_classes is {num_classes}; {data.name} has {known.num_classes} classes: set "
            f"it to {known.num_classes}, or to 0 for the dataset's own number."
        )
    return known


def nearest(name: str, cutoff: float = 0.6) -> str:
    """The known name that is most like `name`, empty where none is like it by `cutoff`."""
    return next(iter(difflib.get_close_matches(name, DATASETS, n=1, cutoff=cutoff)), "")


def size_in_training(data: Any) -> Any:
    """Of images in training: `image_size`, or height and width where whole images have maps."""
    whole = data.labels == "map" and data.augment == "none"
    return tuple(data.eval_size) if whole else data.image_size


def size_in_evaluation(data: Any) -> Any:
    """Of images in evaluation: `image_size`, or height and width where they have maps."""
    return tuple(data.eval_size) if data.labels == "map" else data.image_size


def check(data: Any) -> None:
    """Raises a UserError where fields of the section `data` do not suit one another."""
    known = dataset(data)
    if data.labels == "map":
        _check_maps(data)
        return
    if data.augment in MAP_AUGMENTATIONS and data.augment not in CLASS_AUGMENTATIONS:
        raise UserError(
            f"data.augment is {data.augment!r}, which is for label maps, and data.labels is "
            "'class': set that to 'map', or data.augment to one of "
            f"{', '.join(known.augmentations)}."
        )
    if data.augment not in known.augmentations:
        raise UserError(
            f"data.augment is {data.augment!r}; with data.name {data.name!r} expected one of "
            f"{', '.join(known.augmentations)}."
        )
    for name, none in (("ignored_label", -1), ("eval_size", ())):
        if data[name] != none:
            raise UserError(
                f"data.{name} is {data[name]}, which is for label maps, and data.labels is "
                f"'class': set it to {none}, or data.labels to 'map'."
            )


def _check_maps(data: Any) -> None:
    if data.name in DATASETS:
        raise UserError(
            f"data.labels is 'map', and the images of {data.name} have one class each: set it to "
            "'class', or data.name to a prepared dataset of label maps."
        )
    if data.augment not in MAP_AUGMENTATIONS:
        raise UserError(
            f"data.augment is {data.augment!r}; with data.labels 'map' expected one of "
            f"{', '.join(MAP_AUGMENTATIONS)}."
        )
    if len(data.eval_size) != 2:
        raise UserError(
            f"data.eval_size is {data.eval_size}; with data.labels 'map' expected height and width "
            "in pixels, as (360, 480), at which whole images are evaluated."
        )


def check_ignored(num_classes: int, ignored_label: int, prefix: str) -> None:
    """Raises a UserError where the ignored label is a class, or a map cannot hold the classes.

    Args:
      num_classes: labels run from 0 to num_classes - 1.
      ignored_label: of pixels that count nowhere, -1 if there are none.
      prefix: what stands before these names where the user sets them, `data.` or `--`.
    """
    if not 1 <= num_classes <= 256:
        raise UserError(
            f"{prefix}num_classes is {num_classes}; expected 1 to 256 classes, which a label map "
            "of 8 bits can hold."
        )
    if 0 <= ignored_label < num_classes:
        raise UserError(
            f"{prefix}ignored_label is {ignored_label}, which is one of the classes 0 to "
            f"{num_classes - 1}: set it to a label that is none, or to -1 if all pixels count."
        )
