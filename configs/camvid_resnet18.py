r"""Street scenes, a class for each pixel, and a user's S: PSPNet on a dilated ResNet-18 (CamVid).

    python -m urnet_jax prepare --folder=CAMVID --data_dir=DIR --name=camvid --ignored_label=11 \
        --class_names=sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist
    python train.py --config=configs/camvid_resnet18.py --workdir=runs/camvid --config.data.dir=DIR
    python -m urnet_jax calibrate --workdir=runs/camvid
    python evaluate.py --workdir=runs/camvid --report

CAMVID holds train, val and test, each with images and labels: 367, 101 and 233 frames of 480x360,
classes 0 to 10 and 11 where nothing is known. Frames are seen at 240x180, in training scaled
by half to twice and cropped to squares of 160, by a network of half the width.

The word behind the colon names the row, `blocks` by default; `plain` is the network without gates,
which `--config.init.from=FILE` of an exported one lets the others begin with. What is not listed
here is that of configs/finetune.py, which says what every field means.

Not run yet. Hardware: meant for two CPU cores.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

COMMON = {
    "data.name": "camvid",
    "data.num_classes": 11,
    "data.labels": "map",
    "data.ignored_label": 11,
    "data.eval_size": (180, 240),  # height and width of whole images
    "data.image_size": 160,  # of a square that training crops
    "data.augment": "scale_crop_flip",
    "data.batch_size": 8,
    "model.kind": "segmenter",
    "model.width": 32,
    "model.auxiliary_weight": 0.4,  # of the loss of a head behind the third stage, in training
    "init.head": "kept",
    "joint.epochs": 80.0,
    "joint.learning_rate": 0.05,
    "joint.warmup_epochs": 2.0,
    "eval.scales": (0.4, 0.6, 0.8, 1.0),
    "eval.batch_size": 8,
    "eval.every_epochs": 20.0,
    "checkpoint.every_epochs": 5.0,
}

ROWS = {
    "blocks": {},
    "plain": {"model.gated": False, "distill.weight": 0.0, "scale.dual_rate": 0.0},
}


def get_config(row: str = "blocks") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(f"camvid_resnet18 has no row {row!r}; its rows are {', '.join(ROWS)}.")
    config = config_lib.load("finetune")
    with config.unlocked():
        config.model.auxiliary_weight = 0.4
    config.update_from_flattened_dict(COMMON | ROWS[row])
    return config
