"""The notebook and its Python twin, executed on a small run."""

import json
import pathlib
import re
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from urnet_jax.train import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "gate_usage.ipynb"
PICTURES = 10  # but for those of images that less compute loses, of which there may be none
WIDGET = "application/vnd.jupyter.widget-view+json"
MOVE = """
for scale in (0.2, 1.0):
    slider.value = scale
    (axes,) = look(slider.value).axes
    heights = [float(bar.get_height()) for bar in axes.patches]
    print(scale, hash(picture.value), axes.get_title(), heights, sep="; ")
"""


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cells: list[Any], kind: str) -> list[Any]:
    outputs = [output for cell in cells for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> pathlib.Path:
    """Of a run of phase gates alone: its few blocks have learned to heed S, which takes seconds."""
    fields = {"pretrain.epochs": 0.0, "gates.epochs": 10.0, "joint.epochs": 0.0}
    fields |= {"eval.every_epochs": 0.0, "checkpoint.every_epochs": 0.0}
    folder = tmp_path_factory.mktemp("gates") / "run"
    loop.train_and_evaluate(tiny(fields), folder)
    return folder


@pytest.fixture(scope="module")
def executed(workdir, tmp_path_factory) -> list[Any]:
    """The code cells after a run from start to end, and two more."""
    notebook, home = read(), tmp_path_factory.mktemp("jupyter")
    for cell in code(notebook):
        cell.outputs = []
    missing = nbformat.v4.new_code_cell("inspection.load('runs/missing')")
    missing.metadata.tags = ["raises-exception"]
    notebook.cells += [nbformat.v4.new_code_cell(MOVE), missing]
    environment = {
        "IPYTHONDIR": str(home),
        "JAX_PLATFORMS": "cpu",
        "JUPYTER_RUNTIME_DIR": str(home),
        "PYTHONPATH": str(ROOT),
        "URNET_WORKDIR": str(workdir),
    }
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return code(notebook)


def test_the_two_files_hold_the_same_cells():
    twin = jupytext.read(NOTEBOOK.with_suffix(".py"))
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (read(), twin)]
    assert cells[0] == cells[1], "run `make notebook`"


def test_the_committed_notebook_shows_its_pictures_and_no_path_of_a_machine():
    assert NOTEBOOK.stat().st_size < 1e6
    notebook = read()
    assert len(shown(code(notebook), "image/png")) >= PICTURES - 2
    assert len(shown(code(notebook), WIDGET)) == 1
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            output.get("data", {}).pop("image/png", None)
    notebook.metadata.pop("widgets")  # The slider's picture, too.
    text = json.dumps(notebook)
    assert not re.search(
        r"(?<![\w.:])/(home|mnt|opt|root|tmp|usr|Users|var|work)/|[A-Z]:\\\\", text
    )


def test_it_runs_from_start_to_end_and_shows_pictures(executed):
    own = executed[:-2]
    streams = [output for cell in own for output in cell.outputs if output.output_type == "stream"]
    assert [output.text for output in streams if output.name == "stderr"] == []
    assert len(shown(own, "image/png")) >= PICTURES - 2
    assert len(shown(own, WIDGET)) == 1
    assert "360 images of digits test" in "".join(output.text for output in streams)


def test_the_slider_shows_what_the_chosen_scale_does(executed):
    # A kernel may send what is printed in one piece or in several.
    printed = "".join(output.text for output in executed[-2].outputs)
    low, high = (line.split("; ") for line in printed.splitlines())
    assert low[0] == "0.2" and low[2].startswith("S = 0.2: top-1 ")
    assert high[0] == "1.0" and high[2].startswith("S = 1: top-1 ")
    assert low[1] != high[1]
    assert low[2].split(":")[1] != high[2].split(":")[1]
    bars = [json.loads(heights) for _, _, _, heights in (low, high)]
    assert len(bars[0]) == 3 and sum(bars[0]) < sum(bars[1])


def test_a_missing_run_is_one_sentence(executed):
    (output,) = executed[-1].outputs
    assert output.ename == "UserError"
    assert output.traceback == [f"error: {output.evalue}"]
    assert output.evalue.startswith("The workdir runs/missing holds no checkpoint; train there")


@pytest.mark.parametrize("folder", [ROOT, NOTEBOOK.parent])
def test_paths_start_at_the_repository_wherever_it_is_opened(monkeypatch, folder):
    monkeypatch.delenv("URNET_WORKDIR", raising=False)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for _ in range(2):  # The cell may be run again.
        exec(code(read())[0].source, names)
        assert pathlib.Path.cwd() == ROOT
    assert names["WORKDIR"] == "runs/digits"
