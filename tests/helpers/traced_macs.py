"""How much a traced computation multiplies."""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def traced_macs(jaxpr: Any, *, products: bool = True) -> int:
    """Multiply-adds of every convolution and matrix product in a traced computation.

    Without `products`, of convolutions alone.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape  # height, width, in, out
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel[:3])
        elif eqn.primitive.name == "dot_general" and products:
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = [eqn.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(terms)
        times = eqn.params.get("length", 1)
        inner = jaxprs_in_params(eqn.params)
        total += sum(times * traced_macs(each, products=products) for each in inner)
    return total
