"""Images and label maps that lie in folders: which of them belong together."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

from urnet_jax.errors import UserError

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
"""The 19 classes that Cityscapes is trained and evaluated on, by their train id."""

CITYSCAPES_IGNORED = 255

CITYSCAPES_TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
"""Train ids by label id; all other label ids are ignored."""

_LAYOUTS = (
    "FOLDER/{train,val,test}/{images,labels} or that of Cityscapes, FOLDER/{leftImg8bit,gtFine}"
)
_SUFFIXES = (".jpg", ".jpeg", ".png")
_IMAGE_END = "_leftImg8bit"
_MAP_ENDS = {"_gtFine_labelIds": True, "_gtFine_labelTrainIds": False}  # whether to be renumbered


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its label map.

    Attributes:
      name: of the image, in its split's folder.
      image: its file.
      label_map: the map's.
      label_ids: whether the map has Cityscapes' label ids, for CITYSCAPES_TRAIN_IDS to renumber.
    """

    name: str
    image: pathlib.Path
    label_map: pathlib.Path
    label_ids: bool = False


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a folder holds: its pairs by split, each split not empty.

    Attributes:
      splits: of `train`, `validation` and `test` those that are there.
      cityscapes: whether it is laid out as Cityscapes is.
    """

    splits: Mapping[str, tuple[Pair, ...]]
    cityscapes: bool


def find(folder: str | pathlib.Path) -> Folder:
    """The pairs of a folder in one of two layouts; no file is opened.

    Args:
      folder: with `{train,val,test}/{images,labels}`, files of one stem being a pair, where `val`
        may be called `validation`; or `leftImg8bit/{train,val}` and `gtFine/{train,val}`, as
        Cityscapes has it, with label ids or train ids.

    Raises:
      UserError: it has neither layout, no images to train or to test on, or an image without a map
        or the reverse.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"The folder {root} is not there; name one that holds images and maps.")
    cityscapes = (root / "leftImg8bit").is_dir()
    if not cityscapes and not any(root.glob("*/images")):
        raise UserError(f"{root} is in no layout that is known; expected {_LAYOUTS}.")
    train = root / "leftImg8bit" / "train" if cityscapes else root / "train"
    if not train.is_dir():
        raise UserError(f"{root} has no images to train on; expected some in {train}.")
    splits = _cityscapes_splits(root) if cityscapes else _splits(root)
    if not splits.keys() & {"validation", "test"}:
        where = root / "leftImg8bit" / "val" if cityscapes else f"{root / 'val'} or {root / 'test'}"
        raise UserError(f"{root} has no images to test on; expected some in {where}.")
    return Folder(splits, cityscapes)


def _splits(root: pathlib.Path) -> dict[str, tuple[Pair, ...]]:
    if (root / "val").is_dir() and (root / "validation").is_dir():
        raise UserError(f"{root} has both val and validation, which are one split: remove one.")
    splits = {}
    for name in ("train", "val", "validation", "test"):
        folder = root / name
        if not folder.is_dir():
            continue
        images = _by_stem(folder / "images", (folder / "images").glob("*"))
        maps = _by_stem(folder / "labels", (folder / "labels").glob("*"))
        _check_complete(images, maps, folder / "labels")
        splits["validation" if name == "val" else name] = tuple(
            Pair(image.name, image, maps[stem]) for stem, image in sorted(images.items())
        )
    return splits


def _cityscapes_splits(root: pathlib.Path) -> dict[str, tuple[Pair, ...]]:
    splits = {}
    for name in ("train", "val"):
        folder, fine = root / "leftImg8bit" / name, root / "gtFine" / name
        if not folder.is_dir():
            continue
        images = _by_stem(folder, folder.glob(f"*/*{_IMAGE_END}.*"), _IMAGE_END)
        maps, label_ids = {}, {}
        for end, renumbered in _MAP_ENDS.items():  # Where there are both, train ids come last.
            found = _by_stem(fine, fine.glob(f"*/*{end}.*"), end, empty=True)
            maps |= found
            label_ids |= dict.fromkeys(found, renumbered)
        _check_complete(images, maps, fine)
        splits["validation" if name == "val" else name] = tuple(
            Pair(f"{image.parent.name}/{image.name}", image, maps[stem], label_ids[stem])
            for stem, image in sorted(images.items())
        )
    return splits


def _by_stem(
    folder: pathlib.Path, paths: Iterable[pathlib.Path], end: str = "", empty: bool = False
) -> dict[str, pathlib.Path]:
    """Those of a folder's files that are images, by their names without suffix and `end`."""
    found: dict[str, pathlib.Path] = {}
    if not folder.is_dir():
        raise UserError(f"The folder {folder} is not there; add it.")
    for path in sorted(paths):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
            continue
        stem = path.stem.removesuffix(end)
        if stem in found:
            raise UserError(f"{found[stem]} and {path} have one name: remove or rename one.")
        found[stem] = path
    if not found and not empty:
        raise UserError(f"{folder} holds no JPEG or PNG files; put some there or remove it.")
    return found


def _check_complete(
    images: Mapping[str, pathlib.Path], maps: Mapping[str, pathlib.Path], where: pathlib.Path
) -> None:
    for stem, image in sorted(images.items()):
        if stem not in maps:
            raise UserError(f"{image} has no label map in {where}; add it, or remove the image.")
    for stem, label_map in sorted(maps.items()):
        if stem not in images:
            raise UserError(
                f"{label_map} has no JPEG or PNG image of its name; add it, or remove the map."
            )
