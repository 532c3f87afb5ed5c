"""The Open Inference Protocol, v2: requests and responses as JSON, with binary tensors or without.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extension for binary data.
"""

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from urnet_jax.errors import UserError
from urnet_jax.serve.predictor import Prediction

INPUT = "images"

OUTPUTS = {
    "classes": ("INT32", np.int32),
    "probabilities": ("FP32", np.float32),
    "scale_used": ("FP32", np.float32),
    "gates": ("UINT8", np.uint8),
    "flops": ("FP64", np.float64),
}
"""What can be asked for: its type in the protocol and in NumPy."""

BY_DEFAULT = ("classes", "probabilities", "scale_used")
"""Of a request that names no outputs."""

DATATYPES = {"UINT8": np.dtype("u1"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4")}
"""Of images."""

NOTHING: dict[str, list[int]] = {"shape": []}
"""What Triton writes where a batch has one number an image."""

Share = Annotated[float, Meta(ge=0, le=1)]


class Parameters(msgspec.Struct, kw_only=True, frozen=True):
    """What a request may say of itself; others are left alone, as the protocol has it.

    Attributes:
      scale: S.
      min_scale: S is at least this.
      max_scale: S is at most this.
      flops: the share of FLOPs that may be used, in place of S.
      deadline_ms: by which the answer is due, from when the request came.
      timeout: the same in microseconds, as Triton's clients send it.
      priority: higher ones are answered first.
      binary_data_output: outputs are binary unless one says otherwise.
    """

    scale: Share | None = None
    min_scale: Share | None = None
    max_scale: Share | None = None
    flops: Share | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=3.6e6)] | None = None
    timeout: Annotated[float, Meta(ge=0)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    binary_data_output: bool = False


class OfTensor(msgspec.Struct, kw_only=True, frozen=True):
    """Parameters of an input or an output."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None
    binary_data: bool | None = None


class Input(msgspec.Struct, kw_only=True):
    """A tensor that is given."""

    name: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 31)]], Meta(max_length=8)]
    datatype: str
    parameters: OfTensor = OfTensor()
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class Output(msgspec.Struct, kw_only=True):
    """A tensor that is asked for."""

    name: str
    parameters: OfTensor = OfTensor()


class Request(msgspec.Struct, kw_only=True):
    """What is posted to `infer`."""

    inputs: Annotated[list[Input], Meta(min_length=1)]
    id: str | None = None
    parameters: Parameters = Parameters()
    outputs: list[Output] | None = None


_decoder = msgspec.json.Decoder(Request)
_numbers = msgspec.json.Decoder(list[float])


def decode(body: bytes, header_length: int | None) -> tuple[Request, np.ndarray]:
    """A request, and its images as they were sent.

    Args:
      body: of the HTTP request.
      header_length: how much of it is JSON, where binary tensors follow; None where none do.

    Raises:
      UserError: the body is not such a request.
    """
    if header_length is not None and not 0 < header_length <= len(body):
        raise UserError(
            f"Inference-Header-Content-Length is {header_length}; the body has {len(body)} bytes."
        )
    view = memoryview(body)
    text, rest = (view, view[:0]) if header_length is None else (
        view[:header_length], view[header_length:],
    )  # fmt: skip
    try:
        request = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"The request is not of the protocol: {_plain(error)}.") from error
    names = [output.name for output in request.outputs or ()]
    for name in names:
        if name not in OUTPUTS:
            raise UserError(
                f"The output {name[:80]!r} is not known; expected some of {', '.join(OUTPUTS)}."
            )
    if len(names) > len(set(names)):
        raise UserError("An output is asked for twice; name each once.")
    return request, _images(request.inputs, rest)


def _plain(error: Exception) -> str:
    """The reason without the full stop that some end with."""
    return str(error).rstrip(".")[:300]


def _images(inputs: list[Input], rest: memoryview) -> np.ndarray:
    """The one input, in its shape."""
    if [tensor.name for tensor in inputs] != [INPUT]:
        names = ", ".join(repr(tensor.name[:80]) for tensor in inputs[:4])
        raise UserError(f"The inputs are {names}; expected one, called {INPUT!r}.")
    (tensor,) = inputs
    if tensor.datatype not in DATATYPES:
        raise UserError(
            f"{INPUT} is of {tensor.datatype[:40]!r}; expected one of {', '.join(DATATYPES)}."
        )
    dtype, count = DATATYPES[tensor.datatype], 1
    for size in tensor.shape:
        count *= size
    binary = tensor.parameters.binary_data_size
    if binary is None:
        flat = _listed(tensor, dtype)
    elif len(memoryview(tensor.data)):
        raise UserError(f"{INPUT} has both data and binary_data_size; give one of them.")
    elif binary != len(rest):
        raise UserError(
            f"{INPUT} has binary_data_size {binary}, and {len(rest)} bytes follow the JSON."
        )
    elif binary % dtype.itemsize:
        raise UserError(f"{INPUT} has {binary} bytes, no whole number of {tensor.datatype}.")
    else:
        flat = np.frombuffer(rest, dtype)
    if flat.size != count:
        raise UserError(
            f"{INPUT} has {flat.size} numbers, and its shape {tensor.shape[:8]} asks for {count}."
        )
    try:
        return flat.reshape(tensor.shape)
    except ValueError as error:  # NumPy has a largest array, be it empty.
        raise UserError(f"{INPUT} has the shape {tensor.shape}: {_plain(error)}.") from error


def _listed(tensor: Input, dtype: np.dtype[Any]) -> np.ndarray:
    """The numbers of a list, which may be nested as the shape is."""
    if not len(memoryview(tensor.data)):
        raise UserError(f"{INPUT} has neither data nor binary_data_size.")
    try:
        try:
            flat = np.array(_numbers.decode(tensor.data), np.float64)
        except msgspec.ValidationError:
            nested = np.array(msgspec.json.decode(tensor.data))
            if nested.size and nested.dtype.kind not in "iuf":
                raise ValueError(f"{nested.dtype} in it") from None
            flat = nested.astype(np.float64).ravel()
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{INPUT} has data that is no list of numbers: {_plain(error)}.") from error
    if dtype == np.uint8 and flat.size:
        if not ((flat >= 0) & (flat <= 255) & (flat == np.floor(flat))).all():
            raise UserError(f"{INPUT} is of UINT8 and holds other numbers than 0 to 255.")
    with np.errstate(over="ignore"):  # What is too large for FP16 is no pixel either.
        return flat.astype(dtype)


def encode(
    request: Request, prediction: Prediction, about: dict[str, Any], told: dict[str, Any]
) -> tuple[bytes, int | None]:
    """The body of a response, and how much of it is JSON where binary tensors follow.

    Args:
      request: that is answered.
      prediction: the answer.
      about: `model_name` and `model_version`.
      told: the response's parameters.
    """
    asked = request.outputs
    if not asked:
        asked = [Output(name=name) for name in BY_DEFAULT]
    arrays = {
        "classes": prediction.classes,
        "probabilities": prediction.probabilities,
        "scale_used": prediction.scale,
        "gates": prediction.gates > 0,
        "flops": prediction.flops,
    }
    outputs, parts = [], []
    for output in asked:
        datatype, dtype = OUTPUTS[output.name]
        array = np.ascontiguousarray(arrays[output.name], dtype)
        entry: dict[str, Any] = {
            "name": output.name, "datatype": datatype, "shape": list(array.shape),
        }  # fmt: skip
        binary = output.parameters.binary_data
        if request.parameters.binary_data_output if binary is None else binary:
            parts.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    response = about | ({} if request.id is None else {"id": request.id})
    text = msgspec.json.encode(response | {"parameters": told, "outputs": outputs})
    return (text, None) if not parts else (text + b"".join(parts), len(text))


def metadata(name: str, version: str, shape: tuple[int, ...], classes: int, gates: int) -> Any:
    """What `GET /v2/models/M` says."""
    sizes = {"probabilities": [classes], "gates": [gates]}
    return {
        "name": name,
        "versions": [version],
        "platform": "urnet_jax",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *shape]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, *sizes.get(output, [])]}
            for output, (datatype, _) in OUTPUTS.items()
        ],
    }


def config(
    name: str, shape: tuple[int, ...], classes: int, gates: int, most_images: int
) -> dict[str, Any]:
    """What `GET /v2/models/M/config` says, as Triton does."""
    sizes = {"probabilities": [classes], "gates": [gates]}
    return {
        "name": name,
        "platform": "urnet_jax",
        "backend": "jax",
        "max_batch_size": most_images,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": list(shape)}],
        "output": [
            {"name": output, "data_type": f"TYPE_{datatype}"}
            | ({"dims": sizes[output]} if output in sizes else {"dims": [1], "reshape": NOTHING})
            for output, (datatype, _) in OUTPUTS.items()
        ],
    }
