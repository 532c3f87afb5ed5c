"""A plain network of the channels that are used has the logits of the gated one with those open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.pretrained_networks import variables
from helpers.variables import apply
from urnet_jax.nets import network
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.cost import sides
from urnet_jax.nets.mode import Build
from urnet_jax.runs import pretrained
from urnet_jax.runs.pruning import pruned

ARCHS = {
    "basic": ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2),
    "bottleneck": ChannelGated("imagenet", 50, 5, 32, width=4, shortcut="B", gate_group=2),
    "both": ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2, gate_blocks=True),
}


def drawn(arch: ChannelGated) -> np.ndarray:
    """Gates by chance, but of the second block none, and of the third none of its first layer."""
    used = np.random.default_rng(0).random(arch.num_gates) < 0.6
    block, groups = arch.gates_of_block(arch.stages[0]), arch.groups(arch.stages[0])
    if arch.gate_blocks:
        starts = np.cumsum([0, *(b.num_gates for b in arch.cost.blocks)])
        used[starts[:-1]] = True
    used[block : 2 * block] = False
    if arch.family == "imagenet":
        used[2 * block : 2 * block + groups] = False
        used[-1] = True
    return used


@pytest.mark.parametrize("name", ARCHS)
def test_the_smaller_network_has_the_logits_of_the_gated_one(name):
    arch = ARCHS[name]
    used = drawn(arch)
    params, stats = variables(arch)
    tensors = pretrained.export_state_dict(params, stats, arch)
    small = pruned(tensors, arch, used)
    plain = Architecture(
        arch.family, arch.depth, 5, arch.image_size, width=4, shortcut=arch.shortcut, gated=False
    )
    whole = pretrained.import_state_dict(widened(small, arch, used), plain, *variables(plain, 1))
    images = np.random.default_rng(1).normal(size=(2, *sides(arch.image_size), 3))
    images = jnp.asarray(images, jnp.float32)
    given = jnp.tile(jnp.asarray(used, jnp.float32), (2, 1))

    def logits(arch, params, stats, gates=None):
        graph = network.graph(arch, Build())
        return jax.jit(lambda: apply(graph, params, stats, images, jnp.ones(2), gates=gates)[0])()

    expected = logits(arch, params, stats, given)
    np.testing.assert_allclose(logits(plain, *whole), expected, rtol=1e-4)
    # What it costs is what the gated one costs but for its gates, and channels that give nothing.
    size = sum(tensor.size for name, tensor in small.items() if ".conv" in name)
    assert size < 0.8 * sum(t.size for name, t in tensors.items() if ".conv" in name)
    assert not [name for name in small if "gate" in name]


def widened(small, arch, used):
    """Zeros in the place of the channels that were cut."""
    whole, start = dict(small), 0
    for s, stage in enumerate(arch.stages, 1):
        for n in range(stage.num_blocks):
            start += arch.gate_blocks
            for layer in range(1, len(stage.convolutions(entry=False))):
                own = np.repeat(used[start : start + arch.groups(stage)], arch.gate_group)
                start += arch.groups(stage)
                keep = np.flatnonzero(own) if own.any() else np.array([0])
                block = f"layer{s}.{n}"
                for name, axis, fill in (
                    (f"conv{layer}.weight", 0, 0), (f"conv{layer + 1}.weight", 1, 0),
                    (f"bn{layer}.weight", 0, 0), (f"bn{layer}.bias", 0, 0),
                    (f"bn{layer}.running_mean", 0, 0), (f"bn{layer}.running_var", 0, 1),
                ):  # fmt: skip
                    cut = whole[f"{block}.{name}"]
                    assert cut.shape[axis] == keep.size
                    shape = list(cut.shape)
                    shape[axis] = own.size
                    full = np.full(shape, fill, np.float32)
                    full[(slice(None),) * axis + (keep,)] = cut
                    whole[f"{block}.{name}"] = full
    return whole


def test_with_all_channels_it_is_the_network_without_gates():
    arch = ARCHS["basic"]
    tensors = pretrained.export_state_dict(*variables(arch), arch)
    same = pruned(tensors, arch, np.ones(arch.num_gates, bool))
    assert set(same) == {name for name in tensors if ".gate." not in name}
    for name, tensor in same.items():
        np.testing.assert_array_equal(tensor, tensors[name])
