"""Triton's own client, as its users use it: JSON and bytes, our parameters, our errors."""

import numpy as np
import pytest

from helpers.serve_process import Server

httpclient = pytest.importorskip("tritonclient.http")
tritonclient_utils = pytest.importorskip("tritonclient.utils")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(measured):
    running = Server(measured)
    yield running
    running.stop()


@pytest.fixture
def client(server):
    with httpclient.InferenceServerClient(f"127.0.0.1:{server.port}") as found:
        yield found


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("datatype", "dtype"), [("UINT8", np.uint8), ("FP32", np.float32)])
def test_it_infers(client, predictor, images, binary, datatype, dtype):
    tensor = httpclient.InferInput("images", [5, 8, 8, 1], datatype)
    tensor.set_data_from_numpy(images[:5].astype(dtype), binary_data=binary)
    asked = [
        httpclient.InferRequestedOutput(name, binary_data=binary)
        for name in ("classes", "probabilities", "scale_used")
    ]
    answer = client.infer(
        "digits", [tensor], outputs=asked, request_id="mine", parameters={"scale": 0.6}
    )
    expected = predictor(images[:5], scale=0.6)
    np.testing.assert_array_equal(answer.as_numpy("classes"), expected.classes)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("scale_used"), 0.6, rtol=1e-6)
    response = answer.get_response()
    assert response["id"] == "mine" and response["parameters"]["scale_used"] == 0.6


def test_it_asks_for_bytes_where_it_names_no_outputs(client, predictor, images):
    tensor = httpclient.InferInput("images", [3, 8, 8, 1], "UINT8")
    tensor.set_data_from_numpy(images[:3])
    answer = client.infer("digits", [tensor])
    assert answer.as_numpy("classes").shape == (3,)
    assert answer.as_numpy("probabilities").shape == (3, 10)


def test_it_asks_what_the_server_is(client, predictor):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    assert client.get_server_metadata()["name"] == "urnet_jax"
    assert client.get_model_metadata("digits")["inputs"][0]["name"] == "images"
    assert client.get_model_config("digits")["max_batch_size"] == 16
    assert client.get_inference_statistics("digits")["model_stats"][0]["name"] == "digits"
    assert client.get_model_repository_index()[0]["state"] == "READY"
    client.load_model("digits")


def test_it_is_told_what_is_wrong(client, images):
    tensor = httpclient.InferInput("images", [1, 8, 8, 1], "UINT8")
    tensor.set_data_from_numpy(images[:1])
    error = tritonclient_utils.InferenceServerException
    for sentence, asked in (
        ("scale and flops are both set", {"parameters": {"scale": 0.5, "flops": 0.5}}),
        ("due within 0.001 ms, and takes .* ms at least", {"timeout": 1}),
    ):
        with pytest.raises(error, match=sentence):
            client.infer("digits", [tensor], **asked)
    with pytest.raises(error, match="There is no model 'other'"):
        client.infer("other", [tensor])
