"""Does the training loop cost anything beside the step?

    python benchmarks/loop.py [--data_dir=DIR] [--rounds=8] [--segment_s=6] ...

--data_dir       a prepared TFDS data_dir with cifar10; without it digits alone are trained on
--rounds         timed segments of each kind; default: 8
--segment_s      seconds of a segment, about; default: 6
--output         the folder for the results; default: runs/benchmarks/loop; what is to be
                 kept in the repository: results/loop
--fresh          measures again what is there already
--time_limit_s   after these seconds nothing further is started

The loop is train.py's own, with its batches, metrics, progress and checks, stopped between segments
of equally many steps. In between the same jitted step is called as many times on one batch that
lies on the device. Evaluations and checkpoints are left out on both sides. A segment ends when the
device has finished its steps.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import flags
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results, timing, trained
from benchmarks.results import Row
from benchmarks.training_cases import huge_pages
from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import Stopped, told_to_the_user
from urnet_jax.runs import checkpoint, writers
from urnet_jax.train import loop, start
from urnet_jax.train.step import make_train_step
from urnet_jax.xla import sharding

PHASE = "joint"
DATASETS = {"digits": "digits", "cifar10": "cifar10_resnet20"}
"""Each with the config that trains on it."""

MOST_STEPS = 10**6


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on where it stopped."):
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("data_dir", "", "", flag_values=values)
    flags.DEFINE_integer("rounds", 8, "", lower_bound=2, flag_values=values)
    flags.DEFINE_float("segment_s", 6.0, "", lower_bound=0.0, flag_values=values)
    results.define_flags(values, "loop")
    timing.parse_flags(values, argv, __doc__ or "")
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Times what has not been timed; returns the results' file."""
    path, record = results.measure(_groups(values), values)
    print_table(record["rows"])
    print(path)
    return path


def _groups(values: flags.FlagValues) -> Any:
    settings = {"rounds": values.rounds, "segment_s": values.segment_s, "huge_pages": huge_pages()}
    for name, config_name in DATASETS.items():
        if name != "digits" and not values.data_dir:
            continue
        config = config_lib.load(config_name)
        config.data.dir = values.data_dir
        # What a step costs hangs on the recipe.
        settings = settings | {"config": trained.settings_of(config_name, {})}
        yield name, settings, lambda config=config: ([loop_row(config, values)], {})


def loop_row(config: Config, values: flags.FlagValues) -> Row:
    """Milliseconds of a step in the loop and by itself, and the ratio, medians over the rounds."""
    config.update_from_flattened_dict(
        {
            "pretrain.epochs": 0.0, "gates.epochs": 0.0, "joint.epochs": float(MOST_STEPS),
            "eval.every_epochs": 0.0, "checkpoint.every_epochs": 0.0,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="urnet_jax_loop_") as folder:
        loop_s, step_s, num_steps = segments(config, folder, values.rounds, values.segment_s)
    ratio = np.array(loop_s) / np.array(step_s)
    row = {"dataset": config.data.name, "batch_size": config.data.batch_size}
    row |= {"steps": num_steps, "rounds": values.rounds}
    row |= {"loop_ms": 1e3 * float(np.median(loop_s)) / num_steps}
    row |= {"step_ms": 1e3 * float(np.median(step_s)) / num_steps}
    p25, median, p75 = map(float, np.percentile(ratio, (25, 50, 75)))
    return row | {"loop_to_step": median, "p25": p25, "p75": p75}


def segments(
    config: Config, folder: str, rounds: int, segment_s: float
) -> tuple[list[float], list[float], int]:
    """Seconds of each segment of the loop and of the step alone, and how many steps each has."""
    mesh = sharding.make_mesh()
    train_split, test_split = (open_split(config.data, name) for name in ("train", "test"))
    batches = iter(train_batches(train_split, config.data, seed=config.seed))
    steps_per_epoch = train_split.num_examples / config.data.batch_size
    alone = _StepAlone(config, mesh, steps_per_epoch, sharding.global_batch(next(batches), mesh))
    alone.seconds(3)
    num_steps = max(3, round(segment_s / (alone.seconds(10) / 10)))
    loop_s: list[float] = []
    step_s: list[float] = []
    started = 0.0

    def between(step: int) -> str:
        """Called by the loop after every step; the first segment, which compiles, is dropped."""
        nonlocal started
        if step % num_steps:
            return ""
        jax.block_until_ready(jax.live_arrays())
        if step > num_steps:
            loop_s.append(time.perf_counter() - started)
            step_s.append(alone.seconds(num_steps))
        started = time.perf_counter()
        return "SIGTERM" if len(loop_s) == rounds else ""

    checkpointer = checkpoint.Checkpointer(folder, keep=1, keep_best=0)
    writer = writers.MetricWriter(folder, resume_step=0)
    run = loop.Run(
        config, mesh, steps_per_epoch, checkpointer, writer, train_split, test_split, batches,
        between,
    )  # fmt: skip
    try:
        loop.run_phase(run, PHASE, start.start_phase(config, PHASE, steps_per_epoch, None, mesh))
    except Stopped:
        pass
    finally:
        for used in (checkpointer, writer, batches):
            used.close()
    return loop_s, step_s, num_steps


class _StepAlone:
    """The jitted step with a state and a batch of its own."""

    def __init__(self, config: Config, mesh: Any, steps_per_epoch: float, batch: Any) -> None:
        self._step = make_train_step(config, PHASE, steps_per_epoch, mesh)
        self._state = start.start_phase(config, PHASE, steps_per_epoch, None, mesh)
        self._batch = batch

    def seconds(self, times: int) -> float:
        """Takes so many steps; how long that took."""
        start, metrics = time.perf_counter(), None
        for _ in range(times):
            # No more than one step is dispatched ahead, as in the loop.
            previous = metrics
            self._state, metrics = self._step(self._state, self._batch)
            jax.block_until_ready(previous)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


def print_table(rows: Sequence[Row]) -> None:
    """Prints a line for every dataset."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("dataset")
    for header in ("batch", "step in\nthe loop, ms", "step\nalone, ms", "ratio (quartiles)"):
        table.add_column(header, justify="right")
    for row in rows:
        quartiles = f"{row['loop_to_step']:.3f} ({row['p25']:.3f}-{row['p75']:.3f})"
        times = f"{row['loop_ms']:.4g}", f"{row['step_ms']:.4g}"
        table.add_row(row["dataset"], str(row["batch_size"]), *times, quartiles)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv)
