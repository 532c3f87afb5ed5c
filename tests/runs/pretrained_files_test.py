"""Files of state dicts: PyTorch's and safetensors."""

import re
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from helpers.pretrained_networks import ARCHS, exported
from urnet_jax.errors import UserError
from urnet_jax.runs import pretrained


def test_pytorchs_files_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = exported(ARCHS["A"])
    for suffix in (".pt", ".pth", ".th"):
        pretrained.write_state_dict(tensors, tmp_path / f"x{suffix}")
        again = pretrained.read_state_dict(tmp_path / f"x{suffix}")
        assert again.keys() == tensors.keys()
        jax.tree.map(np.testing.assert_array_equal, again, tensors)
    half = {"state_dict": {"a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}}
    torch.save(half, tmp_path / "half.pt")
    assert pretrained.read_state_dict(tmp_path / "half.pt")["a"].tolist() == [1, 1]


def test_pytorchs_files_that_are_no_state_dicts(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "text.th").write_text("no checkpoint")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "epoch.pt")
    torch.save([1], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name, words in [
        ("text.th", "is not a checkpoint of tensors alone"),
        ("module.pt", "is not a checkpoint of tensors alone"),
        ("epoch.pt", "its entry 'epoch' is of type int, not a tensor"),
        ("list.pt", "its entry '(all)' is of type list, not a tensor"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)) as error:
            pretrained.read_state_dict(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value) and "torch.save(model.state_dict()" in str(error.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "some.th").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in [
        ("gone.th", r"gone\.th cannot be read \(No such file or directory\); name a PyTorch che"),
        ("folder.pt", r"folder\.pt cannot be read \(Is a directory\)"),
        ("text.safetensors", r"text\.safetensors is not a checkpoint of tensors alone \(.*\); wri"),
        (
            "some.th",
            r"some\.th is a file of PyTorch, .*`pip install '\.\[torch\]'`, or use a \.saf",
        ),
    ]:
        with pytest.raises(UserError, match=words) as error:
            pretrained.read_state_dict(tmp_path / name)
        assert "\n" not in str(error.value)


def test_files_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in [
        ("x.npz", r"x\.npz is no name for a checkpoint; expected .* \.safetensors, \.pt, \.pth or"),
        ("x.pt", r"x\.pt is a file of PyTorch, which is not installed"),
        ("gone/x.safetensors", r"cannot be written \(No such file or directory\); name another"),
    ]:
        with pytest.raises(UserError, match=words):
            pretrained.write_state_dict({"a": np.ones(2)}, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_plain_safetensors(tmp_path):
    tensors = exported(ARCHS["A"])
    strided = {name: np.asfortranarray(tensor) for name, tensor in tensors.items()}
    pretrained.write_state_dict(strided, tmp_path / "x.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, again, tensors)
