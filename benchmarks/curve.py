r"""Top-1 against cost: one resizable network beside static networks of several depths.

    python benchmarks/curve.py --data_dir=DIR --base=resnet20 --plain_epochs=12 --gated_epochs=12

Trains the static networks, and the resizable one, as long in all; calibrates and evaluates it over
S, and writes curve.csv, a table and a plot.

--base          resnet20 (default), resnet56, ...; resnet8 and --data=digits to try it out
--data          cifar10 (default), cifar100 or digits
--data_dir      a prepared TFDS data_dir; the digits need none
--weights_dir   a folder of PyTorch files resnet20-*.th, resnet32-*.th and so on, from which all
                networks begin; by default they begin at random, the resizable one with
--plain_epochs  of its plain network first (default: 12; 0 with --weights_dir); then
--gated_epochs  with gates, by the recipe of configs/cifar10_resnet20.py (default: 12); the static
                networks are trained for the sum of both
--rows          static, gated, ablation (each ingredient left out, and what the recipe does not have
                added), separated by commas; default: static,gated
--seeds         separated by commas; default: 0
--workdir       the folder of the runs (default: runs/curve); a run that was made with other
                settings is refused
--time_limit_s  after which the network in training saves, and what there is is written; the same
                command goes on
--output        the folder of what is written (default: runs/benchmarks/curve; what is to be kept
                in the repository: results/curve), in a folder of its own for each base and dataset,
                evaluations of the static networks included, which evaluate.py --static takes
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

from benchmarks import curve_report, curve_rows, paper_rows, results, timing, trained
from benchmarks.trained import Network
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.runs import checkpoint

ROWS = ("static", "gated", "ablation")

STEADY = trained.STEADY | {"eval.scales": curve_rows.SCALES}
"""Fields of all runs."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on from the last checkpoint."):
        values = parse(list(argv))
        groups = _groups(values, deadline=time.monotonic() + values.time_limit_s)
        about = {"base": values.base, "dataset": values.data, "base_flops": _base_flops(values)}
        trained.record(values, groups, about, curve_report.write)


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not of its kind.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    define("rows", "static,gated")
    define("base", "resnet20")
    define("data_dir", "")
    define("weights_dir", "")
    define("workdir", "runs/curve")
    define("seeds", "0")
    flags.DEFINE_enum("data", "cifar10", list(paper_rows.DATA), "", flag_values=values)
    flags.DEFINE_float("plain_epochs", None, "", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("gated_epochs", 12.0, "", lower_bound=1e-3, flag_values=values)
    results.define_flags(values, "curve")
    timing.parse_flags(values, argv, __doc__ or "")
    if values.weights_dir and values.plain_epochs:
        raise UserError(
            f"--plain_epochs is {values.plain_epochs}, and with --weights_dir no plain network is "
            "trained first: leave one of the two out."
        )
    if values.plain_epochs is None:
        values.plain_epochs = 0.0 if values.weights_dir else 12.0
    if not values.data_dir and values.data != "digits":
        raise UserError("--data_dir is missing; name a prepared TFDS data_dir.")
    return values


def _groups(values: flags.FlagValues, deadline: float) -> list[results.Group]:
    """The chosen networks, each to be trained and evaluated.

    Raises:
      UserError: there is no such row, seed, network or file, or a workdir holds another run.
    """
    groups: list[results.Group] = []
    for seed in trained.seeds_of(values.seeds):
        begins: list[Callable[[], None]] = []
        if values.plain_epochs and {"gated", "ablation"} & set(values.rows.split(",")):
            plain = _network(values, "plain", seed, _plain(values, seed))
            begins = [functools.cache(functools.partial(trained.train, plain, deadline))]
        for name, fields in _asked(values, seed).items():
            network = _network(values, name, seed, fields)
            gated = fields["model.gated"]
            measure = functools.partial(
                _measure, network, begins if gated else [], values, deadline, seed
            )
            groups.append((f"{name}, seed {seed}", network.settings, measure))
    return groups


def _base_flops(values: flags.FlagValues) -> float:
    """FLOPs of an image in the base, which has no gates."""
    config = config_lib.load(curve_rows.CONFIG)
    config.update_from_flattened_dict(paper_rows.DATA[values.data])
    config.model.update({"depth": curve_rows.depths(values.base)[-1], "gated": False})
    return 2.0 * config_lib.architecture(config).cost.full_macs


def _network(values: flags.FlagValues, name: str, seed: int, fields: dict[str, Any]) -> Network:
    """A network to be trained; a workdir that holds another run is refused."""
    folder = f"{values.base}_{values.data}/{name.replace(' ', '_')}_{seed}"
    workdir = pathlib.Path(values.workdir) / folder
    settings = trained.settings_of(curve_rows.CONFIG, fields)
    settings["plain_epochs"] = values.plain_epochs
    network = Network(workdir, curve_rows.CONFIG, fields, settings)
    trained.check_workdir(network)
    return network


def _asked(values: flags.FlagValues, seed: int) -> dict[str, dict[str, Any]]:
    """The chosen networks by name, with their fields."""
    rows = values.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        raise UserError(f"--rows names {unknown[0]!r}; expected some of {', '.join(ROWS)}.")
    asked = {}
    if "static" in rows:
        total = values.plain_epochs + values.gated_epochs
        for depth in curve_rows.depths(values.base):
            asked[f"static ResNet-{depth}"] = _static(values, seed, depth, total)
    if "gated" in rows:
        asked["resizable"] = _gated(values, seed, {})
    if "ablation" in rows:
        for name, fields in curve_rows.CHANGED.items():
            asked[name] = _gated(values, seed, fields)
    return asked


def _common(values: flags.FlagValues, seed: int, depth: int) -> dict[str, Any]:
    fields = STEADY | paper_rows.DATA[values.data] | {"data.dir": values.data_dir, "seed": seed}
    fields |= {"model.depth": depth, "gates.epochs": 0.0, "joint.epochs": 0.0}
    if values.weights_dir:
        files = sorted(pathlib.Path(values.weights_dir).glob(f"resnet{depth}-*.th"))
        if not files:
            raise UserError(f"{values.weights_dir} holds no resnet{depth}-*.th; name its folder.")
        fields["init.from"] = str(files[0])
    return fields


def _static(values: flags.FlagValues, seed: int, depth: int, epochs: float) -> dict[str, Any]:
    """A plain network, trained in one go."""
    fields = _common(values, seed, depth) | {"model.gated": False, "pretrain.epochs": epochs}
    return fields | (paper_rows.SHORT_BASE if values.weights_dir else {})


def _plain(values: flags.FlagValues, seed: int) -> dict[str, Any]:
    """The plain network that the resizable one begins with."""
    return _static(values, seed, curve_rows.depths(values.base)[-1], values.plain_epochs)


def _gated(values: flags.FlagValues, seed: int, changed: dict[str, Any]) -> dict[str, Any]:
    """The resizable network, some fields of its recipe changed."""
    fields = _common(values, seed, curve_rows.depths(values.base)[-1])
    fields |= {"model.gated": True, "pretrain.epochs": 0.0, "joint.epochs": values.gated_epochs}
    if values.weights_dir:
        rate = paper_rows.SHORT_BASE["pretrain.learning_rate"]
        fields |= {"joint.learning_rate": rate, "joint.warmup_epochs": 0.3}
    elif values.plain_epochs:
        fields |= {"joint.learning_rate": 0.05, "joint.warmup_epochs": 0.3}
        folder = f"{values.base}_{values.data}/plain_{seed}"
        fields["joint.init_from"] = str(pathlib.Path(values.workdir) / folder)
    return fields | changed


def _measure(
    network: Network, begins: Sequence[Callable[[], None]], values: flags.FlagValues,
    deadline: float, seed: int,
) -> tuple[list[results.Row], dict[str, str]]:  # fmt: skip
    """Trains what is needed, calibrates a network that has gates, and evaluates it.

    A static network's evaluation is kept beside the record, for `evaluate.py --static`.

    Raises:
      Stopped, UserError: see `trained.train`; calibration and evaluation likewise.
    """
    if not checkpoint.steps(network.workdir):
        for begin in begins:
            begin()
    trained.train(network, deadline)
    if not network.fields["model.gated"]:
        found = trained.evaluate(network, deadline)
        kept = pathlib.Path(values.output) / "static" / network.workdir.name / "eval.json"
        results.write_json(kept, found)
        return [_row(row, found, seed, "") for row in found["rows"]], {}
    before = trained.evaluate(network, deadline, "--calibrated=False")
    rows = [_row(row, before, seed, "before") for row in before["rows"]]
    trained.run(
        "calibrate", f"--workdir={network.workdir}", "--batch_sizes=none",
        f"--data_dir={network.fields['data.dir']}", deadline=deadline,
    )  # fmt: skip
    after = trained.evaluate(network, deadline, "--image_part")
    for row, blind in zip(after["rows"], after["image_part"], strict=True):
        of_image = {"fixed_percent": blind["fixed_percent"], "gain": blind["gain"]}
        rows.append(_row(row, after, seed, "after") | of_image)
    return rows, {}


def _row(row: dict[str, Any], found: dict[str, Any], seed: int, calibration: str) -> results.Row:
    """What is recorded of one S: multiply-adds, which tell the cost beside any network."""
    kept = ("scale", "examples", "top1_percent", "flops_mean", "flops_share", "distinct_paths")
    of_run = {"step": found["step"], "seed": seed, "calibration": calibration}
    return {name: row[name] for name in kept} | of_run


if __name__ == "__main__":
    main(sys.argv)
