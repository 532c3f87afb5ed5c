"""A bundle: a trained network as a folder of four or five files, which needs no Orbax to be read.

    urnet export --workdir=runs/mine --format=bundle --output=mine

`config.json` says what the network is, `model.safetensors` holds its weights under PyTorch's names,
`calibration.json` and `profile.json` what `urnet calibrate` found, and `README.md` is a model card.
"""

import json
import zlib
from typing import Any, NamedTuple

import jax
import safetensors.numpy
from etils import epath

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError, make_folder
from urnet_jax.nets import network
from urnet_jax.nets.labels import labels_of
from urnet_jax.nets.network import Tree
from urnet_jax.runs import calibration as calibration_lib
from urnet_jax.runs import kept
from urnet_jax.runs import profile as profile_lib
from urnet_jax.runs.calibration import Calibration
from urnet_jax.runs.meta import Meta
from urnet_jax.runs.pretrained import export_state_dict, import_state_dict
from urnet_jax.runs.profile import Profile
from urnet_jax.runs.torch_files import read_state_dict
from urnet_jax.version import __version__

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

LIBRARY = "urnet_jax"

FORMAT = 1
"""A reader of this number refuses a higher one."""

PLACES = ("data.dir", "init.from", "pretrain.init_from", "gates.init_from", "joint.init_from")
"""Fields that say where something lay on the machine of the training; a bundle leaves them out."""


class Bundle(NamedTuple):
    """A network with all that belongs to it.

    Attributes:
      meta: what the checkpoint said of itself, the run's config included.
      params: the network's parameters.
      batch_stats: BatchNorm's running statistics.
      calibration: by which S is the share of FLOPs that is used, if there is one.
      profile: what each S gives and takes, if it was measured.
    """

    meta: Meta
    params: Tree
    batch_stats: Tree
    calibration: Calibration | None = None
    profile: Profile | None = None


def is_bundle(path: epath.PathLike) -> bool:
    """Whether a folder is one, by its config.json, be it damaged elsewhere."""
    try:
        return json.loads((epath.Path(path) / CONFIG).read_text())["library_name"] == LIBRARY
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_served(arch: Any) -> bool:
    """Whether anything here serves the network: not one that says a class for each pixel."""
    return labels_of(arch) == "class"


def check_served(arch: Any) -> None:
    """Raises a UserError for a network that nothing here serves."""
    if not is_served(arch):
        raise UserError(
            f"The {arch.describe()} says a class for each pixel, and only networks that say one "
            "for the image are served and bundled: look at it with urnet evaluate --report."
        )


def write(bundle: Bundle, output: epath.PathLike, card: str) -> list[epath.Path]:
    """Writes a bundle, in place of an older one.

    Args:
      bundle: to write.
      output: the folder; it is made where it is missing.
      card: the text of its README.md.

    Returns:
      The files.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    folder = epath.Path(output)
    make_folder(folder, "--output")
    if not is_bundle(folder) and any(folder.iterdir()):
        raise UserError(f"{output} holds other files: name an empty folder, or one to be made.")
    arch = config_lib.architecture(bundle.meta.config)
    weights = safetensors.numpy.save(export_state_dict(bundle.params, bundle.batch_stats, arch))
    files = {WEIGHTS: weights}
    if bundle.calibration is not None:
        files[calibration_lib.FILE] = kept.to_text(bundle.calibration).encode()
    if bundle.profile is not None:
        files[profile_lib.FILE] = kept.to_text(bundle.profile).encode()
    # config.json is the last, and holds checksums of the others: a bundle that is half of an older
    # one is told from a whole one.
    described = _described(bundle, {name: zlib.crc32(content) for name, content in files.items()})
    files |= {CARD: card.encode(), CONFIG: described.encode()}
    try:
        for name in (calibration_lib.FILE, profile_lib.FILE):
            if name not in files and (folder / name).exists():
                (folder / name).unlink()  # an older one's
        for name, content in files.items():
            temporary = folder / f".{name}.tmp"
            temporary.write_bytes(content)
            temporary.replace(folder / name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{output} cannot be written ({reason}); name another folder.") from error
    return [folder / name for name in files]


def _described(bundle: Bundle, sums: dict[str, int]) -> str:
    """What config.json says; of other files their checksums."""
    config = config_lib.from_json(config_lib.to_json(bundle.meta.config))
    config.update_from_flattened_dict(dict.fromkeys(PLACES, ""))
    meta = bundle.meta.to_json() | {"config": json.loads(config_lib.to_json(config))}
    return json.dumps(
        {
            "library_name": LIBRARY,
            "library_version": __version__,
            "format": FORMAT,
            "architecture": config_lib.architecture(config).describe(),
            "crc32": sums,
            "meta": meta,
        },
        indent=2,
    ) + "\n"  # fmt: skip


def read(path: epath.PathLike) -> Bundle:
    """Reads a bundle; its arrays lie on this process's first device.

    Raises:
      UserError: it is not one, of a later format, or damaged.
    """
    folder = epath.Path(path)
    try:
        described = json.loads((folder / CONFIG).read_text())
        number, sums = int(described["format"]), dict(described["crc32"])
        meta = None if number > FORMAT else _meta(described["meta"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG} is not that of a bundle ({error}): write the bundle again, with "
            "urnet export --format=bundle."
        ) from error
    if meta is None:
        raise UserError(
            f"{path} is a bundle of format {number}, and this version of urnet_jax reads those up "
            f"to {FORMAT}: install a later one."
        )
    for name, crc in sums.items():
        file = folder / name
        if not file.exists() or zlib.crc32(file.read_bytes()) != crc:
            raise UserError(
                f"{file} is not the file that {CONFIG} tells of: it is missing, damaged, or of "
                "another bundle; copy or export the whole folder again."
            )
    weights = folder / WEIGHTS
    arch, build = config_lib.network(meta.config)
    params, batch_stats = network.abstract_variables(arch, build)
    filled = import_state_dict(read_state_dict(weights), arch, params, batch_stats, weights)
    if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(filled)):
        raise UserError(f"{weights} holds no gates: it is not of a bundle of this network.")
    told = calibration_lib.FILE in sums, profile_lib.FILE in sums
    return Bundle(
        meta,
        *filled,
        calibration_lib.from_file(folder / calibration_lib.FILE) if told[0] else None,
        profile_lib.from_file(folder / profile_lib.FILE) if told[1] else None,
    )


def _meta(saved: dict[str, Any]) -> Meta:
    return Meta.from_json(saved | {"config": json.dumps(saved["config"])})
