r"""Street scenes, a class for each pixel, with channel gates: PSPNet on a ResNet-18 (CamVid).

    python train.py --config=configs/camvid_resnet18_bas.py --workdir=runs/camvid_bas \
        --config.data.dir=DIR

configs/camvid_resnet18.py, which says how DIR is made, with the gates of
configs/cifar10_resnet20_bas.py. The word behind the colon names the row, `resizable` by default:
groups of 16 channels that see S; `both`: and blocks that have gates too; `short`: single channels
that see the image alone, with batch-shaping (Bejnordi et al. 2020, 1907.06627).

Not run yet. Hardware: meant for two CPU cores.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

ROWS = {
    "resizable": {"model.gate_group": 16},
    "both": {"model.gate_group": 16},
    "short": {},
}

OF_NETWORK = ("family", "depth", "width", "shortcut", "auxiliary_weight")


def get_config(row: str = "resizable") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(f"camvid_resnet18_bas has no row {row!r}; its rows are {', '.join(ROWS)}.")
    config = config_lib.load("camvid_resnet18")
    of_gates = config_lib.load(f"cifar10_resnet20_bas:{row}")
    network = {name: config.model[name] for name in OF_NETWORK}
    with config.unlocked():
        for section in ("model", "gate", "scale", "distill", "shaping", "l0"):
            config[section] = of_gates[section].copy_and_resolve_references()
        config.model = ml_collections.ConfigDict(
            config.model.to_dict() | network | {"kind": "channel_segmenter"}
        )
    config.scale.anchors = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if row != "short" else ()
    config.update_from_flattened_dict(ROWS[row])
    return config
