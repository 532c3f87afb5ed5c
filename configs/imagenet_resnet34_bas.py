r"""Channel gates on ImageNet (Bejnordi et al. 2020, 1907.06627), with a ResNet-34.

    python train.py --config=configs/imagenet_resnet34_bas.py:paper --workdir=runs/bas34 \
        --config.data.dir=DIR
    python evaluate.py --workdir=runs/bas34

configs/imagenet_resnet50_bas.py with a network of basic blocks: its rows are that one's, `paper` by
default.

Not run here. Hardware: meant for an accelerator. Time and accuracy: not measured. The paper reports
72.55 % top-1 at about a ResNet-18's cost, half of ResNet-34's.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError


def get_config(row: str = "paper") -> ml_collections.ConfigDict:
    try:
        config = config_lib.load(f"imagenet_resnet50_bas:{row}")
    except UserError as error:
        raise UserError(str(error).replace("resnet50_bas", "resnet34_bas")) from None
    config.model.depth = 34
    return config
