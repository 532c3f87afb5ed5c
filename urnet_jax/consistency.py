"""Fields of a config that are each allowed, and contradict one another."""

from typing import Any

import numpy as np

from urnet_jax.errors import UserError
from urnet_jax.nets.labels import labels_of
from urnet_jax.phases import PHASES

LEAST = 8
"""Images that a distribution is told from; of fewer, their order says nothing."""


def check(config: Any, arch: Any, groups: int) -> None:
    """Refuses the first contradiction that is found.

    Args:
      config: whose fields are known and in their ranges.
      arch: the description of its network.
      groups: equal parts of a batch that each have an S of their own.

    Raises:
      UserError: there is one.
    """
    scale = config.scale
    if config.l0.full < config.l0.begins:
        raise UserError(
            f"l0.full is {config.l0.full}, less than l0.begins, {config.l0.begins}; raise l0.full."
        )
    if scale.min > scale.max:
        raise UserError(
            f"scale.min is {scale.min}, more than scale.max, {scale.max}; lower scale.min."
        )
    if scale.schedule == "anchors" and not scale.anchors:
        raise UserError("scale.schedule is 'anchors', and scale.anchors has none: name some S.")
    if config.data.labels != (asked := labels_of(arch)):
        raise UserError(
            f"data.labels is {config.data.labels!r}, and the {arch.describe()} learns from labels "
            f"of the kind {asked!r}: set data.labels to that, or model.kind to a network for the "
            "labels there are."
        )
    _check_init_from(config)
    _check_head(config)
    if arch.gated:
        _check_random_drop(config)
        _check_groups(config, groups)
        _check_shaping(config, groups)
        _check_controller(config, arch)
        _check_prior(config, arch)
        _check_one_cost(config, arch)


def _check_init_from(config: Any) -> None:
    """A phase that is left out begins from nothing."""
    for name in PHASES:
        if config[name].init_from and not config[name].epochs:
            raise UserError(
                f"{name}.init_from is {config[name].init_from}, and {name}.epochs is 0, so that "
                "nothing begins from it: name it in a phase that is trained, or train this one."
            )


def _check_head(config: Any) -> None:
    """A new last layer needs other weights, and a phase that trains it."""
    if config.init.head != "new":
        return
    if not config.init["from"]:
        raise UserError(
            "init.head is 'new' and init.from names no file, so that all is new: name the file "
            "whose other weights are kept, or set init.head to 'kept'."
        )
    if not any(phase.moves_rest and config[name].epochs for name, phase in PHASES.items()):
        raise UserError(
            "init.head is 'new', and no phase trains it: set pretrain.epochs or joint.epochs "
            "above 0."
        )


def _check_random_drop(config: Any) -> None:
    """Where chance drops blocks, gates only weigh the rest, and nothing is asked of them."""
    drop, asking = config.gate.random_drop, ("beta", "dual_rate", "guard")
    asked = [f"scale.{name}" for name in asking if config.scale[name] > 0]
    weighed = ("shaping", "l0", "distill")
    asked += [f"{name}.weight" for name in weighed if config[name].weight > 0]
    if drop != "never" and asked:
        raise UserError(
            f"gate.random_drop is {drop!r}, and gates then only weigh what it leaves: set "
            f"{' and '.join(asked)} to 0, or model.gated to False for a network without gates."
        )


def _check_groups(config: Any, groups: int) -> None:
    """Groups that are held to an S must have one, and parts of a batch must not split them."""
    scale, size, parts = config.scale, config.data.batch_size, config.accumulate_steps
    if scale.loss != "group" or not (scale.beta or scale.dual_rate or scale.guard):
        return  # Nothing is asked of gates, or it is asked of samples.
    if scale.draw == "sample":
        raise UserError(
            "scale.loss is 'group', and with scale.draw 'sample' no samples share an S: set "
            "scale.draw to 'group' or 'step', or scale.loss to 'sample'."
        )
    in_group = size // groups
    if in_group % parts:
        raise UserError(
            f"A group of one S has {in_group} of the {size} images of a batch, which "
            f"{parts} parts (accumulate_steps) cannot share: choose a data.batch_size of which an "
            f"eighth is a multiple of {parts}, or scale.loss 'sample'."
        )


def _check_shaping(config: Any, groups: int) -> None:
    """A distribution is told from enough samples, which share a prior."""
    shaping, size = config.shaping, config.data.batch_size // config.accumulate_steps
    if not shaping.weight:
        return
    parts, named = shaping.parts, f"shaping.parts {shaping.parts}"
    if shaping.mean == "scale":
        parts, named = groups, f"{groups} groups of one S"
        if config.scale.draw == "sample":
            raise UserError(
                "shaping.mean is 'scale', and with scale.draw 'sample' no samples share an S: set "
                "scale.draw to 'group' or 'step', or shaping.mean to 'prior'."
            )
    if size % parts or size // parts < LEAST:
        raise UserError(
            f"shaping.weight is {shaping.weight}, and a batch of {size} (data.batch_size by "
            f"accumulate_steps) does not fall into {named} of at least {LEAST} images, from which "
            "a distribution is told: choose a larger batch, fewer parts, or weight 0."
        )


def _check_controller(config: Any, arch: Any) -> None:
    """A multiplier belongs to an anchor, and to one that can be met, or it would rise for ever."""
    scale = config.scale
    if not scale.dual_rate:
        return
    if scale.schedule != "anchors":
        raise UserError(
            f"scale.dual_rate is {scale.dual_rate}, and scale.schedule {scale.schedule!r}: a "
            "multiplier belongs to an anchor; set scale.schedule to 'anchors', or the rate to 0."
        )
    least = float(arch.cost.share(np.zeros((1, arch.num_gates)))[0]) if scale.of == "flops" else 0.0
    if min(scale.anchors) - scale.jitter < least:
        raise UserError(
            f"scale.anchors holds {min(scale.anchors)}, with scale.jitter {scale.jitter}, and "
            f"{least:.3f} of the FLOPs are used whatever gates do: ask for nothing below that."
        )
    between = np.diff(sorted(set(scale.anchors)))
    if between.size and 2 * scale.jitter >= between.min():
        raise UserError(
            f"scale.jitter is {scale.jitter}, which brings S nearer to another of the anchors, "
            f"{between.min():.3g} apart, whose multiplier it would move: set less than half of "
            "that."
        )


def _check_one_cost(config: Any, arch: Any) -> None:
    """Gates that do not see S cannot be held to it."""
    if getattr(arch, "gate_scale", True):
        return
    asked = [f"scale.{name}" for name in ("beta", "dual_rate", "guard") if config.scale[name]]
    if config.shaping.weight and config.shaping.mean == "scale":
        asked.append("shaping.weight")
    if asked:
        raise UserError(
            "model.gate_scale is False, so that gates do not see S, and are held to it: set "
            f"{' and '.join(asked)} to 0, or model.gate_scale to True."
        )


def _check_prior(config: Any, arch: Any) -> None:
    """A prior is of FLOPs, and what is held to it needs one."""
    prior, scale = getattr(arch, "gate_prior", 0.0), config.scale
    if scale.guard and not prior:
        raise UserError(
            f"scale.guard is {scale.guard}, and there is no prior to hold blocks to: set "
            "model.gate_prior above 0, or scale.guard to 0."
        )
    if prior and scale.of != "flops":
        raise UserError(
            f"model.gate_prior is {prior}, which makes S a share of FLOPs, and scale.of is "
            f"{scale.of!r}: set it to 'flops', or the prior to 0."
        )
    if prior and config.model.gate_bias:
        raise UserError(
            f"model.gate_bias is {config.model.gate_bias}, which moves what model.gate_prior has "
            "S mean: set it to 0, or the prior to 0."
        )
