"""Steps compiled for devices that need not be here, and what they take of those."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from urnet_jax.errors import UserError
from urnet_jax.xla import program, sharding
from urnet_jax.xla.program import Collective

MEMORY_GIB = {
    "TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32, "TPU v6e": 32,
}  # fmt: skip
"""Of a device, by its `device_kind`; the compiler keeps a part of it for itself."""

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
      name: the step's.
      compile_s: seconds to trace and compile.
      arguments_bytes: of all that the step is called with.
      temporaries_bytes: of what lives within the step.
      outputs_bytes: of results that do not take the place of arguments.
      program_bytes: of the compiled code.
      macs: multiply-adds of the compiled program, each loop counted as often as it runs, of the
        branches of a conditional the costliest; None where the compiler's text does not tell.
      collectives: by kind, how many a step runs and the bytes of their results; None likewise.
    """

    name: str
    compile_s: float
    arguments_bytes: int
    temporaries_bytes: int
    outputs_bytes: int
    program_bytes: int
    macs: int | None
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


def topology_mesh(topology: str, num_slices: int = 1) -> Mesh:
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


def compile_step(name: str, step: Any, arguments: Sequence[Any], mesh: Mesh) -> Compiled:
    """Compiles a jitted step.

    Args:
      name: of the step.
      step: what `jax.jit` gives.
      arguments: in shapes and dtypes (`jax.ShapeDtypeStruct`), each with its sharding on the mesh.
      mesh: the devices that it is compiled for.

    Raises:
      DoesNotFit: a device has too little memory.
    """
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
        compile_s=took,
        arguments_bytes=memory.argument_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        outputs_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        macs=cost and cost.macs,
        collectives=cost and cost.collectives,
    )
