r"""The paper's networks trained again, beside its figures.

    python benchmarks/paper.py --data_dir=DIR --init=resnet20.th --base_epochs=4 \
        --epochs_scale=0.006 --rows=table1,figure5,figure8,choices

Trains a plain network (or brings the weights of a PyTorch file to the data), from it the chosen
rows one after another, evaluates each over S and writes a JSON file, a table and figures.

--rows          sets of rows (table1, figure5, figure8, choices) or single ones (default: table1)
--base          resnet20 (default), resnet110, ...
--data          cifar10 (default), cifar100, or digits, to try it out
--data_dir      a prepared TFDS data_dir; the digits need none
--init          a PyTorch file of that network to begin with; by default random weights
--base_epochs   of the plain network (default: 164, He et al.'s, times --epochs_scale)
--epochs_scale  1 (default): the paper's 100 epochs of gates and 400 of all; less: shorter, with
                the rates of `paper_rows.SHORT`
--workdir       the folder of the runs (default: runs/paper)
--time_limit_s  after which the network in training saves; the same command goes on, also elsewhere
                with --workdir and --output carried there
--output        the folder of what is written (default: results/paper)
--fresh         evaluate again what is recorded
"""

import functools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from benchmarks import paper_report, paper_rows, results, timing
from urnet_jax import interruption
from urnet_jax.errors import Stopped, UserError, told_to_the_user

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEADY = {
    "eval.every_epochs": 0.0,
    "eval.scales": paper_rows.SCALES,
    "checkpoint.every_epochs": 1.0,
    "checkpoint.keep": 1,
    "checkpoint.keep_best": 0,
}
"""Fields of all runs: their checkpoints stay small enough to be carried elsewhere."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    values = _flags()
    with told_to_the_user("Interrupted: the same command goes on from the last checkpoint."):
        timing.parse_flags(values, list(argv), __doc__ or "")
        rows, deadline = paper_rows.chosen(values.rows), time.monotonic() + values.time_limit_s
        if not values.data_dir and values.data != "digits":
            raise UserError("--data_dir is missing; name a prepared TFDS data_dir.")
        networks = {
            paper_rows.BASE: _base(values),
            **{n: _row(values, row) for n, row in rows.items()},
        }
        # As they are read from the record, where tuples are lists.
        groups: list[results.Group] = [
            (
                name,
                {name: json.loads(json.dumps(value)) for name, value in settings.items()},
                functools.partial(_measure, values, name, config, settings, deadline),
            )
            for name, (config, settings) in networks.items()
        ]
        path, record = results.measure(groups, values, timed=False)
        for written in paper_report.write(record, pathlib.Path(path).parent, values.workdir):
            print(written)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    define("rows", "table1")
    define("base", "resnet20")
    define("data_dir", "")
    define("init", "")
    define("workdir", "runs/paper")
    flags.DEFINE_enum("data", "cifar10", list(paper_rows.DATA), "", flag_values=values)
    flags.DEFINE_float("base_epochs", None, "", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("epochs_scale", 1.0, "", lower_bound=0.0, flag_values=values)
    results.define_flags(values, "results/paper")
    return values


def _common(values: flags.FlagValues) -> dict[str, Any]:
    depth = values.base.removeprefix("resnet")
    if not depth.isdecimal():
        raise UserError(f"--base is {values.base!r}; expected resnet20, resnet110 and so on.")
    return STEADY | paper_rows.DATA[values.data] | {"model.depth": int(depth)}


def _base(values: flags.FlagValues) -> tuple[str, dict[str, Any]]:
    """The plain network's config and its fields."""
    epochs = values.base_epochs
    fields = _common(values) | {"model.gated": False, "gates.epochs": 0.0, "joint.epochs": 0.0}
    fields["pretrain.epochs"] = 164 * values.epochs_scale if epochs is None else epochs
    if values.init:
        fields |= paper_rows.SHORT_BASE | {"init.from": values.init}
    return "cifar10_resnet110", fields


def _row(values: flags.FlagValues, row: paper_rows.Row) -> tuple[str, dict[str, Any]]:
    """A row's config and its fields."""
    scale, plain = values.epochs_scale, row.table1.startswith("random_drop")
    fields = _common(values) | {"pretrain.epochs": 0.0}
    fields["gates.epochs"] = 0.0 if plain else 100 * scale
    fields["joint.epochs"] = (500 if plain else 400) * scale
    fields["joint.init_from" if plain else "gates.init_from"] = (
        f"{values.workdir}/{paper_rows.BASE}"
    )
    if scale < 1:
        fields |= paper_rows.SHORT
    return f"table1:{row.table1}", fields | dict(row.fields)


def _measure(
    values: flags.FlagValues, name: str, config: str, fields: Mapping[str, Any], deadline: float
) -> tuple[list[results.Row], dict[str, str]]:
    """Trains a network to its end, or goes on with it, and evaluates it.

    Raises:
      Stopped: the time was over; it has saved.
      UserError: training or evaluation ended otherwise, and has said why.
    """
    workdir = f"{values.workdir}/{name}"
    print(f"{name}: {config}", flush=True)
    text = {name: str(value).strip("()").replace(" ", "") for name, value in fields.items()}
    overrides = [f"--config.{name}={value.rstrip(',')}" for name, value in text.items()]
    where = [f"--workdir={workdir}"]
    _run("train.py", *where, f"--config={config}", f"--config.data.dir={values.data_dir}",
         *overrides, deadline=deadline)  # fmt: skip
    _run("evaluate.py", *where, f"--data_dir={values.data_dir}", deadline=deadline)
    found = json.loads((pathlib.Path(workdir) / "eval.json").read_text())
    return found["rows"], {"architecture": found["architecture"]}


def _run(script: str, *arguments: str, deadline: float) -> None:
    command = [sys.executable, str(ROOT / script), *arguments]
    with subprocess.Popen(command) as process:
        try:
            left_s = deadline - time.monotonic()
            code = process.wait(left_s if left_s < float("inf") else None)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            raise Stopped(
                "--time_limit_s is over: what is in training has saved, and the same command goes "
                "on.", interruption.EXIT_CODES["SIGTERM"],
            ) from None  # fmt: skip
        except KeyboardInterrupt:
            process.wait()  # It has had the Ctrl-C too, and saves.
            raise
    if code:
        raise UserError(f"{script} ended with {code}; see above, and give the command again.")


if __name__ == "__main__":
    main(sys.argv)
