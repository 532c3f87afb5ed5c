"""One run at a time in a workdir, and which folders are left of a refused one."""

import pathlib

import pytest

from urnet_jax.errors import UserError
from urnet_jax.runs.lock import locked
from urnet_jax.train import loop


def test_a_second_run_is_refused_and_leaves_the_folder_to_the_first(tmp_path):
    workdir = tmp_path / "runs" / "mine"
    with locked(workdir):
        with pytest.raises(UserError, match="Another run is at work in the workdir"):
            with locked(workdir):
                pass
        assert workdir.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "run"):
            raise KeyError


def test_only_folders_that_the_run_made_are_removed(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = tiny({"init.from": "gone.safetensors"})
    pathlib.Path("mine/empty").mkdir(parents=True)
    for workdir in ("mine/empty", "mine/empty/new/run", "new/run", "mine/other"):
        with pytest.raises(UserError, match="cannot be read"):
            loop.train_and_evaluate(refused, workdir)
        assert sorted(map(str, pathlib.Path().rglob("*"))) == ["mine", "mine/empty"]


def test_a_folder_with_something_in_it_stays(tmp_path):
    workdir = tmp_path / "runs" / "mine"
    with locked(workdir):
        (workdir / "kept.txt").touch()
    assert (workdir / "kept.txt").exists()
