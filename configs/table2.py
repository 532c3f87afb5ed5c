r"""The rows of the URNet paper's table 2: ResNet-101 on ImageNet, its shorter kin, and URNet.

    python train.py --config=configs/table2.py:urnet_ranged --workdir=runs/urnet \
        --config.data.dir=DIR

The word behind the colon names the row. A row differs from configs/imagenet_resnet101.py, which
says what every field means, only in what is listed here. To start from a plain network that is
trained already, add --config.pretrain.epochs=0 --config.gates.init_from=WORKDIR, or
--config.init.from=FILE for one of PyTorch.

Not run here. Hardware: meant for a TPU slice or GPUs. Time and expected results: not known here.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

PLAIN = {
    f"resnet{depth}": {"model.gated": False, "model.depth": depth} for depth in (101, 84, 75, 72)
}
FIXED = {
    f"urnet_fixed_{scale}": {
        "scale.schedule": "fixed", "scale.fixed": scale, "eval.scales": (scale,),
    }
    for scale in (0.2, 0.4, 0.6, 0.8)
}  # fmt: skip
ROWS = PLAIN | {"urnet_ranged": {}} | FIXED


def get_config(row: str = "urnet_ranged") -> ml_collections.ConfigDict:
    if row not in ROWS:
        raise UserError(f"table2 has no row {row!r}; its rows are {', '.join(ROWS)}.")
    config = config_lib.load("imagenet_resnet101")
    config.update_from_flattened_dict(ROWS[row])
    if not config.model.gated:  # As long as the rows that have a phase of gates.
        config.joint.epochs += config.gates.epochs
    return config
