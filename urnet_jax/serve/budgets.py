"""Budgets: from what a caller can pay, a share of FLOPs or milliseconds, to S."""

import os
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float32

from urnet_jax.errors import UserError
from urnet_jax.runs.bundle import Bundle
from urnet_jax.runs.profile import Profile
from urnet_jax.serve.schedule.costs import Costs


class Asked(NamedTuple):
    """What a call may cost, at most one of three; each a number, or one for every image."""

    scale: Any = None
    flops: Any = None
    latency_ms: Any = None


class Network(Protocol):
    """What is asked of a predictor here."""

    bundle: Bundle
    batch_sizes: tuple[int, ...]

    @property
    def heeds_scale(self) -> bool: ...


def scales(network: Network, asked: Asked, count: int) -> Float32[np.ndarray, " n"]:
    """S for each of `count` images.

    Raises:
      UserError: see `predictor.Predictor.__call__`.
    """
    given = {name: value for name, value in asked._asdict().items() if value is not None}
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are both set; set one budget, or none.")
    if not given:
        return np.ones(count, np.float32)
    ((name, value),) = given.items()
    if not network.heeds_scale:
        raise UserError(
            f"{name} is set, and the gates of this network do not see S: it has one cost, so leave "
            "it out."
        )
    if name == "latency_ms":
        return _for_latency(network, _numbers(name, value, count, np.inf), count)
    numbers = _numbers(name, value, count, 1.0)
    return numbers if name == "scale" else for_flops(network.bundle, numbers)


def _numbers(name: str, value: Any, count: int, most: float) -> Float32[np.ndarray, " n"]:
    """One for each image, from 0 to `most`."""
    try:
        numbers = np.asarray(value, np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{name} is {value!r}; expected a number, or one for each image."
        ) from error
    if numbers.shape not in ((), (count,)):
        raise UserError(
            f"{name} has the shape {numbers.shape}; expected a number, or one for each of the "
            f"{count} images."
        )
    within = f"from 0 to {most:g}" if np.isfinite(most) else "above 0"
    if not ((numbers >= 0) & (numbers <= most)).all():
        wrong = numbers if not numbers.shape else numbers[~((numbers >= 0) & (numbers <= most))][0]
        raise UserError(f"{name} is {wrong:g}; expected numbers {within}.")
    return np.broadcast_to(numbers, (count,)).astype(np.float32)


def for_flops(bundle: Bundle, shares: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The S at which the network uses these shares of its FLOPs in the mean, as calibrated.

    Raises:
      UserError: it is not calibrated, or uses more than that at the least S that was calibrated.
    """
    found = bundle.calibration
    if found is None:
        raise UserError(
            "flops is set, and this network is not calibrated: run urnet calibrate, or set scale."
        )
    # What was used on images that were not fitted on; to calibration's error that is S itself.
    used = np.maximum.accumulate(found.shares_unseen)
    if shares.size and shares.min() < used[0] - 0.005:
        raise UserError(
            f"flops is {shares.min():g}, and the least that this network was calibrated for is "
            f"{used[0]:.3f}: ask for more, or calibrate with a smaller --scales."
        )
    return np.interp(shares, used, found.scales).astype(np.float32)


def _for_latency(
    network: Network, limits_ms: Float32[np.ndarray, " n"], count: int
) -> Float32[np.ndarray, " n"]:
    """The largest S at which a call of so many images takes at most the least of the limits.

    Raises:
      UserError: there is no profile of this device, or even the least S takes longer.
    """
    if not count:
        return np.ones(0, np.float32)
    profile = profile_here(network.bundle, "latency_ms")
    limit, costs = float(limits_ms.min()) / 1000, Costs(profile, network.batch_sizes)
    scales = np.array(profile.scales)
    # As they are answered: in full batches, and a last one that is padded.
    full, rest = divmod(count, costs.largest)
    parts = [costs.largest] * full + [rest] * bool(rest)
    seconds = np.sum([costs.seconds(np.array([float(n)]), scales[:, None]) for n in parts], axis=0)
    if seconds[0] > limit:
        images = "1 image takes" if count == 1 else f"{count} images take"
        raise UserError(
            f"latency_ms is {1000 * limit:g}, and {images} {1000 * seconds[0]:.3g} ms at "
            f"S = {scales[0]:g}: allow more time, or ask for fewer images."
        )
    fits = scales[-1] if seconds[-1] <= limit else np.interp(limit, seconds, scales)
    return np.full(count, fits, np.float32)


def profile_here(bundle: Bundle, asked: str) -> Profile:
    """The profile, if it is of a device like this one.

    Raises:
      UserError: there is none, or one of another device.
    """
    profile, here = bundle.profile, device()
    if profile is None:
        raise UserError(
            f"{asked} is set, and nobody has measured how long this network takes: run urnet "
            "calibrate on this device."
        )
    if profile.about.get("device") != here:
        raise UserError(
            f"{asked} is set, and this network was measured on {profile.about.get('device')}, not "
            f"on {here}: run urnet calibrate here."
        )
    return profile


def device() -> str:
    """What times belong to: the kind of device, how many, and of a CPU its cores."""
    devices = jax.local_devices()
    kind = devices[0].device_kind
    cores = f", {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
    return f"{len(devices)} x {kind}{cores}"
