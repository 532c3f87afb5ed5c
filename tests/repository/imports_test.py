"""The contract of pyproject.toml on who may import whom, and the drawing of who does."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tools import import_graph

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the package and of its contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "urnet_jax", tmp_path / "urnet_jax", ignore=ignore)
    return tmp_path


def lint(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = pathlib.Path(sys.executable).with_name("lint-imports")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [command, "--no-logo", "--no-cache"],
        cwd=folder,
        env=environment | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_the_package_keeps_the_contract(copy: pathlib.Path):
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "line", "said"),
    [
        ("nets/gates", "from urnet_jax.train import loop", "nets.gates -> urnet_jax.train.loop"),
        ("nets/gates", "import urnet_jax.config", "nets.gates -> urnet_jax.config"),
        ("data/sources", "from urnet_jax.nets import cost", "data.sources -> urnet_jax.nets.cost"),
        ("evaluate/step", "from urnet_jax.train import step", "step -> urnet_jax.train.step"),
        ("errors", "def f():\n    import urnet_jax.phases", "errors -> urnet_jax.phases"),
        ("nets/gates", "from urnet_jax.nets import resnet", "- .gates -> .resnet"),
        ("train/loop", "from urnet_jax.evaluate import plots", "train.loop -> urnet_jax.evaluate"),
        ("attic", "", "attic"),
    ],
)
def test_a_forbidden_import_or_a_room_without_a_place_breaks_it(
    copy: pathlib.Path, room: str, line: str, said: str
):
    with (copy / "urnet_jax" / f"{room}.py").open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1
    assert said in done.stdout


@pytest.mark.parametrize("path", [import_graph.DRAWING, import_graph.ROOMS], ids=lambda p: p.name)
def test_what_is_drawn_and_listed_is_as_the_code_is(path: pathlib.Path):
    assert path.read_text(encoding="utf-8") == import_graph.contents()[path], "run `make graph`"


def test_no_arrow_of_the_drawing_runs_up():
    wings = import_graph.wings()
    counts = import_graph.imports(wings)
    assert {wing.name for wing in wings} >= {"cli", "train", "evaluate", "runs", "data", "nets"}
    assert counts and all(importer < imported for importer, imported in counts)
    assert import_graph.WRONG not in import_graph.draw(wings, counts)


def test_an_arrow_that_runs_up_is_drawn_in_red():
    wings = import_graph.wings()
    counts = import_graph.imports(wings) | {(len(wings) - 1, 0): 1}
    assert import_graph.WRONG in import_graph.draw(wings, counts)
