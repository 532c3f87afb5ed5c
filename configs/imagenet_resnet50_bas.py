r"""Channel gates on ImageNet (Bejnordi et al. 2020, 1907.06627), with a ResNet-50.

    python train.py --config=configs/imagenet_resnet50_bas.py:paper --workdir=runs/bas50 \
        --config.data.dir=DIR
    python evaluate.py --workdir=runs/bas50

DIR is a prepared TFDS data_dir, the folder that holds `imagenet2012`. The word behind the colon
names the row, `paper` by default. What is not listed here is that of configs/imagenet_resnet101.py,
and of how gates are trained that of configs/cifar10_resnet20.py, which say what the fields mean.

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

MODEL = {
    "kind": "channel_resnet",
    "family": "imagenet",
    "depth": 50,
    "width": 64,
    "shortcut": "B",
    "dtype": "float32",
    "precision": "highest",
    "scan": "auto",
    "gate_group": 1,  # channels of one gate; 1 is the paper's
    "gate_hidden": 16,  # units of the hidden layer of a block's gates
    "gate_scale": False,  # gates see the image alone: one network, one cost
    "gate_prior": 0.0,  # of gates that see S, as in configs/cifar10_resnet20.py
    "gate_bias": 2.0,  # initial bias of the gates' logits; positive: gates begin open
}

COMMON = {
    "pretrain.epochs": 0.0,
    "gates.epochs": 0.0,
    "joint.epochs": 100.0,
    "joint.learning_rate": 0.1,
    "joint.final_learning_rate": 0.0,
    "joint.schedule": "step",
    "joint.step_fractions": (0.3, 0.6, 0.9),
    "joint.warmup_epochs": 5.0,
}

ROWS = {
    "paper": COMMON
    | {
        "gate.temperature": 2 / 3,  # of the binary concrete
        # Nothing is held to S, which gates do not see.
        "scale.schedule": "ranged",
        "scale.anchors": (),
        "scale.jitter": 0.0,
        "scale.beta": 0.0,
        "scale.dual_rate": 0.0,
        "scale.guard": 0.0,
        "distill.weight": 0.0,
        "distill.cross_entropy": 1.0,
        "shaping.weight": 0.75,
        "shaping.fades_by": 0.2,
        "l0.weight": 0.1,
        "l0.begins": 0.2,
        "l0.full": 0.6,
    },
    # Groups of 64 channels, which are fast, and gates that see S.
    "resizable": COMMON
    | {
        "model.gate_group": 64,
        "model.gate_scale": True,
        "model.gate_prior": 20.0,
        "model.gate_bias": 0.0,
        "joint.gate_optimizer": "adam",
        "joint.gate_learning_rate_factor": 0.04,
        "joint.clip_norm": 1.0,
    },
}


def get_config(row: str = "paper") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(
            f"imagenet_resnet50_bas has no row {row!r}; its rows are {', '.join(ROWS)}."
        )
    config, recipe = config_lib.load("imagenet_resnet101"), config_lib.load("cifar10_resnet20")
    with config.unlocked():
        config.model = ml_collections.ConfigDict(MODEL)
    for section in ("gate", "scale", "distill"):
        config[section].update(recipe[section])
    config.update_from_flattened_dict(ROWS[row])
    return config
