"""KServe's own client, as its users use it: JSON and bytes, our parameters, our errors."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from helpers.serve_process import Server

PYTHON = pathlib.Path(sys.prefix) / "clients" / "bin" / "python"
"""Where `make test-all` installs it, apart from all else."""

ASKS = """
import asyncio, json, sys
import kserve, numpy as np

async def main(base, file):
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    images, found = np.load(file), []
    ready = [await client.is_server_live(base), await client.is_server_ready(base),
             await client.is_model_ready(base, "digits")]
    async def ask(images, binary, **parameters):
        tensor = kserve.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images, binary_data=binary)
        asked = kserve.InferRequest("digits", [tensor], parameters=parameters)
        return await client.infer(base, asked, model_name="digits")
    for binary in (False, True):
        answer = await ask(images, binary, scale=0.6)
        outputs = {output.name: output.as_numpy().tolist() for output in answer.outputs}
        found.append({"outputs": outputs, "parameters": answer.parameters})
    try:
        await ask(images[:, :4], True)
    except Exception as error:
        print(json.dumps({"ready": ready, "found": found, "error": str(error)}))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="make test-all installs KServe's client")
def test_it_infers_and_is_told_what_is_wrong(measured, predictor, images, tmp_path):
    np.save(tmp_path / "images.npy", images[:5])
    server = Server(measured)
    base = f"http://127.0.0.1:{server.port}"
    command = [str(PYTHON), "-c", ASKS, base, str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert server.stop()[0] == 0
    assert done.stdout, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ready"] == [True, True, True]
    expected = predictor(images[:5], scale=0.6)
    for answer in told["found"]:
        outputs = answer["outputs"]
        assert outputs["classes"] == expected.classes.tolist()
        np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, atol=1e-5)
        assert answer["parameters"]["scale_used"] == 0.6
    assert len(told["found"]) == 2 and "expected [n, 8, 8, 1]" in told["error"]
