"""For tests that train: a compilation cache that all processes share, and one finished run.

And what else more than one module of tests asks for.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jaxtyping
import pytest

# Before JAX is imported: the tests and the processes that they start then compile each program
# once. All share one folder. JAX writes its files in place: one that is read too early, or that a
# kill cut short, fails its checksum, and JAX compiles by itself and warns.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="urnet_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
_UNREAD = "ignore:Error reading persistent compilation cache entry"
os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), _UNREAD]))

# What XLA and its libraries log is of no account to a test. On a busy machine they log more: that a
# program took long to compile, say.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Examples are the same in every run, and may take their time on a busy machine.
hypothesis.settings.register_profile(
    "urnet_jax",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("urnet_jax")

# The helpers' assertions then explain themselves as those of the tests do.
pytest.register_assert_rewrite("helpers")

import helpers.annotations  # noqa: E402, F401
from helpers.folders import once  # noqa: E402

# Before urnet_jax is imported: in this process its annotations are checked, shapes included.
jaxtyping.install_import_hook("urnet_jax", "helpers.annotations.checked")

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = {
    "model.depth": 8,
    "pretrain.epochs": 0.5,  # 11 steps
    "gates.epochs": 0.3,  # 7
    "joint.epochs": 0.5,  # 11
    "eval.every_epochs": 0.2,  # 4
    "eval.scales": (0.2, 1.0),
    "checkpoint.every_epochs": 0.1,  # 2
    "checkpoint.keep_best": 0,
    "log.every_steps": 3,
}
"""Fields in which the tests' runs on digits differ from configs/digits.py, beside `ONE_PASS`."""


QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""A training step of `tiny` compiles in 2 s of CPU time in place of 8, and computes the same but
for rounding. `make test-all` tests what users run, without these."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--optimized",
        action="store_true",
        help="compile as a user's run does, in four times the time",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", _UNREAD)
    if not config.getoption("--optimized"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILATION}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take minutes come first, so that no worker begins one when the others end."""
    first = ("train", "nets", "evaluate", "runs", "repository", "benchmarks")
    order = {name: n for n, name in enumerate(first)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(first)))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Gives the config of a run of seconds; `tiny({"joint.epochs": 0.0})` changes it further."""
    from helpers.configs import one_pass

    def make(fields: dict[str, Any] | None = None) -> Any:
        return one_pass(TINY | (fields or {}))

    return make


@pytest.fixture(scope="session")
def tiny_flags() -> list[str]:
    """The flags with which train.py runs `tiny`."""
    from helpers.configs import ONE_PASS

    fields = ONE_PASS | TINY
    return ["--config=digits", *(f"--config.{name}={value}" for name, value in fields.items())]


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts train.py or evaluate.py with arguments, in the folder `cwd`."""

    def popen(
        script: str, *arguments: str, cwd: pathlib.Path, **environment: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=cwd,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


@pytest.fixture(scope="session")
def finished(tmp_path_factory, start, tiny_flags) -> pathlib.Path:
    """The workdir of a run of `tiny` from the command line; copy it before changing anything."""

    def train(folder: pathlib.Path) -> None:
        with start("train.py", "--workdir=run", *tiny_flags, cwd=folder) as process:
            printed, errors = process.communicate()
        assert process.returncode == 0, errors
        (folder / "printed.txt").write_text(printed)

    return once(tmp_path_factory, "finished", train) / "run"


@pytest.fixture(scope="session")
def cells(tmp_path_factory) -> str:
    """The data_dir of `cells`, 12 images with label maps to train on and 7 to test on."""
    from helpers import label_maps

    def prepare(folder: pathlib.Path) -> None:
        files = {"train": label_maps.files(12), "test": label_maps.files(7)}
        label_maps.build(folder, "cells", files)

    return str(once(tmp_path_factory, "cells", prepare))


@pytest.fixture(scope="session")
def segmenter(cells, tmp_path_factory) -> pathlib.Path:
    """The workdir of a block-gated network for dense prediction, which saw `cells`."""
    from helpers.dense_networks import dense_config
    from urnet_jax.train import loop

    def train(folder: pathlib.Path) -> None:
        loop.train_and_evaluate(dense_config(cells), folder / "run")

    return once(tmp_path_factory, "segmenter", train) / "run"


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leaves annotations unchecked: for tests of what the code itself says of wrong arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def eight_devices() -> Iterator[Any]:
    """Calls a function where JAX has eight CPU devices; see helpers/devices.py."""
    from helpers.devices import Devices

    devices = Devices()
    yield devices
    devices.close()


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of `finished`, which a test may change."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def newest(workdir):
    """The newest checkpoint of `workdir`."""
    return workdir / "checkpoints" / "29"


@pytest.fixture(scope="module")
def run(finished) -> Any:
    """`finished` as inspection.Run."""
    from urnet_jax.evaluate import inspection

    return inspection.load(finished)


@pytest.fixture(scope="module")
def tested() -> Any:
    """The first 64 of the digits' test images, as a batch of the config of `steps_runs`."""
    from helpers.steps_runs import small_config
    from urnet_jax.data.batches import eval_batches
    from urnet_jax.data.sources import open_split

    config = small_config()
    return next(iter(eval_batches(open_split(config.data, "test"), config.data, 64)))


@pytest.fixture(scope="session")
def measured(finished, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run that was calibrated, and measured for batches of 1, 4 and 16."""
    from urnet_jax.evaluate.calibration import calibrate_workdir
    from urnet_jax.serve.profiling import profile_workdir

    def make(folder: pathlib.Path) -> None:
        workdir = shutil.copytree(finished, folder / "run")
        calibrate_workdir(workdir, scales=(0.3, 0.6, 1.0), images=100, progress=False)
        profile_workdir(workdir, images=80, batch_sizes=(1, 4, 16), progress=False)

    return once(tmp_path_factory, "measured", make) / "run"
