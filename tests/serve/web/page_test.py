"""The server's page in a browser: an image goes in, what the network says comes out."""

import pathlib
import re
import shutil
import subprocess
import urllib.request

import numpy as np
import pytest

from helpers.serve_process import Server
from urnet_jax.serve.web.page import page
from urnet_jax.serve.web.recent import WINDOW_S, Recent

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

DRIVE = """<script>
addEventListener("load", async () => {
  const drawn = document.createElement("canvas"); drawn.width = drawn.height = 8;
  const pixels = PIXELS, of = drawn.getContext("2d"), data = of.createImageData(8, 8);
  pixels.forEach((p, k) => data.data.set([p, p, p, 255], 4 * k));
  of.putImageData(data, 0, 0);
  document.getElementById("scale").value = "0.6";
  take(await new Promise((done) => drawn.toBlob(done)));
});
</script></body>"""


def test_it_is_one_file_that_names_the_network(predictor):
    content = page(predictor, "</script><b>").decode()
    assert predictor.arch.describe() in content
    assert "</script><b>" not in content
    assert not re.search(r'(src|href)="(?!data:)', content)


def test_what_the_last_seconds_were_like():
    now = [100.0]
    recent = Recent(lambda: now[0])
    assert recent.summary()["p50_ms"] is None and recent.summary()["attainment"] is None
    for k in range(40):
        recent.add("answered", 0.001 * (k + 1), 0.5)
    recent.add("late", 0.5, 1.0)
    for _ in range(9):
        recent.add("shed")
    found = recent.summary()
    assert found["requests_per_s"] == 41 / WINDOW_S and found["shed_per_s"] == 9 / WINDOW_S
    assert found["p50_ms"] == pytest.approx(21) and found["attainment"] == 40 / 50
    assert found["mean_scale"] == pytest.approx((40 * 0.5 + 1) / 41)
    now[0] += WINDOW_S + 1
    assert recent.summary()["requests_per_s"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH to show the page")
@pytest.mark.parametrize("width", [390, 1280])
def test_an_image_goes_in_and_what_runs_lights_up(measured, predictor, images, width, tmp_path):
    server = Server(measured)
    address = f"http://127.0.0.1:{server.port}/"
    content = urllib.request.urlopen(address).read().decode()
    pixels = str(images[0].ravel().tolist())
    content = content.replace("<head>", f'<head><base href="{address}">')
    file = tmp_path / "page.html"
    file.write_text(content.replace("</body>", DRIVE.replace("PIXELS", pixels)))
    shown = dom(file, width, tmp_path)
    assert server.stop()[0] == 0
    expected = predictor(images[:1], scale=0.6)
    assert re.search(
        rf'<div class="row"><span class="name"[^>]*>class {expected.classes[0]}</span>', shown
    )
    lit = [kind == "gate on" for kind in re.findall(r'class="(gate(?: on)?)"', shown)]
    np.testing.assert_array_equal(lit, expected.gates[0] > 0)
    share = 100 * expected.flops[0] / predictor.full_flops
    assert f'<dd id="flops">{share:.0f} %</dd>' in shown
    assert re.search(r'<dd id="compute">\d+\.\d ms</dd>', shown)
    assert '<p id="error" role="alert"></p>' in shown


def dom(file: pathlib.Path, width: int, folder: pathlib.Path) -> str:
    """What the page has become after some seconds."""
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            # The page is a file here, which may else not ask a server.
            *("--disable-sync", "--disable-web-security", "--virtual-time-budget=8000"),
            *(f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}"),
            *("--dump-dom", f"file://{file}"),
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
