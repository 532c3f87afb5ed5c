"""Steps compiled for devices that need not be here, and what they take of them."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.train import state as state_lib
from urnet_jax.train.step import make_train_step
from urnet_jax.xla import program, sharding
from urnet_jax.xla.program import Collective

MEMORY_GIB = {
    "TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32, "TPU v6e": 32,
}  # fmt: skip
"""Of a device, by its `device_kind`; the compiler keeps a part of it for itself."""

STEPS_PER_EPOCH = 1000.0
"""The schedules need one; nothing that is found here depends on it."""

_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Compilers may run side by side.
}
"""What the TPU library otherwise asks its surroundings for, and complains that they do not know."""


class DoesNotFit(Exception):
    """A step needs more memory than a device has; the message is the compiler's."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step as it was compiled; quantities are those of one device.

    Attributes:
      name: `train` or `evaluate`.
      batch_size: of all devices.
      compile_s: seconds to trace and compile.
      arguments_bytes: of state and batch.
      temporaries_bytes: of what lives within the step.
      outputs_bytes: of results that do not take the place of arguments.
      program_bytes: of the compiled code.
      macs: multiply-adds of the compiled program, each loop counted as often as it runs, of the
        branches of a conditional the costliest; None where the compiler's text does not tell.
      analytic_macs: what the architecture says that the step takes, see `analytic_macs`.
      collectives: by kind, how many a step runs and the bytes of their results; None likewise.
    """

    name: str
    batch_size: int
    compile_s: float
    arguments_bytes: int
    temporaries_bytes: int
    outputs_bytes: int
    program_bytes: int
    macs: int | None
    analytic_macs: float
    collectives: Mapping[str, Collective] | None

    @property
    def memory_bytes(self) -> int:
        """All that the step holds at once, at most."""
        in_step = self.arguments_bytes + self.temporaries_bytes + self.outputs_bytes
        return in_step + self.program_bytes


def without_tpu() -> None:
    """Keeps JAX in this process from looking for a TPU; to be called before it has any device."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)


def make_mesh(topology: str, num_slices: int = 1) -> Mesh:
    """The devices of a TPU slice that need not be there.

    Args:
      topology: a generation and its shape, as v5e:4x4 or v4:2x2x4.
      num_slices: of that topology, joined by the data-centre network.

    Raises:
      UserError: the TPU compiler is not installed or does not know the topology.
    """
    # A chip of v4 has two cores that make one device; elsewhere that is the default.
    settings: dict[str, Any] = {"chip_config_name": "megacore"} if topology[:2] == "v4" else {}
    if num_slices > 1:
        settings["num_slices"] = num_slices
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "Compiling for a TPU needs its compiler, which is not installed: "
            "`pip install '.[tpu]'`."
        ) from error
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **settings
        ).devices
    except Exception as error:  # Whatever the compiler's plugin raises for a name.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"--topology is {topology!r}, which the TPU compiler does not take ({reason}); name "
            "one as v5e:4x4, v6e:16x16, v5p:4x4x4 or v4:2x2x4."
        ) from error
    return Mesh(sharding.in_order(found), ("data",))


def memory_bytes(mesh: Mesh) -> int | None:
    """Memory of a device, None where it is not known."""
    gib = MEMORY_GIB.get(mesh.devices.flat[0].device_kind)
    return None if gib is None else gib * 2**30


def compile_train(config: Config, mesh: Mesh, phase: str = "joint") -> Compiled:
    """Compiles the training step of a phase.

    Raises:
      UserError: the devices cannot share the batch, or a plain network is to train its gates.
      DoesNotFit: a device has too little memory.
    """
    if phase == "gates" and not config.model.gated:
        raise UserError("A plain network has no phase gates: name another --phase.")
    size = config.data.batch_size
    sharding.check_batch_size(size, mesh, config.accumulate_steps)
    state = state_lib.abstract_state(config, phase, STEPS_PER_EPOCH, sharding.replicated(mesh))
    image, number = _abstract_batch(config, size, mesh)
    batch = {"image": image, "label": number, "index": number, "epoch": number}
    step = make_train_step(config, phase, STEPS_PER_EPOCH, mesh)
    analytic = analytic_macs(config, phase) * size / mesh.size
    return _compile("train", step, mesh, size, analytic, state, batch)


def compile_evaluate(config: Config, mesh: Mesh) -> Compiled:
    """Compiles the evaluation step, `eval.batch_size` rounded up to what the devices can share.

    Its multiply-adds are those of S = 1 where every block runs: it skips blocks.

    Raises:
      DoesNotFit: a device has too little memory.
    """
    where = sharding.replicated(mesh)
    state = state_lib.abstract_state(config, "joint", STEPS_PER_EPOCH, where)
    size = -(-config.eval.batch_size // mesh.size) * mesh.size
    image, number = _abstract_batch(config, size, mesh)
    scale = jax.ShapeDtypeStruct(number.shape, jnp.float32, sharding=number.sharding)
    step = make_eval_step(config, mesh=mesh)
    analytic = config_lib.architecture(config).cost.full_macs * size / mesh.size
    arguments = state.params, state.batch_stats, image, number, scale, number
    return _compile("evaluate", step, mesh, size, analytic, *arguments)


def analytic_macs(config: Config, phase: str) -> float:
    """Multiply-adds of one image in a training step, from the architecture alone.

    A layer that is trained takes as much again for the gradient of its weights, and every layer but
    the first as much for that of its input. In `gates` only the gates are trained, and neither the
    stem nor the first block needs a gradient; the others carry the loss back to the gates.
    """
    arch = config_lib.architecture(config)
    cost = arch.cost
    gates, stem, forward = cost.gate_macs, cost.stem_macs, cost.full_macs
    external_stem = arch.external.cost.stem_macs if arch.external else 0
    if phase == "gates":
        return 2.0 * forward - stem - int(cost.unit_macs[0]) + gates - external_stem
    if phase == "pretrain":
        return 3.0 * (forward - gates) - stem  # Gates are computed neither way.
    return 3.0 * forward - stem - external_stem


def _abstract_batch(
    config: Config, size: int, mesh: Mesh
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """A batch's images, and one integer for each."""
    arch, where = config_lib.architecture(config), sharding.split(mesh)
    shape = size, arch.image_size, arch.image_size, arch.image_channels
    return (
        jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=where),
        jax.ShapeDtypeStruct((size,), jnp.int32, sharding=where),
    )


def _compile(
    name: str, step: Any, mesh: Mesh, batch_size: int, analytic: float, *arguments: Any
) -> Compiled:
    start = time.perf_counter()
    lowered = step.trace(*arguments).lower(lowering_platforms=(sharding.platform(mesh),))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(str(error).strip().splitlines()[0]) from error
    took, memory = time.perf_counter() - start, compiled.memory_analysis()
    try:
        cost = program.count(str(compiled.as_text()))
    except ValueError:  # Another compiler, whose text is not what `program` knows.
        cost = None
    return Compiled(
        name=name,
        batch_size=batch_size,
        compile_s=took,
        arguments_bytes=memory.argument_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        outputs_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        macs=cost and cost.macs,
        analytic_macs=analytic,
        collectives=cost and cost.collectives,
    )
