r"""Channel gates on CIFAR-10 (Bejnordi et al. 2020, 1907.06627), with a ResNet-32.

    python train.py --config=configs/cifar10_resnet32_bas.py:short --workdir=runs/bas32 \
        --config.data.dir=DIR
    python evaluate.py --workdir=runs/bas32

configs/cifar10_resnet20_bas.py with a deeper network: its rows are that one's, `short` by default.

Not run here. Hardware: `short`, `resizable` and `both` are meant for two CPU cores. Time and
accuracy: not measured.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError


def get_config(row: str = "short") -> ml_collections.ConfigDict:
    try:
        config = config_lib.load(f"cifar10_resnet20_bas:{row}")
    except UserError as error:
        raise UserError(str(error).replace("resnet20_bas", "resnet32_bas")) from None
    config.model.depth = 32
    return config
