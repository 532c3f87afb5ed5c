r"""Channel gates on ImageNet (Bejnordi et al. 2020, 1907.06627), with a ResNet-50.

    python train.py --config=configs/imagenet_resnet50_bas.py:paper --workdir=runs/bas50 \
        --config.data.dir=DIR
    python evaluate.py --workdir=runs/bas50

DIR is a prepared TFDS data_dir, the folder that holds `imagenet2012`. The word behind the colon
names the row, `paper` by default. What is not listed here is that of configs/imagenet_resnet101.py,
and of gates and how they are trained that of the same row of configs/cifar10_resnet20_bas.py.

Of the paper's recipe on ImageNet the batch of 256 and the rate of 0.1, which falls in steps, are
known; the epochs and all that concerns the two losses of gates are those of its recipe on CIFAR-10,
as shares of the training: see configs/cifar10_resnet20_bas.py. To begin with torchvision's weights,
add --config.init.from=FILE.

Not run here. Hardware: meant for an accelerator. Time and accuracy: not measured. The paper reports
74.60 % top-1 at about 43 % of ResNet-50's multiply-adds.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

ROWS = {
    "paper": {},
    # Groups of 64 channels, which are fast, and gates that see S.
    "resizable": {
        "model.gate_group": 64,
        "joint.gate_optimizer": "adam",
        "joint.gate_learning_rate_factor": 0.04,
        "joint.clip_norm": 1.0,
    },
}

COMMON = {
    "model.family": "imagenet",
    "model.depth": 50,
    "model.width": 64,
    "model.shortcut": "B",
    "pretrain.epochs": 0.0,
    "gates.epochs": 0.0,
    "joint.epochs": 100.0,
    "joint.learning_rate": 0.1,
    "joint.final_learning_rate": 0.0,
    "joint.schedule": "step",
    "joint.step_fractions": (0.3, 0.6, 0.9),
    "joint.warmup_epochs": 5.0,
}


def get_config(row: str = "paper") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(
            f"imagenet_resnet50_bas has no row {row!r}; its rows are {', '.join(ROWS)}."
        )
    config = config_lib.load("imagenet_resnet101")
    of_gates = config_lib.load(f"cifar10_resnet20_bas:{row}")
    with config.unlocked():
        for section in ("model", "gate", "scale", "distill", "shaping", "l0"):
            config[section] = of_gates[section].copy_and_resolve_references()
    config.update_from_flattened_dict(COMMON | ROWS[row])
    return config
