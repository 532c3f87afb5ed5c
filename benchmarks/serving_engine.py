"""The same load without HTTP: requests go to the engine, from a thread of the same process."""

import functools
import threading
import time
from typing import Any

import numpy as np

import urnet_jax
from benchmarks import serving_policies
from urnet_jax.serve import pixels
from urnet_jax.serve.engine import Engine
from urnet_jax.serve.schedule.request import Shed


def replay(
    workdir: str, policy: str, limit_s: float, bounds: tuple[float, float], plan: dict[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    """Asks for each request when it is due; see `serving_client.replay`.

    Args:
      workdir: of the network.
      policy: one of `serving_policies.POLICIES`.
      limit_s: from when a request is due to its deadline.
      bounds: of S.
      plan: `times`, `images` and `rows`, as for `serving_client`.

    Returns:
      What became of each request, and the engine's correction of times at the end.
    """
    times, rows = plan["times"], plan["rows"]
    count = len(times)
    found: dict[str, Any] = {
        name: np.full(count, np.nan) for name in ("latency", "delay", "scale")
    }  # fmt: skip
    found |= {"status": np.zeros(count, int), "classes": np.full((count, rows), -1)}
    images = pixels.check(plan["images"], plan["images"].shape[1:])
    answered = threading.Semaphore(0)
    engine = Engine(
        urnet_jax.load(workdir, keep_compiled=True), policy=serving_policies.policy(policy, limit_s)
    )
    start = time.monotonic() + 0.2

    def done(k: int, future: Any) -> None:
        found["latency"][k] = time.monotonic() - start - times[k]
        if (error := future.exception()) is not None:
            found["status"][k] = 503 if isinstance(error, Shed) else 500
        else:
            prediction = future.result().prediction
            found["status"][k], found["classes"][k] = 200, prediction.classes
            found["scale"][k] = prediction.scale.mean()
        answered.release()

    began = time.thread_time()
    for k, due in enumerate(times.tolist()):
        if (left := start + due - time.monotonic()) > 0:
            time.sleep(left)
        found["delay"][k] = time.monotonic() - start - due
        part = images[(np.arange(rows) + k * rows) % len(images)]
        try:
            future = engine.submit(
                part, start + due + limit_s, min_scale=bounds[0], max_scale=bounds[1]
            )
            future.add_done_callback(functools.partial(done, k))
        except Shed:
            found["status"][k] = 503
            answered.release()
    for _ in range(count):
        answered.acquire()
    found["own_cpu_s"] = np.array(time.thread_time() - began)
    engine.stop()
    return found, engine.correction
