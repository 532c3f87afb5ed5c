"""A run's steps, compiled for devices that need not be here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.cost import sides
from urnet_jax.nets.dense.architecture import Dense
from urnet_jax.phases import PHASES
from urnet_jax.train import state as state_lib
from urnet_jax.train.step import make_train_step
from urnet_jax.xla import sharding
from urnet_jax.xla.compiled import Compiled, DoesNotFit, compile_step

MOST_FITTED = 64
"""`largest_batch` looks no further than so many times the config's batch."""

STEPS_PER_EPOCH = 1000.0
"""The schedules need one; nothing that is found here depends on it."""


@dataclasses.dataclass(frozen=True)
class CompiledStep(Compiled):
    """A compiled step of a run, `train` or `evaluate`.

    Attributes:
      batch_size: of all devices.
      analytic_macs: what the architecture says that a device computes, see `analytic_macs`.
    """

    batch_size: int
    analytic_macs: float | None


def compile_train(config: Config, mesh: Mesh, phase: str = "joint") -> CompiledStep:
    """Compiles the training step of a phase.

    Raises:
      UserError: the devices cannot share the batch, or a plain network is to train its gates.
      DoesNotFit: a device has too little memory.
    """
    if not (PHASES[phase].moves_rest or config_lib.architecture(config).gated):
        raise UserError("A plain network has no phase gates: name another --phase.")
    size = config.data.batch_size
    sharding.check_batch_size(size, mesh, config.accumulate_steps)
    found = compile_step("train", *train_step(config, mesh, phase), mesh)
    of_image = analytic_macs(config, phase)
    analytic = None if of_image is None else of_image * size / mesh.size
    return CompiledStep(**vars(found), batch_size=size, analytic_macs=analytic)


def train_step(config: Config, mesh: Mesh, phase: str) -> tuple[Any, tuple[Any, ...]]:
    """The jitted training step of a phase, and what it is called with, in shapes and dtypes."""
    state = state_lib.abstract_state(config, phase, STEPS_PER_EPOCH, sharding.replicated(mesh))
    arch = config_lib.architecture(config)
    batch = _abstract_batch(config, config.data.batch_size, mesh, arch)
    return make_train_step(config, phase, STEPS_PER_EPOCH, mesh), (state, batch)


def compile_evaluate(config: Config, mesh: Mesh) -> CompiledStep:
    """Compiles the evaluation step, `eval.batch_size` rounded up to what the devices can share.

    Its multiply-adds are those of S = 1 where every block runs: it skips blocks.

    Raises:
      DoesNotFit: a device has too little memory.
    """
    where = sharding.replicated(mesh)
    state = state_lib.abstract_state(config, "joint", STEPS_PER_EPOCH, where)
    size = -(-config.eval.batch_size // mesh.size) * mesh.size
    arch = config_lib.evaluated(config)
    batch = _abstract_batch(config, size, mesh, arch)
    number = batch["index"]
    scale = jax.ShapeDtypeStruct(number.shape, jnp.float32, sharding=number.sharding)
    step = make_eval_step(config, mesh=mesh)
    images = batch["image"], batch["label"], scale, number
    found = compile_step("evaluate", step, (state.params, state.batch_stats, *images), mesh)
    analytic = arch.cost.full_macs * size / mesh.size
    return CompiledStep(**vars(found), batch_size=size, analytic_macs=analytic)


def analytic_macs(config: Config, phase: str) -> float | None:
    """Multiply-adds of one image in a training step, from the architecture alone.

    None for networks other than residual ones that classify images: of others it is not known which
    layers need what.

    A layer that is trained takes as much again for the gradient of its weights, and every layer but
    the first as much for that of its input. In `gates` only the gates are trained, and neither the
    stem nor the first block needs a gradient; the others carry the loss back to the gates. With
    `distill.weight` an image is seen twice, whole and resized.
    """
    arch = config_lib.architecture(config)
    if not isinstance(arch, Architecture) or isinstance(arch, Dense):
        return None
    cost, own_gates = arch.cost, PHASES[phase].own_gates
    times = 2.0 if own_gates and arch.gated and config.distill.weight > 0 else 1.0
    gates, stem, forward = cost.gate_macs, cost.stem_macs, cost.full_macs
    external_stem = arch.external.cost.stem_macs if arch.external else 0
    if not PHASES[phase].moves_rest:
        first = int(cost.unit_macs[0])
        return times * (2.0 * forward - stem - first + gates - external_stem)
    if not own_gates:
        return 3.0 * (forward - gates) - stem  # Gates are computed neither way.
    return times * (3.0 * forward - stem - external_stem)


def _abstract_batch(
    config: Config, size: int, mesh: Mesh, arch: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch of images as `arch` takes them."""
    where, pixels = sharding.split(mesh), sides(arch.image_size)

    def of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)

    image, number = of(*pixels, arch.image_channels, dtype=jnp.uint8), of()
    label = of(*pixels) if config.data.labels == "map" else number
    return {"image": image, "label": label, "index": number, "epoch": number}


def largest_batch(
    config: Config, mesh: Mesh, phase: str = "joint",
    tell: Callable[[int, bool], None] = lambda batch_size, fits: None,
) -> int:  # fmt: skip
    """The largest global batch whose training step fits, by bisection; 0 if none does.

    A multiple of the devices times `accumulate_steps`, at most MOST_FITTED times that of the
    config. Each try is a compilation; one that fails takes a fraction of one that does not.

    Args:
      config: the run's; its batch size is where the search begins.
      mesh: of `topology_mesh`.
      phase: of the training step.
      tell: hears of each try.
    """
    unit = mesh.size * config.accumulate_steps
    config = config.copy_and_resolve_references()
    most = max(1, MOST_FITTED * config.data.batch_size // unit)
    low, high = 0, most + 1  # What fits, and what does not.
    tried = min(max(1, config.data.batch_size // unit), most)
    while high - low > 1:
        with config.unlocked():
            config.data.batch_size = tried * unit
        try:
            compile_train(config, mesh, phase)
            low = tried
        except DoesNotFit:
            high = tried
        tell(tried * unit, low == tried)
        # Doubled until it does not fit, then halves.
        tried = min(2 * low, most) if high > most else (low + high) // 2
    return low * unit
