"""Small networks for dense prediction, on images whose colours tell their labels."""

from typing import Any

from helpers import label_maps
from urnet_jax import config as config_lib

FIELDS: dict[str, Any] = {
    "data.name": "cells", "data.num_classes": label_maps.CLASSES, "data.batch_size": 4,
    "data.ignored_label": label_maps.IGNORED, "data.image_size": 32, "data.eval_size": (40, 56),
    "data.threads": 2, "model.width": 8, "joint.epochs": 8.0, "joint.warmup_epochs": 0.5,
    "eval.scales": (0.5, 1.0), "eval.every_epochs": 0.0, "eval.batch_size": 3,
    "checkpoint.every_epochs": 0.0, "log.every_steps": 2,
}  # fmt: skip


def dense_config(data_dir: str, name: str = "camvid_resnet18", **fields: Any) -> Any:
    config = config_lib.load(name)
    own = {"model.gate_group": 4} if "bas" in name else {"model.gate_reduction": 4}
    config.update_from_flattened_dict(FIELDS | {"data.dir": data_dir} | own | fields)
    return config
