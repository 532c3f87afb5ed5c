r"""The rows of the URNet paper's table 1: ResNet-110 on CIFAR, brought down to S in seven ways.

    python train.py --config=configs/table1.py:urnet --workdir=runs/urnet --config.data.dir=DIR

The word behind the colon names the row (`paper` is another name of `urnet`);
--config.data.name=cifar100 takes the other dataset. A row differs from
configs/cifar10_resnet110.py, which says what every field means, only in what is listed here.
`python benchmarks/paper.py` runs all of them, shortened, and sets them beside the paper.

Not run in this length. Hardware: meant for one GPU or TPU. Time: 664 epochs each, not measured.
Expected: not known here; results/paper has the rows of a ResNet-20, shortened, on CIFAR-10 (JPEG)
and on the digits.
"""

import ml_collections

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

ROWS = {
    # The plain network; blocks are dropped at random when it is tested.
    "random_drop_test": {"model.gated": False, "gate.random_drop": "test"},
    # The same, but it has also been trained so.
    "random_drop": {"model.gated": False, "gate.random_drop": "always"},
    # A ResNet-8 beside the network sets all gates at once.
    "external": {"model.gate_network": "external"},
    # p = 1: gates are sigmoids in training, and steps in the test.
    "sigmoid_only": {"gate.sigmoid_probability": 1.0},
    # p = 0: gates are steps, through which no gradient comes.
    "step_only": {"gate.sigmoid_probability": 0.0},
    # Gates weigh the blocks that random drop leaves.
    "block_attention": {"gate.random_drop": "always", "scale.beta": 0.0},
    "urnet": {},
    # Not in the paper, and chosen by short trials: a scale loss that counts gates as the test does
    # and holds groups of samples to a common S, so that their mean can meet an S that no sample can
    # alone (it uses k of N blocks); S drawn beyond 0.2 and 1, which are met too; half of the gates
    # sigmoids (in five epochs of CIFAR-10 better than a tenth); Adam for the gates.
    "ours": {
        "gate.sigmoid_probability": 0.5,
        "scale.min": 0.1,
        "scale.max": 1.1,
        "scale.draw": "group",
        "scale.loss": "group",
        "scale.usage": "step",
        "scale.beta": 32.0,
        "gates.gate_optimizer": "adam",
        "joint.gate_optimizer": "adam",
    },
}


def get_config(row: str = "urnet") -> ml_collections.ConfigDict:
    row = "urnet" if row == "paper" else row
    if row not in ROWS:
        raise UserError(f"table1 has no row {row!r}; its rows are {', '.join(ROWS)}.")
    config = config_lib.load("cifar10_resnet110")
    config.update_from_flattened_dict(ROWS[row])
    if not config.model.gated:  # As long as the rows that have a phase of gates.
        config.joint.epochs += config.gates.epochs
    return config
