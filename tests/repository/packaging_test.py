import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "urnet_jax", "configs")

USE = """
import importlib.metadata

import urnet_jax
import urnet_jax.configs.digits
from urnet_jax.evaluate.page import pieces

distribution = importlib.metadata.distribution("urnet-jax")
scripts = distribution.entry_points.select(group="console_scripts")
assert distribution.version == urnet_jax.__version__
assert all(callable(script.load()) for script in scripts)
assert "<h1>A title</h1>" in pieces.render("A title", [])
print(urnet_jax.__file__)
print(urnet_jax.configs.digits.__file__)
print(urnet_jax.configs.digits.get_config().data.name)
print(*sorted(script.name for script in scripts))
"""


def run(*arguments: str, cwd: pathlib.Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A wheel built from a copy, so that the build leaves nothing in the working tree."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_package_and_every_config(wheel: pathlib.Path):
    package = [path for path in (ROOT / "urnet_jax").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in package if path.suffix != ".pyc"}
    expected |= {f"urnet_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_installed_wheel_works_outside_the_repository(wheel: pathlib.Path, tmp_path: pathlib.Path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    # To install a wheel of pure Python is to unpack it, and needs no pip in the environment.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    printed = run("-c", USE, cwd=elsewhere, PYTHONPATH=str(site), JAX_PLATFORMS="cpu")
    module, config, name, scripts = printed.splitlines()
    # Not those of an editable install, which the same interpreter may also find.
    assert pathlib.Path(module) == site / "urnet_jax" / "__init__.py"
    assert pathlib.Path(config) == site / "urnet_jax" / "configs" / "digits.py"
    assert name == "digits"
    assert scripts == "urnet"
