"""Time of a training step: plain, gated and in PyTorch; and the input pipeline alone.

    python benchmarks/training.py [--networks=resnet20,resnet110] [--batch_size=128] ...

--networks       resnet20 or any other depth; default: resnet14,resnet20,resnet110
--batch_size     default: 128
--image_size     32 (default): CIFAR networks; other sizes: ImageNet networks, as resnet18
--dtype          float32 (default), bfloat16 or both, separated by a comma
--repeats        timed rounds; default: 7
--input          also times the input pipeline (default)
--torch          also times PyTorch (default)
--torch_compile  also times PyTorch through torch.compile; default: no
--data_dir       a prepared TFDS data_dir with cifar10, for the input pipeline; without it digits
--output         the folder for the results; default: runs/benchmarks/training; what is to be
                 kept in the repository: results/training
--fresh          measures again what is there already
--time_limit_s   after these seconds nothing further is started

The steps are those of train.py in phase joint, with the settings of configs/cifar10_resnet110.py
or imagenet_resnet101.py and p of the paper, which run the network once a step, on one random batch
that lies on the device: JAX's crop, flip and normalise it too. PyTorch's begin with normalised
images, and its network has no gates. Beside the default, these are kept in results/training:
--networks=resnet18 with --image_size=224 --batch_size=8, and with --image_size=64.
The steps of a network are timed in turn, and the results are written when it is done: the same
command goes on where it was stopped.

Beside what inference.py imports, the steps need optax, clu and ml_collections, which are pure
Python; the input pipeline needs all of urnet_jax's dependencies: leave it out with --input=False.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import flags
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import results, timing, training_cases
from benchmarks.results import Row
from benchmarks.training_cases import CIFAR_PIXELS, HUGE_PAGES, huge_pages, make_config
from urnet_jax.config import Config
from urnet_jax.errors import UserError, told_to_the_user

INTERRUPTED = "Interrupted: the same command goes on where it stopped."


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
    flags.DEFINE_list("networks", ["resnet14", "resnet20", "resnet110"], "", flag_values=values)
    flags.DEFINE_integer("batch_size", 128, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("image_size", CIFAR_PIXELS, "", lower_bound=1, flag_values=values)
    flags.DEFINE_list("dtype", ["float32"], "", flag_values=values)
    flags.DEFINE_integer("repeats", 7, "", lower_bound=1, flag_values=values)
    for name, default in {"input": True, "torch": True, "torch_compile": False}.items():
        flags.DEFINE_boolean(name, default, "", flag_values=values)
    flags.DEFINE_string("data_dir", "", "", flag_values=values)
    results.define_flags(values, "training")
    timing.parse_flags(values, argv, __doc__ or "")
    if not values.networks and not values.input:
        raise UserError("There is nothing to time: name --networks or set --input=True.")
    for network in values.networks:
        for dtype in values.dtype:
            _config(network, dtype, values, gated=True)
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Times all that the flags ask for and that has not been timed; returns the results' file."""
    if values.torch:
        from benchmarks import torch_networks

        torch_networks.device_name(jax.devices()[0].platform)
    path, record = results.measure(_groups(values), values)
    print_tables(record["rows"])
    if huge_pages() is False:
        print(f"GLIBC_TUNABLES={HUGE_PAGES} is not set: with it, training on Linux CPU is faster.")
    print(path)
    return path


def _groups(values: flags.FlagValues) -> Iterator[results.Group]:
    common = {"repeats": values.repeats, "huge_pages": huge_pages()}
    batch_size = values.batch_size
    if values.input:
        settings = common | {"dataset": "cifar10" if values.data_dir else "digits"}

        def measure_input() -> tuple[list[Row], dict[str, str]]:
            return [training_cases.input_row(values.data_dir, batch_size, values.repeats)], {}

        yield f"input pipeline, batch {batch_size}", settings, measure_input
    torch = {"torch": values.torch, "torch_compile": values.torch and values.torch_compile}
    for dtype in values.dtype:
        for network in values.networks:
            name = f"{_name(network, values.image_size)}, batch {batch_size}, {dtype}"
            yield (
                name, common | torch,
                lambda network=network, dtype=dtype: step_rows(network, dtype, values),
            )  # fmt: skip


def step_rows(
    network: str, dtype: str, values: flags.FlagValues
) -> tuple[list[Row], dict[str, str]]:
    """A row for every kind of step of a network; and why torch.compile is not among them."""
    configs = {
        name: _config(network, dtype, values, gated=name == "gated") for name in ("plain", "gated")
    }
    cases = [training_cases.jax_case(name, config) for name, config in configs.items()]
    notes: dict[str, str] = {}
    if values.torch:
        found, notes = training_cases.torch_cases(configs["plain"], compiled=values.torch_compile)
        cases += found
    title = f"{_name(network, values.image_size)}, {dtype}"
    with tqdm(total=values.repeats + 1, desc=title, unit="round", disable=None, leave=False) as bar:
        times = timing.interleaved_times_ms(
            {str(i): step for i, (_, step) in enumerate(cases)}, values.repeats,
            after_round=bar.update,
        )  # fmt: skip
    plain_ms, rows = float(np.median(times["0"])), []
    for i, (case, _) in enumerate(cases):
        p25_ms, median_ms, p75_ms = map(float, np.percentile(times[str(i)], (25, 50, 75)))
        row = {"kind": "step", "network": network, "image_size": values.image_size}
        row["batch_size"] = values.batch_size
        row |= {"dtype": dtype, **case, "repeats": values.repeats, "huge_pages": huge_pages()}
        row |= {"median_ms": median_ms, "p25_ms": p25_ms, "p75_ms": p75_ms}
        row |= {"images_per_s": 1e3 * values.batch_size / median_ms}
        rows.append(row | {"to_plain": median_ms / plain_ms})
    return rows, notes


def _config(network: str, dtype: str, values: flags.FlagValues, *, gated: bool) -> Config:
    size = values.image_size
    return make_config(network, dtype, values.batch_size, gated=gated, image_size=size)


def _name(network: str, image_size: int) -> str:
    """As resnet20, or resnet18 at 64 px."""
    return network if image_size == CIFAR_PIXELS else f"{network} at {image_size} px"


def print_tables(rows: Sequence[Row]) -> None:
    """Prints a line for every step and for the input pipeline."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in ("network", "dtype", "step"):
        table.add_column(header)
    for header in ("batch", "time,\nms", "of plain\nin JAX", "images/s", "compile,\ns"):
        table.add_column(header, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row["group"]):
            table.add_section()
        previous = row["group"]
        if row["kind"] == "input":
            cells = (row["dataset"], "uint8", "input pipeline", str(row["batch_size"]), "", "")
            table.add_row(*cells, f"{row['images_per_s']:,.0f}", "")
            continue
        name = f"PyTorch {row['step']}" if row["framework"] == "torch" else row["step"]
        network = _name(row["network"], row.get("image_size", CIFAR_PIXELS))
        table.add_row(
            network, row["dtype"], name, str(row["batch_size"]),
            f"{row['median_ms']:.4g}", f"{row['to_plain']:.2f}", f"{row['images_per_s']:,.0f}",
            f"{row['compile_s']:.1f}" if "compile_s" in row else "",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv)
