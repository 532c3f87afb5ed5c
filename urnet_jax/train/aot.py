"""What a run takes on a TPU slice that is not here: tables of its compiled steps.

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
from urnet_jax.xla import program
from urnet_jax.xla.compiled import (
    Compiled,
    DoesNotFit,
    compile_evaluate,
    compile_train,
    make_mesh,
    memory_bytes,
)
from urnet_jax.xla.program import Collective

MOST_FITTED = 64
"""`largest_batch` looks no further than so many times the config's batch."""


def largest_batch(
    config: Config, mesh: Mesh, phase: str = "joint",
    tell: Callable[[int, bool], None] = lambda batch_size, fits: None,
) -> int:  # fmt: skip
    """The largest global batch whose training step fits, by bisection; 0 if none does.

    A multiple of the devices times `accumulate_steps`, at most MOST_FITTED times that of the
    config. Each try is a compilation; one that fails takes a fraction of one that does not.

    Args:
      config: the run's; its batch size is where the search begins.
      mesh: of `make_mesh`.
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
    print("Compiling the steps for training and evaluation: minutes.", flush=True)
    try:
        compiled = [compile_train(config, mesh, phase)]
    except DoesNotFit as error:
        raise UserError(
            f"The training step does not fit on {topology} ({error}): take a smaller batch than "
            f"{config.data.batch_size} (--fit finds the largest that fits), "
            "--config.accumulate_steps or --config.model.dtype=bfloat16."
        ) from error
    try:
        compiled.append(compile_evaluate(config, mesh))
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

    size = largest_batch(config, mesh, phase, tell)
    if not size:
        raise UserError(
            "Not even one image per device fits: take a smaller network, or "
            "--config.model.dtype=bfloat16."
        )
    print(
        f"The largest batch that fits is {size}; up to {MOST_FITTED} times the config's "
        f"{config.data.batch_size} are tried."
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
        lambda s: _unless_unknown(s.macs, lambda macs: f"{100 * macs / s.analytic_macs:.1f}"),
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
