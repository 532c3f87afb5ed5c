"""Time of inference against FLOPs: does the clock follow the blocks that gates skip?

    python benchmarks/inference.py [--networks=resnet110] [--batch_sizes=1,128] ...

--networks         of resnet20, resnet110 (32 px), resnet50 and resnet101 (224 px); default: the
                   last three
--batch_sizes      default: 1,8,32,128
--usages           shares of blocks that run, from 0 to 1; default: 0,0.25,0.5,0.75,1
--executions       of auto, dense, cond, compact, pieces and filters; default: auto
--dtype            float32 (default), bfloat16 or both, separated by a comma
--repeats          timed rounds over all cases of a group; default: 7
--check            compares every execution's logits with dense's before it is timed (default)
--compile          also compares compile times of ResNet-20 and ResNet-110 (default)
--torch            also times PyTorch, dense and dropping blocks (default)
--torch_compile    also times PyTorch's dense network through torch.compile (default)
--trained_workdir  also times this run's checkpoint, whose gates follow S, on real test images
--data_dir         where that run's data lies; without it the run is left out, unless it is digits
--output           the folder for the results; default: runs/benchmarks/inference; what is to be
                   kept in the repository: results/inference
--fresh            measures again what is there already
--time_limit_s     after these seconds no further group is started

A group is a network with a batch size and a dtype. Its cases are timed in turn, and its results are
written when it is done: the same command goes on where it was stopped.
"""

import dataclasses
import functools
import itertools
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from benchmarks import inference_cases, inference_networks, inference_report, results, timing
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.nets.mode import EXECUTIONS

TRAINED_SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)
COMPILE_BATCH = 128
COMPILATIONS = 3
INTERRUPTED = "Interrupted: the same command goes on where it stopped."


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is timed in turn and written together; `batch_size` 0 is that of the compile times."""

    network: str
    batch_size: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch_size}, {self.dtype}"


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user(INTERRUPTED), timing.without_compilation_cache():
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, **settings: Any) -> None:
        kind(name, default, "", flag_values=values, **settings)

    define(flags.DEFINE_list, "networks", ["resnet110", "resnet50", "resnet101"])
    define(flags.DEFINE_list, "batch_sizes", ["1", "8", "32", "128"])
    define(flags.DEFINE_list, "usages", ["0", "0.25", "0.5", "0.75", "1"])
    define(flags.DEFINE_list, "executions", ["auto"])
    define(flags.DEFINE_list, "dtype", ["float32"])
    define(flags.DEFINE_integer, "repeats", 7, lower_bound=1)
    for name in ("check", "compile", "torch", "torch_compile"):
        define(flags.DEFINE_boolean, name, True)
    define(flags.DEFINE_string, "trained_workdir", "")
    define(flags.DEFINE_string, "data_dir", "")
    results.define_flags(values, "inference")
    timing.parse_flags(values, argv, __doc__ or "")
    check_choices("networks", values.networks, tuple(inference_networks.NETWORKS))
    check_choices("executions", values.executions, EXECUTIONS)
    check_choices("dtype", values.dtype, ("float32", "bfloat16"))
    values.batch_sizes = numbers("batch_sizes", values.batch_sizes, int, 1, 1 << 20)
    values.usages = numbers("usages", values.usages, float, 0, 1)
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Times every group that the flags ask for and that has not been timed; returns the file."""
    if values.torch:
        from benchmarks import torch_networks

        torch_networks.device_name(jax.devices()[0].platform)
    path, record = results.measure(_groups(values), values)
    inference_report.print_table(record["rows"])
    print(path, *inference_report.write_plot(record, path.with_suffix(".png")), sep="\n")
    return path


def _groups(values: flags.FlagValues) -> Iterator[results.Group]:
    for kind in _kinds(values):
        yield str(kind), _settings(values, kind), functools.partial(measure, kind, values)


def _kinds(values: flags.FlagValues) -> Iterator[Kind]:
    if values.compile:
        for dtype in values.dtype:
            yield Kind("compile", COMPILE_BATCH, dtype)
    for network, dtype, batch in itertools.product(
        values.networks, values.dtype, values.batch_sizes
    ):
        yield Kind(network, batch, dtype)
    if values.trained_workdir and _has_images(values):
        for dtype, batch in itertools.product(values.dtype, values.batch_sizes):
            yield Kind("trained", batch, dtype)


def _has_images(values: flags.FlagValues) -> bool:
    from urnet_jax.runs import checkpoint

    meta = checkpoint.newest_meta(values.trained_workdir)
    if meta is None or values.data_dir or meta.config.data.name == "digits":
        # Whatever is wrong with it shows now, not after hours.
        inference_cases.open_run(values.trained_workdir, values.data_dir)
        return True
    print(
        f"--trained_workdir is left out: without real images of {meta.config.data.name} its gates "
        "mean nothing; give --data_dir."
    )
    return False


def _settings(values: flags.FlagValues, kind: Kind) -> dict[str, Any]:
    if kind.network == "compile":
        return {}
    settings = {"executions": values.executions, "repeats": values.repeats, "check": values.check}
    settings |= {"torch": values.torch, "torch_compile": values.torch and values.torch_compile}
    if kind.network == "trained":
        return settings | {"workdir": values.trained_workdir, "usages": list(TRAINED_SCALES)}
    return settings | {"usages": values.usages}


def measure(kind: Kind, values: flags.FlagValues) -> tuple[list[dict], dict[str, str]]:
    """The group's rows, and what there is to say of it."""
    try:
        if kind.network == "compile":
            return compile_rows(kind), {}
        return forward_rows(kind, values)
    except (RuntimeError, MemoryError) as error:
        if not re.search(r"RESOURCE_EXHAUSTED|out of memory|MemoryError", repr(error), re.I):
            raise
        return [], {"left out": "it does not fit into the device's memory"}


def forward_rows(kind: Kind, values: flags.FlagValues) -> tuple[list[dict], dict[str, str]]:
    """Times of a network: a row per execution, usage and kind of gates; and notes."""
    batch, dtype = kind.batch_size, kind.dtype
    if kind.network == "trained":
        subject = inference_cases.trained_subject(
            values.trained_workdir, values.data_dir, batch, dtype, TRAINED_SCALES
        )
    else:
        subject = inference_cases.drawn_subject(kind.network, batch, dtype, values.usages)
    cases, notes = inference_cases.jax_cases(subject, values.executions, values.check), {}
    if "torch" in values and values.torch:  # Not for dense prediction.
        from benchmarks import inference_torch

        found, notes = inference_torch.cases(subject, values.torch_compile)
        cases += found
    with tqdm(
        total=values.repeats + 1, desc=str(kind), unit="round", disable=None, leave=False
    ) as bar:
        times = timing.interleaved_times_ms(
            {str(i): case.run for i, case in enumerate(cases)}, values.repeats,
            after_round=bar.update,
        )  # fmt: skip
    dense_ms = {
        case.row["framework"]: times[str(i)]
        for i, case in enumerate(cases)
        if case.gates == ("all on",) and case.row["execution"] == "dense"
    }
    rows = []
    for i, case in enumerate(cases):
        reference = dense_ms[case.row["framework"]]
        p25, median, p75 = np.percentile(times[str(i)], (25, 50, 75))
        # Of times of the same round: the machine's own speed drops out.
        low, share, high = np.percentile(times[str(i)] / reference, (25, 50, 75))
        for gates in case.gates:
            row = {"kind": "forward", "network": subject.name}
            row |= {"batch_size": batch, "dtype": dtype, "gates": gates, **case.row}
            row |= {"median_ms": median, "p25_ms": p25, "p75_ms": p75}
            row |= {"time_share": share, "time_share_p25": low, "time_share_p75": high}
            row |= {"dense_ms": np.median(reference), "repeats": values.repeats}
            rows.append(row)
    return rows, notes


def compile_rows(kind: Kind) -> list[dict[str, Any]]:
    """Seconds of compiling the gated ResNet-20 and ResNet-110, gates computed inside, in turn."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(COMPILATIONS):
        for execution in ("dense", "compact", "pieces"):
            for name in ("resnet20", "resnet110"):
                seconds = inference_cases.compile_seconds(
                    name, kind.batch_size, kind.dtype, execution
                )
                found.setdefault((name, execution), []).append(seconds)
    rows = []
    for (name, execution), seconds in found.items():
        row = {"kind": "compile", "network": name}
        row |= {"batch_size": kind.batch_size, "dtype": kind.dtype, "framework": "jax"}
        row |= {"execution": execution, "compile_s": np.median(seconds), "all_s": seconds}
        row["to_resnet20"] = np.median(seconds) / np.median(found["resnet20", execution])
        rows.append(row)
    return rows


def parse_cases(
    values: flags.FlagValues, argv: list[str], doc: str, benchmark: str, networks: Sequence[str],
    batch_sizes: Sequence[str],
) -> None:  # fmt: skip
    """Adds what benchmarks of gates that are drawn have in common, and parses all flags.

    Args:
      values: with the benchmark's own flags.
      argv: of the command.
      doc: what --help prints.
      benchmark: its name.
      networks: that --networks chooses from; by default all.
      batch_sizes: by default.

    Raises:
      UserError: one of them is not usable.
    """

    def define(kind: Any, name: str, default: Any, **settings: Any) -> None:
        kind(name, default, "", flag_values=values, **settings)

    define(flags.DEFINE_list, "networks", list(networks))
    define(flags.DEFINE_list, "batch_sizes", list(batch_sizes))
    define(flags.DEFINE_list, "usages", ["0.25", "0.5", "0.75", "1"])
    define(flags.DEFINE_list, "executions", ["auto"])
    define(flags.DEFINE_string, "dtype", "float32")
    define(flags.DEFINE_integer, "repeats", 5, lower_bound=1)
    define(flags.DEFINE_boolean, "check", True)
    results.define_flags(values, benchmark)
    timing.parse_flags(values, argv, doc)
    check_choices("networks", values.networks, networks)
    check_choices("executions", values.executions, EXECUTIONS)
    check_choices("dtype", [values.dtype], ("float32", "bfloat16"))
    values.batch_sizes = numbers("batch_sizes", values.batch_sizes, int, 1, 1 << 20)
    values.usages = numbers("usages", values.usages, float, 0, 1)


def check_choices(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuses a flag's values that are none, or not all known."""
    if not given or not set(given) <= set(known):
        raise UserError(
            f"--{name} is {','.join(given)!r}; expected one or more of {', '.join(known)}, "
            "separated by commas."
        )


def numbers(name: str, given: Sequence[str], kind: type, low: float, high: float) -> list:
    """A flag's numbers; refuses what is none, or beyond the ends."""
    try:
        numbers = [kind(text) for text in given]
    except ValueError:
        numbers = []
    if not numbers or not all(low <= number <= high for number in numbers):
        raise UserError(
            f"--{name} is {','.join(given)!r}; expected numbers from {low} to {high}, separated by "
            "commas."
        )
    return numbers


if __name__ == "__main__":
    main(sys.argv)
