r"""Cityscapes, a class for each pixel, with channel gates: PSPNet on a dilated ResNet-50.

    python -m urnet_jax prepare --folder=CITYSCAPES --data_dir=DIR --name=cityscapes
    python train.py --config=configs/cityscapes_resnet50_bas.py --workdir=runs/cityscapes \
        --config.data.dir=DIR --config.init.from=resnet50.pth --config.init.head=new

(Bejnordi et al. 2020, 1907.06627, whose third result this network is; Zhao et al. 2017,
1612.01105.) CITYSCAPES holds leftImg8bit and gtFine, resnet50.pth torchvision's weights. The word
behind the colon names the row, `resizable` by default, as in configs/camvid_resnet18_bas.py: groups
of 64 channels there. What the paper trained it with is not known: crops of 713, batches of 16 and
the rate of 0.01 are PSPNet's.

Not run. Hardware: meant for an accelerator; compiled for 16 TPU v5e chips, see docs/scaling.md.
Time and mIoU: not measured.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

COMMON = {
    "data.name": "cityscapes",
    "data.num_classes": 19,
    "data.ignored_label": 255,
    "data.eval_size": (1024, 2048),
    "data.image_size": 713,
    "data.batch_size": 16,
    "data.workers": 8,
    "model.depth": 50,
    "model.width": 64,
    "joint.epochs": 240.0,
    "joint.learning_rate": 0.01,
    "eval.batch_size": 16,
}

# What always runs, most of it the pyramid's head, is half of the FLOPs.
BY_SCALE = {
    "model.gate_group": 64,
    "scale.anchors": (0.6, 0.65, 0.7, 0.8, 0.9),
    "eval.scales": (0.6, 0.7, 0.8, 0.9, 1.0),
}

ROWS = {"resizable": BY_SCALE, "both": BY_SCALE, "short": {}}


def get_config(row: str = "resizable") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(
            f"cityscapes_resnet50_bas has no row {row!r}; its rows are {', '.join(ROWS)}."
        )
    config = config_lib.load(f"camvid_resnet18_bas:{row}")
    config.update_from_flattened_dict(COMMON | ROWS[row])
    return config
