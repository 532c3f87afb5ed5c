"""What the benchmarks record, and how a benchmark that was stopped goes on."""

import datetime
import itertools
import json
import operator
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import flax
import jax
import jaxlib
from absl import flags
from etils import epath

import urnet_jax
from benchmarks import timing
from urnet_jax.errors import make_folder

Row: TypeAlias = dict[str, Any]

MOST_BUSY = 0.05
"""Share of the CPU that other processes may take without a word."""

ENVIRONMENT = ("GLIBC_TUNABLES", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_FLAGS")
"""Environment variables that change times."""

Measure: TypeAlias = Callable[[], tuple[list[Row], dict[str, str]]]
"""Measures a group: its rows, and what there is to say of it."""

Group: TypeAlias = tuple[str, Row, Measure]
"""What is measured together: its name, the settings that it depends on, and how."""


def default_output(benchmark: str) -> str:
    """Where a benchmark writes unless it is told otherwise: never over the record in results/."""
    return f"runs/benchmarks/{benchmark}"


def define_flags(values: flags.FlagValues, benchmark: str) -> None:
    """Defines the flags that `measure` reads."""
    flags.DEFINE_string("output", default_output(benchmark), "", flag_values=values)
    flags.DEFINE_boolean("fresh", False, "", flag_values=values)
    flags.DEFINE_float("time_limit_s", float("inf"), "", lower_bound=0.0, flag_values=values)


def measure(
    groups: Iterable[Group],
    values: flags.FlagValues,
    *,
    timed: bool = True,
    device: dict[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    same: Callable[[Row, Row], bool] = operator.eq,
) -> tuple[epath.Path, Row]:
    """Measures the groups that have not been measured with their settings.

    The file is written after every group, so that the same command goes on where it was stopped.

    Args:
      groups: in the order in which they are measured.
      values: flags `output`, the folder; `fresh`, to measure again what is there; `time_limit_s`,
        after which no further group is started.
      timed: whether it matters that other processes are at work.
      device: of `describe_device`, by default asked for here.
      about: what the file also says, of all groups.
      same: whether settings that are recorded are those that are asked for now.

    Returns:
      The file, named after the device, and what it holds: `device`, `about`, `runs` (commands,
      dates, versions), `groups`, and `rows`, each with the `group` and the number of the `run`
      that it comes from.
    """
    make_folder(values.output, "--output")
    device, start = device or describe_device(), time.monotonic()
    path = record_path(values.output, device)
    record: Row = {"device": device, "runs": [], "groups": [], "rows": []}
    if path.exists():
        record = json.loads(path.read_text())
    record |= about or {}
    run = describe_run()
    if run not in record["runs"]:
        record["runs"].append(run)
    machine = {"platform": device["platform"], "device": device["kind"]}
    machine |= {"threads": device["threads"], "run": record["runs"].index(run)}
    for name, settings, measure_group in groups:
        held = [g for g in record["groups"] if g["group"] == name]
        if held and same(held[0]["settings"], settings) and not values.fresh:
            print(f"{name}: measured already; --fresh measures it again.")
            continue
        if time.monotonic() - start > values.time_limit_s:
            print(f"--time_limit_s is over before {name}: the same command goes on from there.")
            break
        others, began = timing.OtherProcesses(), time.monotonic()
        rows, notes = measure_group()
        took = time.monotonic() - began
        entry = {"group": name, "settings": settings, "run": machine["run"], "notes": notes}
        entry |= _busy(others, notes) if timed else {}
        record["groups"] = [g for g in record["groups"] if g["group"] != name] + [entry]
        record["rows"] = [r for r in record["rows"] if r["group"] != name]
        record["rows"] += [{"group": name, **row, **machine} for row in rows]
        write_json(path, record)
        print("; ".join([f"{name}: {took:.0f} s", *(f"{k}: {v}" for k, v in notes.items())]))
    return path, record


def _busy(others: timing.OtherProcesses, notes: dict[str, str]) -> Row:
    """What a timed group's entry says of other processes; a note where they took too much."""
    busy = others.busy_share()
    if busy is not None and busy > MOST_BUSY:
        notes["busy"] = (
            f"other processes took {100 * busy:.0f} % of the CPU and these times are not worth "
            "keeping; measure again with --fresh when they are done"
        )
    return {"other_processes_cpu_share": busy}


def record_path(output: str, device: Mapping[str, Any]) -> epath.Path:
    """Where `measure` records what was measured on a device."""
    return epath.Path(output) / f"{device_slug(device)}.json"


def describe_device() -> dict[str, Any]:
    """The device that JAX runs on: platform, kind, and the processor's name, cores and threads."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "threads": timing.threads(),
    }


def device_slug(device: Mapping[str, Any]) -> str:
    """A file name for `describe_device`'s answer, as cpu_amd_epyc_2_threads or nvidia_h100_pcie."""
    name = device["kind"]
    if device["platform"] == "cpu":
        name = f"cpu {device['processor']} {device['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def describe_run() -> dict[str, Any]:
    """The command, its environment, the day and the versions (PyTorch's if it is loaded)."""
    modules: list[Any] = [urnet_jax, jax, jaxlib, flax]
    if "torch" in sys.modules:
        modules.append(sys.modules["torch"])
    return {
        "command": shlex.join(["python", *sys.argv]),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {module.__name__: str(module.__version__) for module in modules},
    }


def write_json(path: epath.PathLike, record: Mapping[str, Any]) -> None:
    """Writes an object, a line for every entry of its lists.

    The file is replaced as a whole: an interruption leaves the old one or the new one.
    """
    lines = [f" {json.dumps(key)}: {_rows(value)}" for key, value in record.items()]
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    temporary.replace(path)


def _rows(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(rounded(value), allow_nan=False)
    rows = [json.dumps(rounded(row), allow_nan=False) for row in value]
    return "[\n" + ",\n".join(f"  {row}" for row in rows) + "\n ]"


def rounded(value: Any) -> Any:
    """With numbers of eight digits, which is more than a clock gives."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = itertools.chain(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        [os.uname().machine if hasattr(os, "uname") else "unknown"],
    )
    return next(names)
