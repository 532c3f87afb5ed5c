"""How much a traced computation multiplies."""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def traced_macs(jaxpr: Any) -> int:
    """Multiply-adds of every convolution and matrix product in a traced computation."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape  # height, width, in, out
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel[:3])
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = [eqn.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(terms)
        times = eqn.params.get("length", 1)
        total += sum(times * traced_macs(inner) for inner in jaxprs_in_params(eqn.params))
    return total
