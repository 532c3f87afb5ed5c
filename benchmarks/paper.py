r"""The paper's networks trained again, beside its figures.

    python benchmarks/paper.py --data_dir=DIR --init=resnet20.th --base_epochs=4 \
        --epochs_scale=0.01 --rows=table1,figure5,figure8,choices,ablation

Trains a plain network (or brings the weights of a PyTorch file to the data), from it the chosen
rows one after another, evaluates each over S and writes a JSON file, a table and figures.

--rows          sets of rows (table1, figure5, figure8, choices, ablation) or single ones; a set
                comes with the row that it is compared with; default: table1
--base          resnet20 (default), resnet110, ...
--data          cifar10 (default), cifar100, or digits, to try it out
--data_dir      a prepared TFDS data_dir; the digits need none
--init          a PyTorch file of that network to begin with; by default random weights
--base_epochs   of the plain network (default: 164, He et al.'s, times --epochs_scale)
--epochs_scale  1 (default): the paper's 100 epochs of gates and 400 of all; less: shorter, with
                the rates of `paper_rows.SHORT`
--workdir       the folder of the runs (default: runs/paper); a run that was made with other
                settings is refused
--time_limit_s  after which the network in training saves, and what there is is written; the same
                command goes on, also elsewhere with --workdir and --output carried there
--output        the folder of what is written (default: runs/benchmarks/paper; what is to be kept
                in the repository: results/paper), in a folder of its own for each base and dataset
--fresh         evaluate again what is recorded
"""

import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from benchmarks import paper_report, paper_rows, results, timing, trained
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.runs import checkpoint

STEADY = trained.STEADY | {"eval.scales": paper_rows.SCALES}
"""Fields of all runs."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on from the last checkpoint."):
        values = parse(list(argv))
        groups = _groups(values, deadline=time.monotonic() + values.time_limit_s)
        write = functools.partial(paper_report.write, workdir=values.workdir)
        trained.record(values, groups, {"base": values.base, "dataset": values.data}, write)


def _groups(values: flags.FlagValues, deadline: float) -> list[results.Group]:
    """The plain network and the chosen rows, each to be trained from it and evaluated.

    Raises:
      UserError: there is no such row, network or data, or a workdir holds another run.
    """
    rows = paper_rows.chosen(values.rows)
    if not values.data_dir and values.data != "digits":
        raise UserError("--data_dir is missing; name a prepared TFDS data_dir.")
    asked = {paper_rows.BASE: _base(values)}
    asked |= {name: _row(values, row) for name, row in rows.items()}
    base = trained.settings_of(*asked[paper_rows.BASE])
    groups: list[results.Group] = []
    trainings: list[Callable[[], None]] = []
    for name, (config, fields) in asked.items():
        settings = trained.settings_of(config, fields)
        settings |= {} if name == paper_rows.BASE else {"base": base}
        network = trained.Network(pathlib.Path(values.workdir) / name, config, fields, settings)
        trained.check_workdir(network)
        train = functools.cache(functools.partial(trained.train, network, deadline))
        # The first is the plain network, from which a row begins, be it recorded already.
        begun = bool(checkpoint.steps(network.workdir))
        needed = [train] if begun else [*trainings[:1], train]
        groups.append(
            (name, settings, functools.partial(trained.measure, network, needed, deadline))
        )
        trainings.append(train)
    return groups


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not of its kind.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    define("rows", "table1")
    define("base", "resnet20")
    define("data_dir", "")
    define("init", "")
    define("workdir", "runs/paper")
    flags.DEFINE_enum("data", "cifar10", list(paper_rows.DATA), "", flag_values=values)
    flags.DEFINE_float("base_epochs", None, "", lower_bound=1e-3, flag_values=values)
    flags.DEFINE_float("epochs_scale", 1.0, "", lower_bound=1e-6, flag_values=values)
    results.define_flags(values, "paper")
    timing.parse_flags(values, argv, __doc__ or "")
    return values


def _common(values: flags.FlagValues) -> dict[str, Any]:
    depth = values.base.removeprefix("resnet")
    if not depth.isdecimal():
        raise UserError(f"--base is {values.base!r}; expected resnet20, resnet110 and so on.")
    fields = STEADY | paper_rows.DATA[values.data] | {"model.depth": int(depth)}
    return fields | {"data.dir": values.data_dir}


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


if __name__ == "__main__":
    main(sys.argv)
