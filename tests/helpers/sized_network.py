"""A kind of network whose weights depend on the size of its images, as position embeddings do."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from helpers.toy_network import Toy, ToyNetwork


class SizedNetwork(ToyNetwork):
    def __init__(self, arch: Any, build: Any, *, rngs: nnx.Rngs):
        super().__init__(arch, build, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((arch.image_size, arch.image_size, arch.width)))


@dataclasses.dataclass(frozen=True)
class Sized(Toy):
    network: ClassVar[str] = "helpers.sized_network:SizedNetwork"
