"""Networks for dense prediction are trained, evaluated, shown and exported as any other."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import urnet_jax
from helpers import label_maps
from helpers.dense_networks import dense_config
from helpers.own_data import encoded
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.evaluate import calibration, inspection, job, maps, pruning
from urnet_jax.evaluate.evaluation import evaluate, summarize
from urnet_jax.nets import network
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.contract import GateInputs
from urnet_jax.runs import export, pretrained, torch_files, writers
from urnet_jax.runs.load import load_network
from urnet_jax.serve import profiling
from urnet_jax.train import loop
from urnet_jax.train.objective import Along, make_loss


@pytest.fixture(scope="module")
def both(cells, tmp_path_factory) -> Any:
    workdir = tmp_path_factory.mktemp("dense") / "both"
    loop.train_and_evaluate(dense_config(cells, "camvid_resnet18_bas:both"), workdir)
    return workdir


@pytest.mark.parametrize("kind", ["segmenter", "both"])
def test_it_learns_and_says_so_in_its_own_measure(kind, request):
    lines = writers.read(request.getfixturevalue(kind))
    trained = [line for line in lines if line["kind"] == "train"]
    begun, ended = (
        np.mean([line["task_loss"] for line in own]) for own in (trained[:3], trained[-3:])
    )
    assert ended < begun
    assert 0 <= trained[-1]["pixels_right"] <= 1 and "top1" not in trained[-1]
    found = [line for line in lines if line["kind"] == "eval"]
    assert [line["scale"] for line in found] == [0.5, 1.0]
    assert all(0 <= line["miou_percent"] <= 100 and "top1_percent" not in line for line in found)


@pytest.mark.parametrize("twice", [False, True])
def test_the_auxiliary_head_learns_with_its_weight(cells, twice):
    """The loss is that of the prediction and, weighed, that of the auxiliary head."""
    found = {}
    for weight in (0.4, 0.8):
        config = dense_config(cells)
        config.distill.weight = 0.5 if twice else 0.0
        config.model.auxiliary_weight = weight
        arch, build = config_lib.network(config)
        params, stats = network.init_variables(arch, build, 0)
        rng = np.random.default_rng(0)
        gates = jnp.ones((4, arch.num_gates))
        batch = {
            "image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8),
            "label": rng.integers(-1, 24, (4, 32, 32), np.int32),
            "index": np.arange(4), "epoch": np.zeros(4, np.int32),
            "inputs": GateInputs(jnp.full(4, 0.5), offset=50 * gates),
        }  # fmt: skip
        along = Along(jnp.ones(()), jnp.zeros(len(config.scale.anchors)))
        loss_of = make_loss(config, "joint", "cpu")
        slope_of = jax.jit(jax.grad(functools.partial(loss_of, {}, along), has_aux=True))
        slopes, (_, outputs) = slope_of(params, stats, batch)
        found[weight] = slopes["auxiliary"]["classifier"]["fc"]["kernel"], outputs["loss"]
    # The same head, of whose gradient twice as much counts.
    np.testing.assert_allclose(found[0.8][0], 2 * found[0.4][0], rtol=1e-4, atol=1e-7)
    assert np.abs(found[0.4][0]).max() > 1e-4 and found[0.8][1] > found[0.4][1] + 0.5


def test_evaluation_is_the_same_in_batches_of_any_size(segmenter):
    """To the pixel: the confusion matrix of each image, and that of all by scikit-learn."""
    run = inspection.load(segmenter)
    split = run.split()
    found = [
        evaluate(run.eval_step, *run.variables, split, run.config, (0.5, 1.0), size, progress=False)
        for size in (1, 3, 8)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.counts, found[0].counts)
        np.testing.assert_array_equal(other.gates, found[0].gates)
        np.testing.assert_allclose(other.loss, found[0].loss, rtol=1e-5)
    from sklearn.metrics import jaccard_score

    shown = maps.predict(run, (0.5, 1.0), range(7), split)
    for k, miou in enumerate(summarize(found[0])["miou_percent"]):
        counted = shown.labels >= 0
        said = shown.answers[k][counted]
        classes = np.union1d(shown.labels[counted], said)
        expected = jaccard_score(shown.labels[counted], said, average="macro", labels=classes)
        assert miou == pytest.approx(100 * expected, abs=1e-9)
    np.testing.assert_allclose(shown.right, found[0].right, rtol=1e-6)
    np.testing.assert_allclose(shown.flops_shares, found[0].flops / found[0].full_flops, rtol=1e-6)


def test_an_image_costs_what_its_whole_size_does(segmenter):
    run: Any = inspection.load(segmenter)
    found = run.evaluate((1.0,))
    assert run.arch.image_size == 32 and found.arch.image_size == (40, 56)
    assert found.flops[0, 0] == 2 * run.arch.at((40, 56)).cost.full_macs


@pytest.mark.parametrize("kind", ["segmenter", "both"])
def test_every_execution_says_the_same_and_the_page_shows_it(kind, request, tmp_path, capsys):
    workdir = request.getfixturevalue(kind)
    found = []
    for how in ("dense", "auto"):
        summary = job.evaluate_workdir(
            workdir, execution=how, output=tmp_path / how, report=how == "auto"
        )
        found.append(summary[["miou_percent", "pixels_right_percent", "flops_mean"]].to_numpy())
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert "mIoU, %" in capsys.readouterr().out
    assert (tmp_path / "auto" / "miou_vs_flops.png").stat().st_size > 10_000
    page = (tmp_path / "auto" / "report.html").read_text()
    for words in ("mIoU against FLOPs", "IoU by class", "What the network sees", ": fewest pixels"):
        assert words in page
    with np.load(tmp_path / "auto" / "eval_samples.npz") as samples:
        assert samples["counts"].shape == (2, 7, label_maps.CLASSES, label_maps.CLASSES)


def test_it_is_calibrated_and_not_served(both, tmp_path, capsys):
    found = calibration.calibrate_workdir(both, scales=(0.5, 0.8), images=6, progress=False)
    assert found.error < 0.1
    assert profiling.profile_workdir(both, images=6, batch_sizes=(1,), progress=False) is None
    assert "says a class for each pixel is not served" in capsys.readouterr().out
    for refused in (
        lambda: urnet_jax.load(both),
        lambda: export.export_bundle(both, tmp_path / "bundle", "newest"),
    ):
        with pytest.raises(UserError, match="says a class for each pixel, and only networks that"):
            refused()


def test_what_has_no_labelled_pixel_is_left_out_and_that_is_said(segmenter, tmp_path, capsys):
    (image, labels), whole = label_maps.pair(), label_maps.files(3)
    empty = labels.point(lambda _: label_maps.IGNORED)
    test = [*whole, (encoded(image), encoded(empty))]
    label_maps.build(tmp_path, "cells", {"train": whole, "test": test})
    found = job.evaluate_workdir(segmenter, data_dir=str(tmp_path), output=tmp_path / "out")
    assert found["examples"].tolist() == [3, 3]
    assert "Mind: 1 of 4 images are left out" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["segmenter", "both"])
def test_what_is_exported_is_taken_back(kind, request, tmp_path):
    workdir = request.getfixturevalue(kind)
    file = tmp_path / "x.safetensors"
    export.export_workdir(workdir, file, "newest")
    tensors = torch_files.read_state_dict(file)
    assert tensors["head.pool6.conv.weight"].shape == (16, 64, 1, 1)
    assert tensors["auxiliary.classifier.fc.weight"].shape == (label_maps.CLASSES, 8)
    meta, *expected = load_network(workdir)
    again = meta.config.copy_and_resolve_references()
    again.init["from"] = str(file)
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.initial_variables(again), tuple(expected)
    )


def test_it_begins_with_a_run_that_saw_other_sizes(segmenter, cells, tmp_path):
    fields = {"joint.init_from": str(segmenter), "joint.epochs": 0.4, "data.image_size": 48}
    fields |= {"data.eval_size": (48, 64), "joint.warmup_epochs": 0.0}
    loop.train_and_evaluate(dense_config(cells, **fields), tmp_path)
    assert load_network(tmp_path).meta.config.data.image_size == 48


def test_it_begins_with_the_weights_of_a_network_for_classes(cells, tmp_path):
    from helpers.pretrained_networks import exported

    file = tmp_path / "resnet18.safetensors"
    config = dense_config(cells, **{"init.from": str(file)})
    for classes, said in ((24, "is not a whole plain"), (5, "num_classes 24, not 5")):
        plain = Architecture("imagenet", 18, classes, 32, width=8, shortcut="B", gated=False)
        torch_files.write_state_dict(exported(plain), file)
        with pytest.raises(UserError, match=f"{said}.* set init.head to 'new'"):
            pretrained.initial_variables(config)
    config.init.head = "new"
    params, _ = pretrained.initial_variables(config)
    np.testing.assert_array_equal(
        params["conv1"]["kernel"], np.transpose(exported(plain)["conv1.weight"], (2, 3, 1, 0))
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model.kind": "resnet"}, "data.labels is 'map', and .* of the kind 'class'"),
        ({"data.ignored_label": 3}, "data.ignored_label is 3, which is one of the classes 0 to 23"),
        ({"data.eval_size": ()}, "data.eval_size is \\(\\); with data.labels 'map' expected"),
        ({"data.augment": "crop"}, "data.augment is 'crop'; with data.labels 'map' expected"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(cells, fields, sentence):
    config = dense_config(cells)
    if fields.get("model.kind") == "resnet":
        with config.unlocked():
            del config.model.auxiliary_weight
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=sentence):
        config_lib.validate(config)


def test_channels_that_no_image_uses_are_cut(both, tmp_path, capsys):
    pruning.prune_workdir(both, tmp_path / "small.safetensors", 0.5, images=6)
    printed = " ".join(capsys.readouterr().out.split())
    assert "mIoU on 6 other training images" in printed
    share = re.search(r"at S = 0.5: ([\d.]+) % of the FLOPs", printed)
    used = re.search(r"with gates, at ([\d.]+) % of the FLOPs", printed)
    assert share and used and float(share[1]) > float(used[1]) - 1  # What any image uses.


def test_a_heads_file_without_the_auxiliary_one_is_whole(segmenter, tmp_path):
    meta, params, stats = load_network(segmenter)
    arch = config_lib.architecture(meta.config)
    tensors = pretrained.export_state_dict(params, stats, arch)
    less = {name: t for name, t in tensors.items() if not name.startswith("auxiliary.")}
    without = dataclasses.replace(arch, auxiliary_weight=0.0)
    for held, of in ((less, arch), (tensors, without)):
        own = network.init_variables(of, config_lib.network(meta.config)[1], 1)
        found, _ = pretrained.import_state_dict(held, of, *own)
        np.testing.assert_array_equal(found["conv1"]["kernel"], params["conv1"]["kernel"])
    with pytest.raises(UserError, match="--names is 'huggingface', whose ResNets say one class"):
        pretrained.export_state_dict(params, stats, arch, "huggingface")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("camvid_resnet18", ("blocks", "plain")),
        ("camvid_resnet18_bas", ("resizable", "both", "short")),
        ("cityscapes_resnet50_bas", ("resizable", "both", "short")),
    ],
)
def test_the_shipped_rows_are_whole(name, rows):
    for row in rows:
        config = config_lib.load(f"{name}:{row}")
        config_lib.validate(config)
        depth = re.search(r"resnet(\d+)", name)
        assert depth and config_lib.architecture(config).name == f"PSPNet-{depth[1]}"
        assert config_lib.heeds_scale(config) == (row not in ("plain", "short"))
    with pytest.raises(UserError, match=f"^{name} has no row 'x'; its rows are {', '.join(rows)}"):
        config_lib.load(f"{name}:x")
