"""Pruning: of a channel-gated network at one S the channels that images use, as a plain one."""

from typing import Literal

import numpy as np
from etils import epath

from urnet_jax.config import heeds_scale
from urnet_jax.errors import UserError
from urnet_jax.evaluate import calibration, inspection
from urnet_jax.evaluate.evaluation import check_scales, evaluate
from urnet_jax.evaluate.image_part import DECIDES
from urnet_jax.evaluate.run import Run, check_gates
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.cost import macs_per_sample
from urnet_jax.runs import pretrained
from urnet_jax.runs.pruning import pruned
from urnet_jax.runs.torch_files import check_output, write_state_dict


def prune_workdir(
    workdir: epath.PathLike,
    output: epath.PathLike,
    scale: float = 1.0,
    *,
    which: Literal["newest", "best"] | int = "newest",
    images: int = 2000,
    data_dir: str = "",
) -> float:
    """Writes the channels that images use at one S as a plain network's state dict, and says more.

    The channels that none of the images use are cut; all others run for every image. On as many
    other training images it says how accurate the plain network is, and how accurate the gated one
    at that S.

    Args:
      workdir: of the run.
      output: the file, `.safetensors`, `.pt`, `.pth` or `.th`.
      scale: S; 1 where gates do not see it.
      which: its checkpoint, see `load.load_network`.
      images: training images that say which channels are used.
      data_dir: where the dataset lies now; by default where the config says.

    Returns:
      The share of channels that is left.

    Raises:
      UserError: the run's gates do not switch channels, or an argument is not usable.
    """
    check_output(output)
    (scale,) = check_scales((scale,))
    run = inspection.load(workdir, which, data_dir)
    check_gates(run, workdir)
    arch = _channel_gated(run, workdir, scale)
    seen, unseen = calibration.halves(run, images)
    used = run.evaluate((scale,), seen).gates[0].any(axis=0)
    tensors = pretrained.export_state_dict(run.params, run.batch_stats, arch)
    small = pruned(tensors, arch, used)
    forced = evaluate(
        run.eval_step, *run.variables, unseen, run.config, (scale,),
        min(run.config.eval.batch_size, unseen.num_examples), progress=False, mesh=run.mesh,
        offset=lambda _: DECIDES * (2.0 * used.astype(np.float32) - 1),
    )  # fmt: skip
    gated = run.evaluate((scale,), unseen)
    # A layer that no image uses keeps one channel, which gives 0.
    left = 2 * macs_per_sample(gated.arch, used[None].astype(np.float32))[0]
    left -= 2 * gated.arch.cost.gate_macs
    write_state_dict(small, output)
    print(
        f"Of {arch.describe()}, step {run.meta.step}, {used.sum()} of {used.size} "
        f"{arch.gate_noun} are used by {seen.num_examples} training images at S = {scale:g}: "
        f"{100 * left / gated.full_flops:.1f} % of the FLOPs of the whole network.\n"
        f"{gated.measure.at_the_start} on {unseen.num_examples} other training images: "
        f"{forced.measured[0]:.2f} % as this plain network, {gated.measured[0]:.2f} % with gates, "
        f"at {100 * gated.flops.mean() / gated.full_flops:.1f} % of the FLOPs.\n{output}"
    )
    return float(used.mean())


def _channel_gated(run: Run, workdir: epath.PathLike, scale: float) -> ChannelGated:
    """The run's network; a UserError where its gates switch no channels, or do not see that S."""
    if not isinstance(run.arch, ChannelGated):
        raise UserError(
            f"{workdir} holds a {run.arch.describe()}, whose gates do not switch channels: leave "
            "--prune_at out, or name the workdir of a channel-gated network."
        )
    if scale != 1 and not heeds_scale(run.config, run.meta.phase):
        raise UserError(
            f"--prune_at is {scale:g}, and the gates of the network in {workdir} do not see S "
            "(model.gate_scale is False): set it to 1."
        )
    return run.arch
