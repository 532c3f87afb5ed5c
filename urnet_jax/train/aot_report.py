"""What a run takes on a TPU slice that is not here, printed as a table.

As a command: `urnet aot --help`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.train import aot
from urnet_jax.train.aot import CompiledStep
from urnet_jax.xla import program
from urnet_jax.xla.compiled import DoesNotFit, memory_bytes, topology_mesh
from urnet_jax.xla.program import Collective


def report(
    config: Config, topology: str, *, num_slices: int = 1, phase: str = "joint", fit: bool = False
) -> list[CompiledStep]:
    """Compiles both steps for a slice and prints what they take.

    Args:
      config: the run's.
      topology: see `topology_mesh`.
      num_slices: likewise.
      phase: of the training step.
      fit: find the largest batch that fits first, and take that.

    Returns:
      The training and the evaluation step.

    Raises:
      UserError: see `topology_mesh`; or a step does not fit.
    """
    mesh = topology_mesh(topology, num_slices)
    if fit:
        config = _fitted(config, mesh, phase)
    print("Compiling the steps for training and evaluation: minutes.", flush=True)
    try:
        compiled = [aot.compile_train(config, mesh, phase)]
    except DoesNotFit as error:
        raise UserError(
            f"The training step does not fit on {topology} ({error}): take a smaller batch than "
            f"{config.data.batch_size} (--fit finds the largest that fits), "
            "--config.accumulate_steps or --config.model.dtype=bfloat16."
        ) from error
    try:
        compiled.append(aot.compile_evaluate(config, mesh))
    except DoesNotFit as error:
        raise UserError(
            f"The evaluation step does not fit on {topology} ({error}): set "
            f"--config.eval.batch_size below {config.eval.batch_size}."
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
        print(f"A batch of {size} {'fits' if fits else 'does not fit'}.", flush=True)

    size = aot.largest_batch(config, mesh, phase, tell)
    if not size:
        raise UserError(
            "Not even one image per device fits: take a smaller network, or "
            "--config.model.dtype=bfloat16."
        )
    print(
        f"The largest batch that fits is {size}; up to {aot.MOST_FITTED} times the config's "
        f"{config.data.batch_size} are tried."
    )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.batch_size = size
    return config


def _table(compiled: list[CompiledStep], mesh: Mesh) -> Table:
    """A column for each step."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("of one device")
    for step in compiled:
        table.add_column(step.name, justify="right")

    def row(name: str, cell: Callable[[CompiledStep], str]) -> None:
        table.add_row(name, *map(cell, compiled))

    memory = memory_bytes(mesh)
    row("images (of all devices)", lambda s: f"{s.batch_size // mesh.size} ({s.batch_size})")
    row("arguments, MiB", lambda s: f"{s.arguments_bytes / 2**20:.1f}")
    row("temporaries, MiB", lambda s: f"{s.temporaries_bytes / 2**20:.1f}")
    row("outputs, MiB", lambda s: f"{s.outputs_bytes / 2**20:.1f}")
    row("program, MiB", lambda s: f"{s.program_bytes / 2**20:.1f}")
    if memory:
        # The compiler keeps some of it: what just fits is a little below 100 %.
        share = f"all, of its {memory / 2**30:g} GiB, %"
        row(share, lambda s: f"{100 * s.memory_bytes / memory:.1f}")
    else:
        row("all, MiB", lambda s: f"{s.memory_bytes / 2**20:.1f}")
    row("FLOPs, G", lambda s: _unless_unknown(s.macs, lambda macs: f"{2e-9 * macs:.2f}"))
    row(
        "of the analytic count, %",
        lambda s: _unless_unknown(_share_percent(s), lambda share: f"{share:.1f}"),
    )
    for kind in program.COLLECTIVES:
        if any(step.collectives is None or kind in step.collectives for step in compiled):
            row(f"{kind}, times: MiB", lambda s, kind=kind: _exchanged(s.collectives, kind))
    row("compilation, s", lambda s: f"{s.compile_s:.0f}")
    return table


def _exchanged(collectives: Mapping[str, Collective] | None, kind: str) -> str:
    def cell(found: Mapping[str, Collective]) -> str:
        return f"{found[kind].count}: {found[kind].bytes / 2**20:.2f}" if kind in found else "-"

    return _unless_unknown(collectives, cell)


def _unless_unknown(value: Any, cell: Callable[[Any], str]) -> str:
    return "unknown" if value is None else cell(value)


def _share_percent(step: CompiledStep) -> float | None:
    """What the program computes of what the architecture says."""
    if step.macs is None or step.analytic_macs is None:
        return None
    return 100 * step.macs / step.analytic_macs
