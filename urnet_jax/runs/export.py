"""What a run's network is written as for others: PyTorch's state dict, or a bundle."""

import json
from typing import Any, Literal

from etils import epath

from urnet_jax import config as config_lib
from urnet_jax.phases import PHASES
from urnet_jax.runs import bundle as bundle_lib
from urnet_jax.runs import calibration, profile
from urnet_jax.runs.bundle import Bundle
from urnet_jax.runs.load import load_network
from urnet_jax.runs.pretrained import export_state_dict
from urnet_jax.runs.tensor_names import Names
from urnet_jax.runs.torch_files import check_output, write_state_dict


def export_workdir(
    workdir: epath.PathLike, output: epath.PathLike, which: Literal["newest", "best"] | int,
    like: Names = "torchvision",
) -> None:  # fmt: skip
    """Writes the network of a run's checkpoint, averaged if it is, as a state dict.

    Gates that no phase has trained yet are left out.

    Args:
      workdir: of the run.
      output: the file, `.safetensors`, `.pt`, `.pth` or `.th`.
      which: as for `load.load_network`.
      like: whose names the tensors are given, see `export_state_dict`.

    Raises:
      UserError: the workdir holds no such checkpoint, or `output` cannot be written.
    """
    check_output(output)
    meta, params, batch_stats = load_network(workdir, which)
    arch = config_lib.architecture(meta.config)
    # A file that the run began from may have brought some.
    trained = PHASES[meta.phase].own_gates or meta.config.init["from"] != ""
    tensors = export_state_dict(params, batch_stats, arch, like, gates=trained)
    write_state_dict(tensors, output)
    print(f"{arch.describe()}, step {meta.step} ({meta.phase}): {len(tensors)} tensors")
    if arch.gated and not trained:
        print("Its gates are not trained yet, and left out.")
    if arch.gated and (prior := getattr(arch, "gate_prior", 0.0)):
        print(f"Its gates are those of model.gate_prior={prior:g}, which no tensor holds.")
    if calibration.read(workdir, meta.step) is not None:
        print("Its calibration is not in the file: urnet calibrate makes one where it is read.")
    print(output)


def bundle_of(workdir: epath.PathLike, which: Literal["newest", "best"] | int) -> Bundle:
    """A run's checkpoint with all that belongs to it; a UserError where there is none."""
    found = load_network(workdir, which)
    step = found.meta.step
    return Bundle(*found, calibration.read(workdir, step), profile.read(workdir, step))


def export_bundle(
    workdir: epath.PathLike, output: epath.PathLike, which: Literal["newest", "best"] | int
) -> None:
    """Writes a run's checkpoint as a bundle, see `bundle.write`.

    Args:
      workdir: of the run.
      output: the folder.
      which: as for `load.load_network`.

    Raises:
      UserError: the workdir holds no such checkpoint, or the folder cannot be written.
    """
    bundle = bundle_of(workdir, which)
    arch, meta = config_lib.architecture(bundle.meta.config), bundle.meta
    bundle_lib.check_served(arch)
    written = bundle_lib.write(bundle, output, card(bundle, _evaluated(workdir, meta.step)))
    print(f"{arch.describe()}, step {meta.step} ({meta.phase})")
    if bundle.calibration is None and config_lib.heeds_scale(meta.config, meta.phase):
        print("It is not calibrated: urnet calibrate makes S the share of FLOPs that is used.")
    print(*written, sep="\n")


def _evaluated(workdir: epath.PathLike, step: int) -> dict[str, Any] | None:
    """What the workdir's eval.json holds of that step, None if it holds nothing."""
    try:
        found = json.loads((epath.Path(workdir) / "eval.json").read_text())
        return found if found["step"] == step else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def card(bundle: Bundle, evaluated: dict[str, Any] | None) -> str:
    """The model card: what the network is, how it is used and what it reached.

    Args:
      bundle: that it is of.
      evaluated: what evaluate.py wrote into eval.json, or None.
    """
    config, meta = bundle.meta.config, bundle.meta
    arch = config_lib.architecture(config)
    lines = [
        "---", "library_name: urnet_jax", "pipeline_tag: image-classification",
        "tags: [image-classification, conditional-computation, dynamic-inference]",
        "---", "", f"# {arch.name} for {config.data.name}", "",
        f"A {arch.describe()}, trained with urnet_jax for {meta.step:,} steps.",
        "", "```python", "import urnet_jax", "",
        'predictor = urnet_jax.load("this/folder")',
    ]  # fmt: skip
    shape = f"[n, {arch.image_size}, {arch.image_size}, {arch.image_channels}]"
    if config_lib.heeds_scale(config, meta.phase):
        lines += [
            f"answer = predictor(images, scale=0.5)  # pixels of 0 to 255, {shape}",
            "answer.classes, answer.probabilities, answer.flops", "```", "",
            "`scale`, S, from 0 to 1, is the share of the network that is run; one for all images, "
            "or one for each.",
        ]  # fmt: skip
    else:
        lines += [f"answer = predictor(images)  # pixels of 0 to 255, {shape}",
                  "answer.classes, answer.probabilities, answer.flops", "```"]  # fmt: skip
    if bundle.calibration is not None:
        lines += ["", "It is calibrated: S is the share of FLOPs that is used, in the mean over "
                      "images like those that it was trained on."]  # fmt: skip
    if evaluated is not None:
        lines += ["", f"On the {evaluated['rows'][0]['examples']:,} images of "
                      f"{evaluated['dataset']} {evaluated['split']}:", "",
                  "| S | FLOPs, % | top-1, % |", "|---|---|---|"]  # fmt: skip
        lines += [
            f"| {row['scale']:g} | {100 * row['flops_share']:.1f} | {row['top1_percent']:.2f} |"
            for row in evaluated["rows"]
        ]
    return "\n".join([*lines, ""])
