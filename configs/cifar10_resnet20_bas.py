r"""Channel gates on CIFAR-10 (Bejnordi et al. 2020, 1907.06627), with a ResNet-20.

    python train.py --config=configs/cifar10_resnet20_bas.py:short --workdir=runs/bas \
        --config.data.dir=DIR
    python evaluate.py --workdir=runs/bas

DIR is a prepared TFDS data_dir, the folder that holds `cifar10`. The word behind the colon names
the row, `short` by default, which differs from configs/cifar10_resnet20.py only in what is listed
here; that config says what every field means.

Hardware: `short`, `resizable` and `both` are meant for two CPU cores. `short` was run for 4 epochs
from a plain network, see results/shaping: about 10 minutes; for all its epochs, and the other rows,
not.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

MODEL = {
    "kind": "channel_resnet",
    "family": "cifar",
    "depth": 20,
    "width": 16,
    "shortcut": "A",
    "dtype": "float32",
    "precision": "highest",
    "scan": "auto",
    "gate_group": 1,  # channels of one gate; 1 is the paper's
    "gate_blocks": False,  # blocks have gates of their own too
    "gate_hidden": 16,  # units of the hidden layer of a block's gates
    "gate_scale": False,  # gates see the image alone: one network, one cost
    "gate_prior": 0.0,  # of gates that see S, as in configs/cifar10_resnet20.py
    "gate_bias": 2.0,  # initial bias of the gates' logits; positive: gates begin open
}

PAPER = {
    "data.batch_size": 256,
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
    # By the mean over samples and gates. The paper sums, over what is not known; 0.75 in any case.
    "shaping.weight": 0.75,
    "shaping.fades_by": 0.2,
    # Of lambda the paper's figure has 0 to 0.2.
    "l0.weight": 0.1,
    "l0.begins": 0.2,
    "l0.full": 0.6,
    "joint.epochs": 500.0,
    "joint.schedule": "step",
    "joint.step_fractions": (0.6, 0.75, 0.9),
    "joint.warmup_epochs": 0.0,
    "joint.clip_norm": 0.0,
    "joint.gate_optimizer": "sgd",
    "joint.gate_learning_rate_factor": 1.0,
}
"""As far as the paper's recipe is known."""

ROWS = {
    "paper": PAPER,
    # In 16 epochs.
    "short": PAPER
    | {
        "data.batch_size": 128,
        "joint.epochs": 16.0,
        "joint.schedule": "cosine",
        "joint.warmup_epochs": 1.0,
        "joint.clip_norm": 1.0,
        # A mean over gates moves each of them by so little that SGD needs hundreds of epochs.
        "joint.gate_optimizer": "adam",
        "joint.gate_learning_rate_factor": 0.04,
        "shaping.fades_by": 0.5,
    },
    # Gates see S too: the recipe of configs/cifar10_resnet20.py, for groups of channels.
    "resizable": {
        "model.gate_group": 8,
        "model.gate_scale": True,
        "model.gate_prior": 20.0,
        "model.gate_bias": 0.0,
    },
}
# Gates of blocks and of channels, under one S.
ROWS["both"] = ROWS["resizable"] | {"model.gate_blocks": True}


def get_config(row: str = "short") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(f"cifar10_resnet20_bas has no row {row!r}; its rows are {', '.join(ROWS)}.")
    config = config_lib.load("cifar10_resnet20")
    with config.unlocked():
        config.model = ml_collections.ConfigDict(MODEL)
    config.update_from_flattened_dict(ROWS[row])
    return config
