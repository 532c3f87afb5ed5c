"""The protocol's requests and responses, and what of them is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from urnet_jax.errors import UserError
from urnet_jax.serve.predictor import Prediction
from urnet_jax.serve.web import protocol

SHAPE = [2, 2, 2, 1]
PIXELS = list(range(8))


def body(**changed: Any) -> bytes:
    tensor = {"name": "images", "shape": SHAPE, "datatype": "UINT8", "data": PIXELS}
    tensor |= changed.pop("tensor", {})
    tensor = {name: value for name, value in tensor.items() if value is not ...}
    return json.dumps({"inputs": [tensor]} | changed).encode()


def test_lists_flat_and_nested_and_bytes_are_the_same_images():
    expected = np.arange(8).reshape(SHAPE)
    _, flat = protocol.decode(body(), None)
    _, nested = protocol.decode(body(tensor={"data": expected.tolist()}), None)
    for datatype, dtype in (("UINT8", np.uint8), ("FP16", np.float16), ("FP32", np.float32)):
        raw = expected.astype(dtype).tobytes()
        of_bytes = {"data": ..., "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
        header = body(tensor=of_bytes)
        _, binary = protocol.decode(header + raw, len(header))
        assert binary.dtype == dtype
        np.testing.assert_array_equal(binary, expected)
    for images in (flat, nested):
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, expected)


def test_parameters_are_read_and_unknown_ones_left_alone():
    given_ = {"min_scale": 0.2, "deadline_ms": 7, "priority": 2, "sequence_id": 5, "other": "x"}
    request, _ = protocol.decode(body(parameters=given_, id="mine"), None)
    assert request.id == "mine"
    asked = request.parameters
    assert (asked.min_scale, asked.deadline_ms, asked.priority) == (0.2, 7, 2)
    assert (asked.scale, asked.max_scale, asked.timeout) == (None, None, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not of the protocol: Input data was truncated"),
        (b"[]", "not of the protocol: Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', "length >= 1"),
        (b'\xff\xfe{"inputs"', "not of the protocol"),
        (b"[" * 100_000, "not of the protocol"),
        (body(parameters={"scale": 2}), "<= 1.0"),
        (body(parameters={"scale": "half"}), "parameters.scale"),
        (body(parameters={"deadline_ms": 0}), "> 0"),
        (body(outputs=[{"name": "class"}]), "The output 'class' is not known; expected some of"),
        (body(tensor={"name": "pixels"}), "The inputs are 'pixels'; expected one, called 'images'"),
        (body(tensor={"datatype": "BF16"}), "images is of 'BF16'; expected one of UINT8, FP16"),
        (body(tensor={"shape": [-1, 2, 2, 1]}), ">= 0"),
        (body(tensor={"shape": [3, 2, 2, 1]}), r"8 numbers, and its shape \[3, 2, 2, 1\] asks"),
        (body(tensor={"shape": [1 << 31] * 8}), "8 numbers, and its shape"),
        (body(tensor={"shape": [1 << 31] * 9}), "length <= 8"),
        (body(tensor={"data": [10**400]}), "no list of numbers"),
        (body(tensor={"data": [[None] * 8]}), "no list of numbers"),
        (body(tensor={"data": ["5"] * 8}), "no list of numbers"),
        (body(outputs=[{"name": "gates"}] * 2), "asked for twice"),
        (body(tensor={"data": ...}), "neither data nor binary_data_size"),
        (body(tensor={"data": "abc"}), "data that is no list of numbers"),
        (body(tensor={"data": [[1, 2], [3]]}), "data that is no list of numbers"),
        (body(tensor={"data": [300, *PIXELS[1:]]}), "UINT8 and holds other numbers than 0 to 255"),
        (body(tensor={"data": [0.5, *PIXELS[1:]]}), "UINT8 and holds other numbers than 0 to 255"),
        (body(tensor={"parameters": {"binary_data_size": 8}}), "both data and binary_data_size"),
        (body(tensor={"data": ..., "parameters": {"binary_data_size": 8}}), "0 bytes follow"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_one_sentence(content, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        protocol.decode(content, None)
    assert len(str(error.value)) < 500


def test_bytes_that_do_not_fit_are_one_sentence():
    header = body(tensor={"data": ..., "datatype": "FP32", "parameters": {"binary_data_size": 7}})
    with pytest.raises(UserError, match="7 bytes, no whole number of FP32"):
        protocol.decode(header + b"1234567", len(header))
    for length in (0, len(header) + 1):
        with pytest.raises(UserError, match=f"Inference-Header-Content-Length is {length}; the"):
            protocol.decode(header, length)


@given(st.binary(max_size=300), st.none() | st.integers(-5, 400))
def test_anything_is_a_request_or_a_sentence(content, length):
    try:
        protocol.decode(content, length)
    except UserError as error:
        assert str(error)


known = {"inputs", "name", "shape", "datatype", "data", "parameters", "binary_data_size", "outputs"}
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(known)), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(json_like)
def test_any_json_is_a_request_or_a_sentence(tree):
    try:
        protocol.decode(json.dumps({"inputs": tree}).encode(), None)
    except UserError as error:
        assert str(error)


PREDICTION = Prediction(
    classes=np.array([3, 1]), probabilities=np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    gates=np.array([[1, 0, 1], [0, 0, 1]], np.float32), flops=np.array([5.0, 7.0]),
    scale=np.array([0.5, 1.0], np.float32),
)  # fmt: skip


def test_a_response_is_json_or_bytes_as_it_is_asked_for():
    about = {"model_name": "m", "model_version": "7"}
    request, _ = protocol.decode(body(id="42"), None)
    text, header = protocol.encode(request, PREDICTION, about, {"queue_ms": 1.5})
    assert header is None
    found = json.loads(text)
    assert (found["model_name"], found["model_version"], found["id"]) == ("m", "7", "42")
    assert found["parameters"] == {"queue_ms": 1.5}
    assert [output["name"] for output in found["outputs"]] == list(protocol.BY_DEFAULT)
    assert found["outputs"][1]["data"] == [0.25, 0.75, 0.5, 0.5]
    asked = [
        {"name": "gates", "parameters": {"binary_data": True}},
        {"name": "flops"},
        {"name": "classes", "parameters": {"binary_data": True}},
    ]
    request, _ = protocol.decode(body(outputs=asked), None)
    text, header = protocol.encode(request, PREDICTION, about, {})
    assert header is not None
    gates, flops, classes = json.loads(text[:header])["outputs"]
    assert gates["parameters"]["binary_data_size"] == 6 and "data" not in gates
    assert flops["data"] == [5.0, 7.0] and classes["datatype"] == "INT32"
    rest = text[header:]
    assert np.frombuffer(rest[:6], np.uint8).tolist() == [1, 0, 1, 0, 0, 1]
    assert np.frombuffer(rest[6:], np.int32).tolist() == [3, 1]
    request, _ = protocol.decode(body(parameters={"binary_data_output": True}), None)
    assert protocol.encode(request, PREDICTION, about, {})[1] is not None
