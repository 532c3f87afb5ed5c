r"""Channel gates trained with and without batch-shaping, beside block gates and static networks.

    urnet export --workdir=PLAIN --output=plain.safetensors
    python benchmarks/shaping.py --data_dir=DIR --init=plain.safetensors --epochs=4

Trains from one plain network: ResNet-BAS, whose gates see the image alone, for three prices of an
open gate (`l0.weight`), each with and without batch-shaping; a network whose channel gates follow
S; one whose block gates do, with and without batch-shaping; and one with both kinds of gates.
Evaluates each, those that follow S calibrated, and writes a JSON file, gates.csv, a table and a
plot.

--rows          sets of rows (bas, channels, blocks, both), separated by commas; default: all
--base          resnet20 (default), resnet32, ...
--data          cifar10 (default), cifar100, or digits, to try it out
--data_dir      a prepared TFDS data_dir; the digits need none
--init          a file of that plain network to begin with; by default random weights
--epochs        of each network (default: 4)
--seeds         separated by commas; default: 0
--static        folders, separated by commas, that hold evaluations of plain networks: they are
                drawn beside the others
--workdir       the folder of the runs (default: runs/shaping); a run that was made with other
                settings is refused
--time_limit_s  after which the network in training saves, and what there is is written; the same
                command goes on
--output        the folder of what is written (default: runs/benchmarks/shaping; what is to be kept
                in the repository: results/shaping), in a folder of its own for each base and data
--fresh         evaluate again what is recorded
"""

import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import flags

from benchmarks import paper_rows, results, shaping_report, timing, trained
from benchmarks.trained import Network
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.evaluate import static
from urnet_jax.evaluate.conditional import ALWAYS, NEVER

PRICES = (1.0, 0.1, 3.0)
"""Of an open gate: `l0.weight`."""

SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

STEADY = trained.STEADY | {"eval.scales": SCALES, "gates.epochs": 0.0, "pretrain.epochs": 0.0}
"""Fields of all runs."""

BLOCKS, SHORT, RESIZABLE, BOTH = (
    "cifar10_resnet20", "cifar10_resnet20_bas:short", "cifar10_resnet20_bas:resizable",
    "cifar10_resnet20_bas:both",
)  # fmt: skip

ROWS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "bas": {
        f"price {price:g}{without}": (SHORT, {"l0.weight": price} | changed)
        for price in PRICES
        for without, changed in (("", {}), (" unshaped", {"shaping.weight": 0.0}))
    },
    "channels": {"channels by S": (RESIZABLE, {})},
    "blocks": {
        "blocks by S": (BLOCKS, {}),
        "blocks by S shaped": (BLOCKS, {"shaping.weight": 1.0, "shaping.mean": "scale"}),
    },
    "both": {"blocks and channels by S": (BOTH, {})},
}
"""Networks by set and name, each with its config and what it changes there."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on from the last checkpoint."):
        values = parse(list(argv))
        beside = None
        if values.static:
            beside = static.read(values.static.split(","), dataset=values.data, split="test")
        groups = _groups(values, deadline=time.monotonic() + values.time_limit_s)
        write = functools.partial(shaping_report.write, beside=beside)
        trained.record(values, groups, {"base": values.base, "dataset": values.data}, write)


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not of its kind.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    define("rows", ",".join(ROWS))
    define("base", "resnet20")
    define("data_dir", "")
    define("init", "")
    define("seeds", "0")
    define("static", "")
    define("workdir", "runs/shaping")
    flags.DEFINE_enum("data", "cifar10", list(paper_rows.DATA), "", flag_values=values)
    flags.DEFINE_float("epochs", 4.0, "", lower_bound=1e-3, flag_values=values)
    results.define_flags(values, "shaping")
    timing.parse_flags(values, argv, __doc__ or "")
    if not values.data_dir and values.data != "digits":
        raise UserError("--data_dir is missing; name a prepared TFDS data_dir.")
    if not values.base.removeprefix("resnet").isdecimal():
        raise UserError(f"--base is {values.base!r}; expected resnet20, resnet32 and so on.")
    return values


def asked(values: flags.FlagValues, seed: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The chosen networks by name, with their configs and fields.

    Raises:
      UserError: there is no such set of rows.
    """
    common = STEADY | paper_rows.DATA[values.data]
    common |= {"data.dir": values.data_dir, "seed": seed, "joint.epochs": values.epochs}
    common["model.depth"] = int(values.base.removeprefix("resnet"))
    if values.init:
        common |= {"init.from": values.init, "joint.learning_rate": 0.05}
        common["joint.warmup_epochs"] = 0.3
    found = {}
    for name in values.rows.split(","):
        if name not in ROWS:
            raise UserError(f"--rows names {name!r}; expected some of {', '.join(ROWS)}.")
        found |= {n: (config, common | fields) for n, (config, fields) in ROWS[name].items()}
    return found


def _groups(values: flags.FlagValues, deadline: float) -> list[results.Group]:
    """The chosen networks, each to be trained and evaluated.

    Raises:
      UserError: there is no such row, seed, network or file, or a workdir holds another run.
    """
    groups: list[results.Group] = []
    for seed in trained.seeds_of(values.seeds):
        for name, (config, fields) in asked(values, seed).items():
            folder = f"{values.base}_{values.data}/{name.replace(' ', '_')}_{seed}"
            workdir = pathlib.Path(values.workdir) / folder
            settings = trained.settings_of(config, fields)
            network = Network(workdir, config, fields, settings)
            trained.check_workdir(network)
            measure = functools.partial(_measure, network, deadline, seed)
            groups.append((f"{name}, seed {seed}", settings, measure))
    return groups


def _measure(
    network: Network, deadline: float, seed: int
) -> tuple[list[results.Row], dict[str, str]]:
    """Trains a network, calibrates one that follows S, and evaluates it.

    Raises:
      Stopped, UserError: see `trained.train`; calibration and evaluation likewise.
    """
    trained.train(network, deadline)
    before = trained.evaluate(network, deadline, "--calibrated=False")
    follows = len(before["rows"]) > 1
    rows = _rows(network, before, seed, "before" if follows else "")
    if follows:
        where = f"--workdir={network.workdir}", f"--data_dir={network.fields['data.dir']}"
        trained.run("calibrate", *where, "--batch_sizes=none", deadline=deadline)
        rows += _rows(network, trained.evaluate(network, deadline), seed, "after")
    return rows, {}


def _rows(
    network: Network, found: dict[str, Any], seed: int, calibration: str
) -> list[results.Row]:
    """What is recorded of each S, and how many gates are always, never or at times open there."""
    kept = ("scale", "examples", "top1_percent", "flops_mean", "flops_share", "distinct_paths")
    with np.load(network.workdir / "eval_samples.npz") as samples:
        usage = samples["gates"].mean(axis=1, dtype=np.float64)
    rows = []
    for row, own in zip(found["rows"], usage, strict=True):
        always, never = int((own > ALWAYS).sum()), int((own < NEVER).sum())
        rows.append(
            {name: row[name] for name in kept}
            | {"gates": len(own), "always": always, "never": never, "step": found["step"]}
            | {"conditional": len(own) - always - never, "seed": seed}
            | {"calibration": calibration, "flops_full": row["flops_full"]}
        )
    return rows


if __name__ == "__main__":
    main(sys.argv)
