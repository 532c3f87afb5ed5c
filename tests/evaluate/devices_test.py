"""All devices of a process share an evaluation, and it comes out as on one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import json, pathlib, sys
import jax
import numpy as np
from urnet_jax.evaluate import evaluation, job, inspection
from urnet_jax.evaluate.step import make_eval_step

SCALES = (0.2, 0.7)
workdir, output = sys.argv[1:]
run = inspection.load(workdir)
assert jax.device_count() == run.mesh.size == 4
assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(run.variables))
step = make_eval_step(run.config, run.meta.phase)
alone = evaluation.evaluate(
    step, run.params, run.batch_stats, run.split(), run.config, SCALES, 360, progress=False
)
together = run.evaluate(SCALES)
# 52 images at a time, 13 on each device; the last batch holds 48 and padding.
job.evaluate_workdir(workdir, scales=SCALES, batch_size=50, output=output)
with np.load(f"{output}/eval_samples.npz") as samples:
    written = dict(samples)

def differ(name, other):
    mine = getattr(alone, name)
    assert mine.shape == other.shape, name
    return float(np.abs(mine - other.astype(mine.dtype)).max())

names = ("index", "labels", "predictions", "gates", "flops", "loss")
found = {
    name: [differ(name, getattr(together, name)), differ(name, written[name])] for name in names
}
swept = run.sweep(7, SCALES)  # One image on four devices.
found["sweep"] = [int(np.abs(swept["gate"].to_numpy() - alone.gates[:, 7].ravel()).max())]
found["gate_logits"] = [differ("gate_logits", together.gate_logits)]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_four_devices_evaluate_as_one_does(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(finished), str(tmp_path / "out")],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    rounded = {name: max(found.pop(name)) for name in ("loss", "gate_logits")}
    assert max(rounded.values()) < 1e-4, rounded
    assert {name: max(differences) for name, differences in found.items()} == dict.fromkeys(
        found, 0
    )
    record = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert record["device"]["count"] == 4
