"""What `inference.py` times in PyTorch."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import timing, torch_networks
from benchmarks.inference_cases import ALL_ON, Case, Subject, shares
from benchmarks.torch_networks import torch
from urnet_jax.nets.channels.architecture import ChannelGated


def cases(subject: Subject, compiled: bool) -> tuple[list[Case], dict[str, str]]:
    """Dense, dense through torch.compile, and every request by dropping blocks or masking channels.

    Args:
      subject: of its network only the architecture counts; the weights are others.
      compiled: whether to try torch.compile.

    Returns:
      The cases, and the reason why torch.compile is not among them where it was tried in vain.
    """
    device = torch_networks.device_name(jax.devices()[0].platform)
    if device == "cpu":
        torch.set_num_threads(timing.threads())
    torch.backends.cudnn.benchmark = True
    network = torch_networks.build(subject.arch, device, subject.dtype).eval()
    images = torch_networks.to_torch(subject.images, device, subject.dtype)

    def case(execution: str, function: Callable[[], Any], row: dict, gates: tuple = ()) -> Case:
        def run() -> None:
            with torch.inference_mode():
                function()
                if device == "cuda":
                    torch.cuda.synchronize()

        return Case({"framework": "torch", "execution": execution} | row, gates or ("all on",), run)

    found, left_out = [case("dense", lambda: network(images), ALL_ON)], {}
    if compiled:
        torch.compiler.reset()
        fast = torch.compile(network, dynamic=False)
        trial = case("compiled", lambda: fast(images), ALL_ON)
        try:
            trial.row["compile_s"] = timing.seconds(trial.run)
            found.append(trial)
        except Exception as error:  # Whatever is missing: a compiler, Triton, support of Python.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            left_out["torch.compile"] = reason
    masks = isinstance(subject.arch, ChannelGated)
    for request in subject.requests:
        policy = torch.from_numpy(request.used).to(device, getattr(torch, subject.dtype))
        found.append(
            case(
                "masking" if masks else "dropping",
                functools.partial(network.masking if masks else network.dropping, images, policy),
                shares(subject.arch, request),
                request.gates,
            )
        )
    return found, left_out
