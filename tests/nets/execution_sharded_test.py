"""Evaluation shared by the devices of a mesh, in a process of its own with four host devices."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from urnet_jax import config as config_lib
from urnet_jax.nets import network
from urnet_jax.evaluate.step import make_eval_step

config = config_lib.load("digits")
config.model.update(
    {"depth": 8, "width": 4, "gate_bias": 0.0, "gate_prior": 0.0, "gate_norm": False}
)
params, stats = network.init_variables(*config_lib.network(config), config.seed)
for n in (1, 2, 3):  # gates that open for S of about 0.5 or more
    gate = params[f"stage{n}"]["entry"]["gate"]
    channels, hidden = gate["fc1"]["kernel"].shape[0] // 2, gate["fc2"]["kernel"].shape[0]
    gate["fc1"]["kernel"] = (0.1 * gate["fc1"]["kernel"]).at[channels:].set(1 / channels)
    gate["fc2"] = {"kernel": np.full((hidden, 1), 1 / hidden, "f"), "bias": np.full(1, -0.5, "f")}
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (16, 8, 8, 1), np.uint8)
labels, scale = rng.integers(0, 10, 16), np.linspace(0, 1, 16, dtype=np.float32)
scale[12:] = 0
index = np.array([*range(15), -1], np.int32)  # the last one is padding

mesh = Mesh(jax.devices(), "data")
same, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
batch = images, labels, scale, index
placed = (*jax.device_put((params, stats), same), *jax.device_put(batch, split))
step = make_eval_step(config, execution=sys.argv[1], mesh=mesh)
program = step.lower(*placed).compile()
found = program(*placed)
alone = make_eval_step(config, execution="dense")(params, stats, *batch)

config.update_from_flattened_dict({"model.gated": False, "gate.random_drop": "test"})
plain, plain_stats = network.init_variables(*config_lib.network(config), config.seed)
dropped = [make_eval_step(config, execution=sys.argv[1], mesh=on)(*arguments)["gates"]
           for on, arguments in ((mesh, (*jax.device_put((plain, plain_stats), same), *placed[2:])),
                                 (None, (plain, plain_stats, *batch)))]

# The last device's samples skip all blocks. Its result would be nan if it computed and masked them.
poison = lambda path, leaf: leaf * np.nan if "conv" in path[2].key else leaf
poisoned = {name: tree if name in ("conv1", "bn1", "fc") else jax.tree.map_with_path(
    lambda path, leaf: poison((None, *path), leaf), tree) for name, tree in params.items()}
lost = step(jax.device_put(poisoned, same), *placed[1:])
json.dump({
    "lost": np.isnan(np.asarray(lost["loss"])).tolist(),
    "dropped": [np.asarray(gates).tolist() for gates in dropped],
    "devices": len(jax.devices()),
    "text": program.as_text(),
    "gathered": all(value.sharding.is_fully_replicated for value in found.values()),
    "found": jax.tree.map(lambda value: np.asarray(value).tolist(), found),
    "alone": jax.tree.map(lambda value: np.asarray(value).tolist(), alone),
}, sys.stdout)
"""
COLLECTIVES = (
    "all-reduce", "all-to-all", "collective-permute", "collective-broadcast",
    "reduce-scatter",
)  # fmt: skip


@pytest.mark.parametrize("execution", ["compact", "pieces"])
def test_each_device_skips_for_its_own_samples(execution: str, tmp_path: pathlib.Path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, execution],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["devices"] == 4 and result["gathered"]
    # What is computed is gathered at the end, and nothing else passes from device to device.
    assert not [name for name in COLLECTIVES if name in result["text"]]
    assert len(re.findall(r"= \S+ all-gather\(", result["text"])) <= len(result["found"])
    found, alone = result["found"], result["alone"]
    used = np.reshape(alone["gates"], (4, 4, 3)).sum(axis=1)  # of each device's samples
    assert len(np.unique(used, axis=0)) > 1 and 0 < used.mean() < 4
    for name in ("prediction", "correct", "gates"):
        assert found[name] == alone[name]
    assert result["dropped"][0] == result["dropped"][1]
    assert 0 < np.mean(result["dropped"]) < 1
    # Each image's F is nan once it runs a block; whoever runs none must not notice.
    runs_some = np.sum(alone["gates"], axis=1) > 0
    assert result["lost"] == runs_some.tolist()
    assert not runs_some[12:].any() and runs_some[:12].any()
    np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-5, atol=1e-5)
