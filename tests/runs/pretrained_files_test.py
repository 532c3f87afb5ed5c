"""Files of state dicts: PyTorch's and safetensors."""

import argparse
import io
import pickle
import re
import struct
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from helpers.pretrained_networks import ARCHS, exported
from urnet_jax.errors import UserError
from urnet_jax.runs import torch_files


@pytest.mark.slow
def test_pytorchs_files_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = exported(ARCHS["A"])
    for suffix in (".pt", ".pth", ".th"):
        torch_files.write_state_dict(tensors, tmp_path / f"x{suffix}")
        again = torch_files.read_state_dict(tmp_path / f"x{suffix}")
        assert again.keys() == tensors.keys()
        jax.tree.map(np.testing.assert_array_equal, again, tensors)
    half = {"state_dict": {"a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}}
    torch.save(half, tmp_path / "half.pt")
    assert torch_files.read_state_dict(tmp_path / "half.pt")["a"].tolist() == [1, 1]


class RunsAProgram:
    def __reduce__(self):
        return print, ("This ran.",)


@pytest.mark.slow
def test_pytorchs_files_that_are_no_state_dicts(tmp_path, capfd):
    torch = pytest.importorskip("torch")
    half = io.BytesIO()
    torch.save({"a": torch.ones(9999)}, half, _use_new_zipfile_serialization=False)
    (tmp_path / "half.pt").write_bytes(half.getvalue()[:9999])
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "epoch.pt")
    torch.save([1], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pt")
    torch.save({"a": RunsAProgram()}, tmp_path / "program.pt")
    capfd.readouterr()
    refused = "beside tensors; it is not opened, since such a file can run any program: write"
    for name, words in [
        ("half.pt", "half.pt is damaged or cut short: PyTorch cannot read it; copy or download"),
        ("module.pt", f"holds an object of the class torch.nn.modules.linear.Linear {refused}"),
        ("old.pt", f"holds an object of the class torch.nn.modules.linear.Linear {refused}"),
        ("args.pt", f"holds an object of the class argparse.Namespace {refused}"),
        ("program.pt", f"{refused} the weights alone, with torch.save(model.state_dict(), FILE)."),
        ("epoch.pt", "its entry 'epoch' is of type int, not a tensor; write the weights alone"),
        ("list.pt", "its entry '(all)' is of type list, not a tensor; write the weights alone"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)) as error:
            torch_files.read_state_dict(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
        assert error.value.__cause__ is None or name == "half.pt"
    assert "This ran." not in "".join(capfd.readouterr())


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.ones(3))
    return content.getvalue()


def zip_of(*names: str) -> bytes:
    """As PyTorch writes it, as far as names go."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    return content.getvalue()


WHOLE = safetensors.numpy.save({"a": np.ones(99, np.float32)})
FOREIGN = {
    "empty": (b"", "is empty: name a .safetensors file, or one by torch.save(model.state_dict()"),
    "text": (b"no checkpoint\n", "is a text file:"),
    "words": ("Größe\n".encode() * 999, "is a text file:"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid 4d7a\n",
        "is a pointer of Git",
    ),
    "image": (png(), "is an image (PNG):"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes them:"),
    "npz": (npz(), "is a zip archive that PyTorch did not write:"),
    "script": (
        zip_of("net/data.pkl", "net/constants.pkl"),
        "is a TorchScript program, not weights alone: name a .safetensors file",
    ),
    "zip": (zip_of("net/data.pkl")[:40], "is damaged or cut short (a zip archive without its end)"),
    "pickle": (pickle.dumps({"a": 1}), "is a pickle that PyTorch did not write, which could run"),
    "zeros": (bytes(99), "is no file of weights:"),
    "noise": (bytes(range(128, 256)), "is no file of weights:"),
    "half": (WHOLE[:-9], "is damaged or cut short: safetensors cannot read it; copy or download"),
    "torch": (zip_of("net/data.pkl"), "is a file of PyTorch, which is not installed: install the"),
    "old torch": (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "is a file of PyTorch, which is not installed: install the extra with `pip install ",
    ),
}


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_file_holds_decides_and_not_its_name(kind, suffix, tmp_path, monkeypatch):
    content, words = FOREIGN[kind]
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=re.escape(f"{file} {words}")) as error:
        torch_files.read_state_dict(file)
    assert "\n" not in str(error.value)
    file.write_bytes(WHOLE)
    assert torch_files.read_state_dict(file)["a"].tolist() == [1] * 99


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    header = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    (tmp_path / "half.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    for name, words in [
        ("gone.th", "cannot be read (No such file or directory); name a file of weights."),
        (
            "folder.pt",
            "is a folder without model.safetensors or pytorch_model.bin; name a file of weights, "
            "or set init_from of the first phase to begin with a run by train.py.",
        ),
        ("half.safetensors", "holds tensors of type BF16, which NumPy lacks: write them as float"),
    ]:
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / name} {words}")):
            torch_files.read_state_dict(tmp_path / name)


def test_files_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in [
        ("x.npz", r"x\.npz is no name for a checkpoint; expected .* \.safetensors, \.pt, \.pth or"),
        ("x.pt", r"x\.pt is a file of PyTorch, which is not installed"),
        ("gone/x.safetensors", r"cannot be written \(No such file or directory\); name another"),
    ]:
        with pytest.raises(UserError, match=words):
            torch_files.write_state_dict({"a": np.ones(2)}, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_plain_safetensors(tmp_path):
    tensors = exported(ARCHS["A"])
    strided = {name: np.asfortranarray(tensor) for name, tensor in tensors.items()}
    torch_files.write_state_dict(strided, tmp_path / "x.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, again, tensors)


def test_a_folder_by_save_pretrained_is_as_good_as_its_file(tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text("{}")
    (saved / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"in several files \(model.safetensors.index.json\); save"):
        torch_files.read_state_dict(saved)
    (saved / "model.safetensors").write_bytes(WHOLE)
    assert torch_files.read_state_dict(saved)["a"].tolist() == [1] * 99
