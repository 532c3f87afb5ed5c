"""What training takes on TPU slices, and how its speed is predicted to grow with them.

    python benchmarks/scaling.py [--config=imagenet_resnet101] [--topologies=v5e:4x4,...] ...

--config            whose steps are compiled; default: imagenet_resnet101
--topologies        slices; default: v5e:4x4,v5e:8x8,v5e:16x16,v4:2x2x4,v5p:2x2x4
--images            per chip; default: 64
--dtype             bfloat16 (default) or float32
--accumulate_steps  default: 1
--evaluate          also compiles the evaluation step
--input_rate        images/s that one core decodes, from input.py; default: 0, not considered
--output            the folder for the results; default: runs/benchmarks/scaling; what is to be
                    kept in the repository: results/scaling
--fresh             compiles again what is there already
--time_limit_s      after these seconds nothing further is started

Steps are compiled for slices that are not here: memory, FLOPs and collectives are the compiler's,
times are a model's (step_model.py). It needs no TPU, only '.[tpu]'. The same command goes on where
it was stopped.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import matplotlib.pyplot as plt
from absl import flags
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results, step_model, timing
from benchmarks.results import Row
from urnet_jax import config as config_lib
from urnet_jax.errors import told_to_the_user
from urnet_jax.evaluate.figures import to_png
from urnet_jax.train import aot
from urnet_jax.train import state as state_lib
from urnet_jax.xla import compiled

TOPOLOGIES = ["v5e:4x4", "v5e:8x8", "v5e:16x16", "v4:2x2x4", "v5p:2x2x4"]
PARTS = ("compute", "sums", "latency", "input")
PREDICTED_CHIPS = (8, 16, 32, 64, 128, 256, 512, 1024)


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    compiled.without_tpu()
    with told_to_the_user("Interrupted: the same command goes on where it stopped."):
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", "imagenet_resnet101", "", flag_values=values)
    flags.DEFINE_list("topologies", TOPOLOGIES, "", flag_values=values)
    flags.DEFINE_integer("images", 64, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("dtype", "bfloat16", "", flag_values=values)
    flags.DEFINE_integer("accumulate_steps", 1, "", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("evaluate", False, "", flag_values=values)
    flags.DEFINE_float("input_rate", 0.0, "", lower_bound=0.0, flag_values=values)
    results.define_flags(values, "scaling")
    timing.parse_flags(values, argv, __doc__ or "")
    config_lib.validate(_config(values, 1))
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Compiles what has not been compiled, and predicts; returns the results' file."""
    path, record = results.measure(_groups(values), values, timed=False)
    rows = record["rows"]
    print_compiled(rows)
    if base := _base(rows, values):
        predictions = predict(base, values)
        title = f"{base['config']}, {base['images_per_device']} images a chip, {base['dtype']}: "
        title += "predicted, not measured"
        print_predictions(predictions, title)
        figure = plot(predictions, title)
        path.with_suffix(".png").write_bytes(to_png(figure))
        plt.close(figure)
    print(path)
    return path


def _config(values: flags.FlagValues, chips: int) -> Any:
    config = config_lib.load(values.config)
    size = values.images * values.accumulate_steps * chips
    config.data.batch_size = config.eval.batch_size = size
    config.accumulate_steps, config.model.dtype = values.accumulate_steps, values.dtype
    return config


def _groups(values: flags.FlagValues) -> Any:
    compilers = {"train": aot.compile_train, "evaluate": aot.compile_evaluate}
    if not values.evaluate:
        del compilers["evaluate"]
    for topology in values.topologies:
        for step, compile_step in compilers.items():
            name = f"{values.config}, {topology}, {step}, {values.images} images a chip"
            if values.accumulate_steps > 1:
                name += f" in each of {values.accumulate_steps} parts"
            rows = functools.partial(compiled_rows, topology, values, compile_step)
            yield f"{name}, {values.dtype}", {}, rows


def compiled_rows(
    topology: str, values: flags.FlagValues, compile_step: Callable[..., aot.CompiledStep]
) -> tuple[list[Row], dict[str, str]]:
    """What a step takes on a slice, or in `does_not_fit` what the compiler says; and no notes."""
    mesh = compiled.topology_mesh(topology)
    config = _config(values, mesh.size)
    state = state_lib.abstract_state(config, "joint", aot.STEPS_PER_EPOCH)
    row: Row = {
        "config": values.config, "topology": topology, "devices": mesh.size,
        "device_memory_bytes": compiled.memory_bytes(mesh), "dtype": values.dtype,
        "images_per_device": values.images, "accumulate_steps": values.accumulate_steps,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }  # fmt: skip
    try:
        found = compile_step(config, mesh)
    except compiled.DoesNotFit as error:
        return [row | {"does_not_fit": str(error)[:300]}], {}
    return [row | dataclasses.asdict(found) | {"memory": found.memory_bytes}], {}


def _base(rows: Sequence[Row], values: flags.FlagValues) -> Row | None:
    """The step that predictions start from: that of the flags, on the most devices of a v5e."""
    asked = {
        "name": "train", "config": values.config, "images_per_device": values.images,
        "dtype": values.dtype, "accumulate_steps": values.accumulate_steps,
    }  # fmt: skip
    steps = [row for row in rows if asked.items() <= row.items() and row["collectives"]]
    steps = [row for row in steps if row["topology"].startswith("v5e")]
    return max(steps, key=lambda row: row["devices"], default=None)


def predict(base: Row, values: flags.FlagValues) -> dict[str, list[step_model.Step]]:
    """The predicted steps on each kind of chip, by how many there are."""
    counted = {
        "flops": 2.0 * base["macs"],
        "summed_bytes": base["collectives"]["all-reduce"][1],
        "collectives": sum(count for count, _ in base["collectives"].values()),
        "images": base["images_per_device"],
    }
    if values.input_rate:
        counted["images_per_s_per_core"] = values.input_rate
    return {
        name: [step_model.predict(chip, n, **counted) for n in PREDICTED_CHIPS]
        for name, chip in step_model.CHIPS.items()
    }


def print_compiled(rows: Sequence[Row]) -> None:
    """Prints a line for every compiled step."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("slice, step", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    headers = (
        "images\na chip",
        "memory,\nGiB (%)",
        "GFLOPs",
        "of ana-\nlytic, %",
        "collectives: MiB",
    )
    for header in (*headers, "compile,\ns"):
        table.add_column(header, justify="right")
    for row in rows:
        parts = f" x {row['accumulate_steps']}" if row["accumulate_steps"] > 1 else ""
        first = f"{row['images_per_device']}{parts}"
        if "does_not_fit" in row:
            table.add_row(row["topology"], row["dtype"], first, "does not fit", "", "", "", "")
            continue
        images = row["batch_size"] // row["devices"] // row["accumulate_steps"]
        share = row["memory"] / (row["device_memory_bytes"] or float("nan"))
        exchanged = (row["collectives"] or {}).values()
        count, size = (sum(one[k] for one in exchanged) for k in (0, 1))
        macs = row["macs"] or float("nan")
        of_analytic = macs / (row["analytic_macs"] or float("nan"))
        table.add_row(
            f"{row['topology']} {row['name']}", row["dtype"], f"{images}{parts}",
            f"{row['memory'] / 2**30:.2f} ({100 * share:.0f})", f"{2e-9 * macs:.0f}",
            f"{100 * of_analytic:.1f}", f"{count}: {size / 2**20:.0f}",
            f"{row['compile_s']:.0f}",
        )  # fmt: skip
    Console().print(table)


def print_predictions(predictions: dict[str, list[step_model.Step]], title: str) -> None:
    """Prints a line for every kind and number of chips."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    for header in (
        "chips",
        "compute, ms",
        "gradients, ms",
        "latency, ms",
        "input, ms",
        "efficiency",
    ):
        table.add_column(header, justify="right")
    for name, steps in predictions.items():
        table.add_section()
        for step in steps:
            parts = step.compute_s, step.sums_s, step.latency_s, step.input_s
            times = (f"{1e3 * part:.2f}" for part in parts)
            table.add_row(f"{step.chips} {name}", *times, f"{step.efficiency:.2f}")
    Console().print(table)


def plot(predictions: dict[str, list[step_model.Step]], title: str) -> Any:
    """Efficiency against the number of chips, with small messages half and twice as slow."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, steps in predictions.items():
        chips = [step.chips for step in steps]
        (line,) = axes.plot(chips, [step.efficiency for step in steps], "o-", label=name)
        slow, quick = ([step.with_latency(f).efficiency for step in steps] for f in (2.0, 0.5))
        axes.fill_between(chips, slow, quick, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(PREDICTED_CHIPS, [str(chips) for chips in PREDICTED_CHIPS])
    axes.set(xlabel="chips", ylabel="efficiency (computation's share of the step)", ylim=(0, 1.02))
    axes.set_title(title, loc="left", fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(sys.argv)
