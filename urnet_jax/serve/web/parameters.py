"""What a request says of itself: its S, or the bounds of it, and its deadline."""

from urnet_jax.errors import UserError
from urnet_jax.serve import budgets
from urnet_jax.serve.predictor import Predictor
from urnet_jax.serve.web import protocol


def limit_ms_of(asked: protocol.Parameters) -> float:
    """The time that a request names, in milliseconds; 0 where it names none."""
    return asked.deadline_ms or (asked.timeout or 0) / 1000


def bounds(asked: protocol.Parameters, predictor: Predictor, images: int) -> tuple[float, float]:
    """The S between which a request may be answered.

    Raises:
      UserError: what it says of itself does not go together, or cannot be met.
    """
    ranged = asked.min_scale is not None or asked.max_scale is not None
    exact = [name for name in ("scale", "flops") if getattr(asked, name) is not None]
    if len(exact) > 1 or (exact and ranged):
        named = [*exact, *(["min_scale or max_scale"] if ranged else [])]
        raise UserError(f"{' and '.join(named)} are both set; set one, or none.")
    if exact:
        wanted = budgets.Asked(scale=asked.scale, flops=asked.flops)
        scale = float(budgets.scales(predictor, wanted, images)[0])
        return scale, scale
    low = 0.0 if asked.min_scale is None else asked.min_scale
    high = 1.0 if asked.max_scale is None else asked.max_scale
    if low > high:
        raise UserError(f"min_scale is {low:g}, more than max_scale, {high:g}; lower it.")
    return low, high
