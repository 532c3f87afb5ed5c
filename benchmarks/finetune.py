r"""Own classes from a known network: a ResNet-18 learns street scenes, with gates and without.

    python benchmarks/finetune.py --scenes=CAMVID --data_dir=DIR

Does what a user of configs/finetune.py does. Cuts the images of CamVid (--scenes) into squares,
each named by what covers most of it, and prepares that folder with the script of docs/own_data.md.
Trains a plain network on CIFAR-10 and exports it: that is the known one. Then tunes it on the
squares as a plain network and as a resizable one, which is calibrated; evaluates both, and writes
a JSON file and a table.

--scenes        a folder of train and test, each with images/*.jpg and labels/*.png of CamVid
--data_dir      a prepared TFDS data_dir with cifar10
--known_epochs  of the plain network on CIFAR-10 (default: 0.5)
--epochs        on the squares (default: 4)
--workdir       the folder of data and runs (default: runs/finetune); a run that was made with other
                settings is refused
--time_limit_s  after which the network in training saves, and what there is is written; the same
                command goes on
--output        the folder of what is written (default: runs/benchmarks/finetune; what is to be kept
                in the repository: results/finetune)
--fresh         evaluate again what is recorded
"""

import functools
import json
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import flags
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import results, timing, trained
from benchmarks.trained import Network
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.runs import checkpoint

CLASSES = {0: "sky", 1: "building", 3: "road", 4: "pavement", 5: "tree", 8: "car"}
"""CamVid's labels of which there are squares enough, and their names here."""

SIDE, COVERED = 80, 0.6
"""Of a square, in pixels; and the least share of it that one label has, after which it is named."""

SPLITS = ("train", "test")

DATA, SIZE = "scenes", 64

STEADY = trained.STEADY | {"data.image_size": SIZE}
"""Fields of all runs."""

PLAIN = {"model.gated": False, "joint.epochs": 0.0}


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on from the last checkpoint."):
        values = parse(list(argv))
        deadline = time.monotonic() + values.time_limit_s
        prepared = prepare(pathlib.Path(values.scenes), pathlib.Path(values.workdir))
        groups = _groups(values, str(prepared), deadline)
        about = {"base": "resnet18", "dataset": DATA, "classes": list(CLASSES.values())}
        trained.record(values, groups, about, show)


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not of its kind, or missing.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    define("scenes", "")
    define("data_dir", "")
    define("workdir", "runs/finetune")
    flags.DEFINE_float("known_epochs", 0.5, "", lower_bound=1e-3, flag_values=values)
    flags.DEFINE_float("epochs", 4.0, "", lower_bound=1e-3, flag_values=values)
    results.define_flags(values, "finetune")
    timing.parse_flags(values, argv, __doc__ or "")
    expected = [f"{split}/{kind}" for split in SPLITS for kind in ("images", "labels")]
    if not all((pathlib.Path(values.scenes) / folder).is_dir() for folder in expected):
        raise UserError(
            f"--scenes is {values.scenes!r}; expected a folder with {', '.join(expected)}."
        )
    if not values.data_dir:
        raise UserError("--data_dir is missing; name a prepared TFDS data_dir with cifar10.")
    return values


def prepare(scenes: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """A TFDS data_dir of the squares, made once, as docs/own_data.md says.

    Raises:
      UserError: an image has no labels that fit; the script of the docs failed, and has said why.
    """
    images, done, told = workdir / "images", workdir / "tfds" / "prepared", workdir / "squares.json"
    of = json.dumps({"scenes": scenes.name, "classes": CLASSES, "side": SIDE, "covered": COVERED})
    if told.exists() and told.read_text() != of:
        raise UserError(
            f"{workdir} holds squares that were cut otherwise, or of other scenes: move it, or "
            "name another --workdir."
        )
    if done.exists():
        return done.parent
    workdir.mkdir(parents=True, exist_ok=True)
    told.write_text(of)
    for split in SPLITS:
        for path in tqdm(sorted((scenes / split / "images").glob("*.jpg")), desc=split):
            _cut(path, scenes / split / "labels" / f"{path.stem}.png", images / split)
    document = (trained.ROOT / "docs" / "own_data.md").read_text()
    (script,) = re.findall("```python\n(.*?)```", document, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", script, images, done.parent, DATA], check=False)
    if ran.returncode:
        raise UserError(f"The script of docs/own_data.md ended with {ran.returncode}, see above.")
    done.touch()
    return done.parent


def _cut(image: pathlib.Path, label: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the squares of an image that one of the classes covers.

    Raises:
      UserError: the image has no labels, or labels of another size.
    """
    if not label.exists():
        raise UserError(f"{image} has no labels; expected {label}.")
    pixels, named = Image.open(image), np.asarray(Image.open(label))
    if named.shape != (pixels.height, pixels.width):
        raise UserError(f"{label} has the shape {named.shape}, and its image another.")
    for top in range(0, named.shape[0] - SIDE + 1, SIDE):
        for left in range(0, named.shape[1] - SIDE + 1, SIDE):
            square = named[top : top + SIDE, left : left + SIDE]
            counts = np.bincount(square.ravel())
            found = int(counts.argmax())
            if found in CLASSES and counts[found] >= COVERED * SIDE**2:
                path = folder / CLASSES[found] / f"{image.stem}_{top}_{left}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels.crop((left, top, left + SIDE, top + SIDE)).save(path)


def _groups(values: flags.FlagValues, prepared: str, deadline: float) -> list[results.Group]:
    """The plain and the resizable network; a workdir that holds another run is refused."""
    workdir = pathlib.Path(values.workdir)
    known = _network(workdir / "known", PLAIN | {
        "init.head": "kept", "data.name": "cifar10", "data.dir": values.data_dir,
        "pretrain.epochs": values.known_epochs, "pretrain.learning_rate": 0.05,
    })  # fmt: skip
    file = workdir / "known.safetensors"
    own = {"data.name": DATA, "data.dir": prepared, "data.num_classes": len(CLASSES),
           "init.from": str(file)}  # fmt: skip
    asked = {
        "plain": own | PLAIN | {"pretrain.epochs": values.epochs},
        "resizable": own | {"joint.epochs": values.epochs},
    }
    groups: list[results.Group] = []
    for name, fields in asked.items():
        network = _network(workdir / name, fields)
        settings = network.settings | {"known": known.settings["pretrain.epochs"]}
        measure = functools.partial(_measure, network, known, file, deadline)
        groups.append((name, settings, measure))
    return groups


def _network(workdir: pathlib.Path, fields: dict[str, Any]) -> Network:
    fields = STEADY | fields
    network = Network(workdir, "finetune", fields, trained.settings_of("finetune", fields))
    trained.check_workdir(network)
    return network


def _measure(
    network: Network, known: Network, file: pathlib.Path, deadline: float
) -> tuple[list[results.Row], dict[str, str]]:
    """Trains what is needed, calibrates a network that has gates, and evaluates it."""
    if not file.exists():
        trained.train(known, deadline)
        what = f"--workdir={known.workdir}", f"--output={file}"
        trained.run("export", *what, deadline=deadline)
    trained.train(network, deadline)
    if not network.fields.get("model.gated", True):
        return _rows(network, trained.evaluate(network, deadline), ""), {}
    rows = _rows(network, trained.evaluate(network, deadline, "--calibrated=False"), "before")
    where = f"--workdir={network.workdir}", f"--data_dir={network.fields['data.dir']}"
    trained.run("calibrate", *where, "--batch_sizes=none", deadline=deadline)
    return rows + _rows(network, trained.evaluate(network, deadline), "after"), {}


def _rows(network: Network, found: dict[str, Any], calibration: str) -> list[results.Row]:
    """What is recorded of each S, and the median rate of training."""
    lines = map(json.loads, (network.workdir / "metrics.jsonl").read_text().splitlines())
    rates = [line["images_per_s"] for line in lines if line["kind"] == "train"]
    kept = ("scale", "examples", "top1_percent", "flops_share", "distinct_paths")
    steps = checkpoint.steps(network.workdir)[-1]
    about = {"calibration": calibration, "steps": steps, "images_per_s": float(np.median(rates))}
    return [{name: row[name] for name in kept} | about for row in found["rows"]]


def show(record: results.Row, path: pathlib.Path) -> list[pathlib.Path]:
    """Prints the table; the record is all that is written."""
    table = Table(box=box.HORIZONTALS)
    for column in ("network", "calibration", "S", "FLOPs, %", "top-1, %", "paths", "images/s"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in record["rows"]:
        table.add_row(
            row["group"], row["calibration"], f"{row['scale']:g}",
            f"{100 * row['flops_share']:.1f}", f"{row['top1_percent']:.2f}",
            str(row["distinct_paths"]), f"{row['images_per_s']:.0f}",
        )  # fmt: skip
    Console().print(table)
    return [path]


if __name__ == "__main__":
    main(sys.argv)
