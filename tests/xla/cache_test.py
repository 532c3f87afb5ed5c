"""Compiled programs that a second process finds; each process has an environment of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

COMPILES = """
import jax, jax.numpy as jnp
from urnet_jax.xla import cache

found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
cache.keep_compiled()
jax.jit(lambda x: jnp.sin(x).sum())(jnp.ones(3)).block_until_ready()
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def run(arguments, changes, **options):
    """Runs Python where no cache is named, but for what `changes` says."""
    others = ("JAX_COMPILATION_CACHE_DIR", "URNET_COMPILATION_CACHE")
    own = {k: v for k, v in os.environ.items() if k not in others}
    own |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, *arguments], env=own | changes, cwd=ROOT, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def compiles(changes):
    code, printed, errors = run(["-c", COMPILES], changes)
    assert code == 0, errors
    return int(printed), errors


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    own = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = tmp_path / "urnet_jax" / "compiled"
    assert compiles(own) == (0, "")
    entries = sorted(folder.iterdir())
    assert entries and folder.stat().st_mode & 0o77 == 0
    os.utime(entries[0], (0, 0))  # Of 1970: it is thrown away, and compiled and kept again.
    hits, errors = compiles(own)
    assert hits == len(entries) - 1 and not errors
    assert sorted(folder.iterdir()) == entries
    assert compiles(own) == (len(entries), "")


def test_without_xdg_it_lies_in_the_home_and_a_relative_one_does_not_count(tmp_path):
    compiles({"HOME": str(tmp_path), "XDG_CACHE_HOME": "relative"})
    assert list((tmp_path / ".cache" / "urnet_jax" / "compiled").iterdir())
    assert not (ROOT / "relative").exists()


def test_it_can_be_turned_off_and_jax_may_have_a_folder_of_its_own(tmp_path):
    own = {"XDG_CACHE_HOME": str(tmp_path / "own")}
    assert compiles(own | {"URNET_COMPILATION_CACHE": "off"}) == (0, "")
    assert compiles(own | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}) == (0, "")
    assert not (tmp_path / "own").exists()
    assert list((tmp_path / "jax").iterdir())


def test_another_value_is_an_error(tmp_path):
    code, _, errors = run(["-c", COMPILES], {"URNET_COMPILATION_CACHE": "0"})
    assert code == 1
    assert errors.endswith("URNET_COMPILATION_CACHE is '0'; expected off, or nothing at all.\n")


def test_a_folder_that_cannot_be_made_is_one_note(tmp_path):
    (tmp_path / "file").write_text("")
    hits, errors = compiles({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert hits == 0
    assert errors.startswith("Mind: compiled programs cannot be kept (")
    assert errors.count("\n") == 1


def test_an_entry_that_was_cut_short_is_compiled_again_without_a_word(tmp_path):
    own = {"XDG_CACHE_HOME": str(tmp_path)}
    compiles(own)
    entries = list((tmp_path / "urnet_jax" / "compiled").iterdir())
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-40])
    assert compiles(own) == (0, "")


@pytest.mark.slow
def test_a_second_run_compiles_no_step(tmp_path):
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    own["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    short = [f"--config.{name}=0" for name in ("gates.epochs", "joint.epochs")]
    short += ["--config.model.depth=8", "--config.pretrain.epochs=0.05"]
    steps = []
    for name in ("first", "second"):
        workdir = f"--workdir={tmp_path / name}"
        for script in (["train.py", "--config=configs/digits.py", *short], ["evaluate.py"]):
            code, _, errors = run([*script, workdir], own)
            assert code == 0 and not errors, errors
            entries = (tmp_path / "cache" / "urnet_jax" / "compiled").iterdir()
            steps.append(sorted(entry.name for entry in entries if "step" in entry.name))
    assert steps[0] and steps[1] == steps[2] == steps[3]
    assert len(steps[1]) > len(steps[0])
