"""What the README and the pages tell people to type: it runs, or names what is there."""

import pathlib
import re
import shlex
import subprocess

import matplotlib
import pytest

from urnet_jax import config as config_lib
from urnet_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: pathlib.Path) -> list[str]:
    """The lines of shell, each with those that continue it; comments stay."""
    return [
        line.strip()
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in kept}


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        pytest.param("docs/inference.md", marks=pytest.mark.slow),
        pytest.param("docs/inspection.md", marks=pytest.mark.slow),
        pytest.param("docs/serving.md", marks=pytest.mark.slow),
    ],
)
def test_the_python_of_a_page_runs(name, finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    found = blocks(ROOT / name, "python")
    assert found
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, name, "exec"), names)
    if name == "README.md":
        assert (tmp_path / "easy_and_hard.png").stat().st_size > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_shell_of_a_page_names_what_is_there(page):
    for block in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for command in commands(page):
        for target in re.findall(r"\bmake ([a-z-]+)", command.split("#")[0]):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), command
        for file in re.findall(r"[\w/]+\.(?:py|ipynb)\b", command):
            assert (ROOT / file).exists() or page.name == "own_data.md", command
        for name in re.findall(r"\b(?:urnet|urnet_jax) ([a-z]+)", command):
            assert name in COMMANDS, command
        for field in re.findall(r"--config\.([\w.]+)", command):
            config_lib.field(field)
        for config in re.findall(r"--config=(\S+)", command):
            config_lib.validate(config_lib.load(shlex.split(config)[0]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md" and "api" not in target.parts:
            assert anchor in anchors(target), link
