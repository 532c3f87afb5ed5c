"""What a run takes on a TPU slice that is not here, found by compiling its steps for it.

python -m urnet_jax.aot --config=configs/imagenet_resnet101.py --topology=v5e:16x16
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from urnet_jax import config as config_lib
from urnet_jax import flops, program, sharding, steps
from urnet_jax import state as state_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.program import Collective

MEMORY_GIB = {
    "TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32, "TPU v6e": 32,
}  # fmt: skip
"""Of a device, by its `device_kind`; the compiler keeps a part of it for itself."""

STEPS_PER_EPOCH = 1000.0
"""The schedules need one; nothing that is found here depends on it."""

MOST_FITTED = 64
"""`largest_batch` looks no further than so many times the config's batch."""


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
      macs: multiply-adds of the compiled program, each loop counted as often as it runs, of the
        branches of a conditional the costliest.
      analytic_macs: what the architecture says that the step takes, see `analytic_macs`.
      collectives: by kind, how many a step runs and the bytes of their results.
    """

    name: str
    batch_size: int
    compile_s: float
    arguments_bytes: int
    temporaries_bytes: int
    outputs_bytes: int
    macs: int
    analytic_macs: float
    collectives: Mapping[str, Collective]

    @property
    def memory_bytes(self) -> int:
        """All that the step holds at once, at most."""
        return self.arguments_bytes + self.temporaries_bytes + self.outputs_bytes


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
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"--topology is {topology!r}, which the TPU compiler does not take ({reason}); name "
            "one as v5e:4x4, v6e:16x16, v5p:4x4x4 or v4:2x2x4."
        ) from error
    return Mesh(np.array(found), ("data",))


def memory_bytes(mesh: Mesh) -> int | None:
    """Memory of a device, None where it is not known."""
    gib = MEMORY_GIB.get(mesh.devices.flat[0].device_kind)
    return None if gib is None else gib * 2**30


def compile_train(config: Config, mesh: Mesh, phase: str = "joint") -> Compiled:
    """Compiles the training step of a phase.

    Raises:
      UserError: the devices cannot share the batch.
      DoesNotFit: a device has too little memory.
    """
    size = config.data.batch_size
    sharding.check_batch_size(size, mesh, config.accumulate_steps)
    state = state_lib.abstract_state(config, phase, STEPS_PER_EPOCH, sharding.replicated(mesh))
    image, number = _abstract_batch(config, size, mesh)
    batch = {"image": image, "label": number, "index": number, "epoch": number}
    step = steps.make_train_step(config, phase, STEPS_PER_EPOCH, mesh)
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
    step = steps.make_eval_step(config, mesh=mesh)
    analytic = flops.network_macs(config_lib.architecture(config)) * size / mesh.size
    arguments = state.params, state.batch_stats, image, number, scale
    return _compile("evaluate", step, mesh, size, analytic, *arguments)


def analytic_macs(config: Config, phase: str) -> float:
    """Multiply-adds of one image in a training step, from the architecture alone.

    A layer that is trained takes as much again for the gradient of its weights, and every layer but
    the first as much for that of its input. In `gates` only the gates are trained, and neither the
    stem nor the first block needs a gradient; the others carry the loss back to the gates.
    """
    arch = config_lib.architecture(config)
    cost = flops.count_macs(arch)
    forward, gates = flops.network_macs(arch), int(cost.gate_macs.sum())
    stem = flops.stem_macs(arch)
    if phase == "gates":
        return 2.0 * forward - stem - int(cost.block_macs[0]) + gates
    if phase == "pretrain":
        forward -= gates  # Computed neither way.
    return 3.0 * forward - stem


def largest_batch(
    config: Config, mesh: Mesh, phase: str = "joint",
    tell: Callable[[int, bool], None] = lambda batch_size, fits: None,
) -> int:  # fmt: skip
    """The largest global batch whose training step fits, by bisection; 0 if none does.

    A multiple of the devices times `accumulate_steps`, at most MOST_FITTED times that of the
    config; per device and part it is found to an eighth, as each try is a compilation.

    Args:
      config: the run's; its batch size is where the search begins.
      mesh: of `make_mesh`.
      phase: of the training step.
      tell: hears of each try.
    """
    unit = mesh.size * config.accumulate_steps
    config = config.copy_and_resolve_references()
    low, high = 0, max(1, MOST_FITTED * config.data.batch_size // unit) + 1
    tried = min(max(1, config.data.batch_size // unit), high - 1)
    while high - low > max(1, low // 8):
        with config.unlocked():
            config.data.batch_size = tried * unit
        try:
            compile_train(config, mesh, phase)
            low = tried
        except DoesNotFit:
            high = tried
        tell(tried * unit, low == tried)
        # Doubled until it does not fit, then halves.
        tried = 2 * low if 0 < 2 * low < high else (low + high) // 2
    return low * unit


def report(
    config: Config, topology: str, *, num_slices: int = 1, phase: str = "joint", fit: bool = False
) -> list[Compiled]:
    """Compiles both steps for a slice and prints what they take.

    Args:
      config: the run's.
      topology: see `make_mesh`.
      num_slices: likewise.
      phase: of the training step.
      fit: find the largest batch that fits first, and take that.

    Returns:
      The training and the evaluation step.

    Raises:
      UserError: see `make_mesh`; or a step does not fit.
    """
    mesh = make_mesh(topology, num_slices)
    if fit:
        config = _fitted(config, mesh, phase)
    try:
        compiled = [compile_train(config, mesh, phase), compile_evaluate(config, mesh)]
    except DoesNotFit as error:
        raise UserError(
            f"The step does not fit on {topology} ({error}): take a smaller batch than "
            f"{config.data.batch_size} (--fit finds the largest that fits), "
            "--config.accumulate_steps or --config.model.dtype=bfloat16."
        ) from error
    console = Console()
    slices = f"{num_slices} slices of {topology}" if num_slices > 1 else topology
    console.print(
        f"{config_lib.architecture(config).describe()}\n{slices}: {mesh.size} devices, "
        f"{mesh.devices.flat[0].device_kind}; compiled for, not run",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    console.print(_table(compiled, mesh))
    return compiled


def _fitted(config: Config, mesh: Mesh, phase: str) -> Config:
    """The config with the largest batch that fits."""

    def tell(size: int, fits: bool) -> None:
        print(f"A batch of {size} {'fits' if fits else 'does not fit'}.")

    size = largest_batch(config, mesh, phase, tell)
    if not size:
        raise UserError(
            "Not even one image per device fits: take a smaller network, or "
            "--config.model.dtype=bfloat16."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.batch_size = size
    return config


def _table(compiled: list[Compiled], mesh: Mesh) -> Table:
    """A column for each step."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("of one device")
    for step in compiled:
        table.add_column(step.name, justify="right")

    def row(name: str, cell: Callable[[Compiled], str]) -> None:
        table.add_row(name, *map(cell, compiled))

    memory = memory_bytes(mesh)
    row("images (of all devices)", lambda s: f"{s.batch_size // mesh.size} ({s.batch_size})")
    row("arguments, MiB", lambda s: f"{s.arguments_bytes / 2**20:.1f}")
    row("temporaries, MiB", lambda s: f"{s.temporaries_bytes / 2**20:.1f}")
    row("outputs, MiB", lambda s: f"{s.outputs_bytes / 2**20:.1f}")
    if memory:
        share = f"of its {memory / 2**30:g} GiB, %"
        row(share, lambda s: f"{100 * s.memory_bytes / memory:.1f}")
    row("FLOPs, G", lambda s: f"{2e-9 * s.macs:.2f}")
    row("of the analytic count, %", lambda s: f"{100 * s.macs / s.analytic_macs:.1f}")
    for kind in program.COLLECTIVES:
        if any(kind in step.collectives for step in compiled):
            row(f"{kind}, times: MiB", lambda s, kind=kind: _exchanged(s.collectives.get(kind)))
    row("compilation, s", lambda s: f"{s.compile_s:.0f}")
    return table


def _exchanged(collective: Collective | None) -> str:
    return f"{collective.count}: {collective.bytes / 2**20:.2f}" if collective else "-"


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
    cost = program.count(str(compiled.as_text()))
    return Compiled(
        name=name,
        batch_size=batch_size,
        compile_s=took,
        arguments_bytes=memory.argument_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        outputs_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        macs=cost.macs,
        analytic_macs=analytic,
        collectives=cost.collectives,
    )


if __name__ == "__main__":
    from urnet_jax.cli import run_aot

    run_aot()
