r"""A server under load: who is answered in time, and how well, beside others' ways to choose S.

    urnet calibrate --workdir=runs/mine
    python benchmarks/serving.py --workdir=runs/mine --traces=DIR --seeds=0,1,2,3,4

Starts `urnet serve`'s server with each policy and sends it requests with real images at fixed
times, from a process of its own; latency counts from when a request was due. Server and sender
share this machine: what the sender took is recorded too. Beside what was measured stands a bound:
what a scheduler that knows all requests beforehand could not exceed.

--workdir       a calibrated run, measured on this device
--data_dir      where its data lies (default: where its config says)
--patterns      arrivals, each with its load behind a colon, as step3:3,poisson:1.5: a multiple of
                the requests that S = 1 can answer, of steps the highest; of steady, poisson,
                gamma8, step3, step10, and the traces code and conv; default:
                step3:3,poisson:1.5,code:1
--policies      of bending (ours), fixed (S = 1), smallest, aimd, switching; default: all
--http          False asks the engine itself, by a thread of its process (default: True)
--seconds       of each run (default: 30)
--rows          images of a request (default: 16)
--deadline_ms   of each request (default: 100)
--seeds         separated by commas; default: 0
--traces        the folder of the traces
--output        the folder of the record, the table and the plots (default:
                runs/benchmarks/serving; what is to be kept in the repository: results/serving)
--fresh         measures again what is there already
--time_limit_s  after these seconds nothing further is started
"""

import functools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import flags

import urnet_jax
from benchmarks import (
    results,
    serving_bound,
    serving_engine,
    serving_load,
    serving_policies,
    serving_report,
    timing,
    trained,
)
from benchmarks.serving_client import LATE_S
from benchmarks.serving_process import ServerProcess
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import examples
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.runs import export
from urnet_jax.runs.bundle import Bundle
from urnet_jax.serve import budgets
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.request import Request
from urnet_jax.serve.schedule.scheduler import Scheduler
from urnet_jax.serve.schedule.simulation import simulate

ROOT = pathlib.Path(__file__).resolve().parent.parent

SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.serving_policies import policy
from urnet_jax.serve.web import server
from urnet_jax.serve.web.options import Options
from urnet_jax.xla import cache

cache.keep_compiled()
server.serve(Options(sys.argv[2], name="m", deadline_ms=float(sys.argv[4])), port=0,
             policy=policy(sys.argv[3], float(sys.argv[4]) / 1000))
"""

MOST_IMAGES = 2048
"""Of the test split, that are sent."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on where it was stopped."):
        values = parse(list(argv))
        bundle = export.bundle_of(values.workdir, "newest")
        profile = budgets.profile_here(bundle, "--workdir")
        costs = Costs(profile)
        # Rounded, so that it is the same when it is read back.
        capacity = round(1 / (values.rows * float(costs.seconds_per_row(np.array(1.0)))), 4)
        about: dict[str, Any] = {
            "network": str(bundle.meta.config.data.name), "capacity_per_s": capacity,
            "images_per_request": values.rows, "deadline_ms": values.deadline_ms,
            "seconds": values.seconds,
        }  # fmt: skip
        groups = [
            (f"{pattern} x {load:g}, {policy}, seed {seed}" + ("" if values.http else ", no HTTP"),
             about | {"pattern": pattern, "load": load, "policy": policy, "seed": seed}
             | ({} if values.http else {"http": False}),
             functools.partial(_measure, values, capacity, pattern, load, policy, seed))
            for seed in trained.seeds_of(values.seeds)
            for pattern, load in _patterns(values.patterns)
            for policy in _policies(values.policies)
        ]  # fmt: skip
        path, record = results.measure(groups, values, timed=False, about=about)
        if not record["rows"]:  # The time limit came first.
            return
        traces = pathlib.Path(values.traces) if values.traces else None
        record["bounds"] = serving_bound.of_record(record, costs, _top1(values, costs), traces)
        results.write_json(path, record)
        print(*serving_report.write(record, pathlib.Path(path)), sep="\n")


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    define("workdir", "")
    define("data_dir", "")
    define("patterns", "step3:3,poisson:1.5,code:1")
    define("policies", ",".join(serving_policies.POLICIES))
    define("seeds", "0")
    define("traces", "")
    number = functools.partial(flags.DEFINE_float, help="", lower_bound=1e-3, flag_values=values)
    number("seconds", 30.0)
    number("deadline_ms", 100.0)
    flags.DEFINE_bool("http", True, "", flag_values=values)
    flags.DEFINE_integer("rows", 16, "", lower_bound=1, flag_values=values)
    results.define_flags(values, "serving")
    timing.parse_flags(values, argv, __doc__ or "")
    if not values.workdir:
        raise UserError("--workdir is missing; name a calibrated run.")
    _patterns(values.patterns)
    _policies(values.policies)
    trained.seeds_of(values.seeds)
    return values


def _patterns(text: str) -> list[tuple[str, float]]:
    """Patterns and their loads; a UserError if one is none."""
    found = []
    for part in text.split(","):
        name, _, load = part.partition(":")
        if name not in serving_load.PATTERNS or not re.fullmatch(r"\d+(\.\d+)?", load or "1"):
            raise UserError(
                f"--patterns names {part!r}; expected a load behind some of "
                f"{', '.join(serving_load.PATTERNS)}, as poisson:1.5."
            )
        found.append((name, float(load or "1")))
    return found


def _policies(text: str) -> list[str]:
    """Policies; a UserError if one is none."""
    names = text.split(",")
    if unknown := [name for name in names if name not in serving_policies.POLICIES]:
        raise UserError(
            f"--policies names {unknown[0]!r}; expected some of "
            f"{', '.join(serving_policies.POLICIES)}."
        )
    return names


def _measure(
    values: flags.FlagValues, capacity: float, pattern: str, load: float, policy: str, seed: int
) -> tuple[list[results.Row], dict[str, str]]:
    """One run against a fresh server: what became of the requests, and what was expected."""
    bundle = export.bundle_of(values.workdir, "newest")
    traces = pathlib.Path(values.traces) if values.traces else None
    times = serving_load.arrivals(pattern, load * capacity, values.seconds, seed, traces)
    least = Costs(budgets.profile_here(bundle, "--workdir")).least_scale
    parameters = {"fixed": {"scale": 1.0}, "aimd": {"min_scale": 1.0},
                  "smallest": {"scale": least}}.get(policy, {})  # fmt: skip
    images, labels = _examples(values, bundle)
    plan = {"times": times, "images": images, "rows": values.rows,
            "address": "/v2/models/m/infer", "parameters": json.dumps(parameters)}  # fmt: skip
    low = parameters.get("scale", parameters.get("min_scale", 0.0))
    high = parameters.get("scale", 1.0)
    if values.http:
        found, correction = _served(values, policy, plan)
    else:
        limit_s = values.deadline_ms / 1000
        found, correction = serving_engine.replay(
            values.workdir, policy, limit_s, (low, high), plan
        )
    row = _row(found, times, labels, values)
    expected = _simulated(values, bundle, policy, times, (low, high), correction)
    row |= {"simulated_attainment": expected, "correction": correction, "http": values.http}
    row |= {"pattern": pattern, "load": load, "policy": policy, "seed": seed}
    row["timeline"] = serving_report.timeline(found, times, values.seconds, values.deadline_ms)
    return [row], {"attainment": f"{row['attainment']:.4f}", "S": f"{row['mean_scale']:.2f}"}


def _examples(values: flags.FlagValues, bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """The images that are sent, and their labels."""
    config = bundle.meta.config
    if values.data_dir:
        config.data.dir = values.data_dir
    split = open_split(config.data, "test")
    return examples(split, np.arange(min(MOST_IMAGES, split.num_examples)))


def _top1(values: flags.FlagValues, costs: Costs) -> np.ndarray:
    """How many of these images are classified rightly at each S, from 0 to 1."""
    predictor = urnet_jax.load(values.workdir, batch_sizes=(costs.largest,))
    images, labels = _examples(values, predictor.bundle)
    found = [predictor(images, scale=scale).classes == labels for scale in costs.scales.tolist()]
    return np.mean(found, axis=1)


def _served(
    values: flags.FlagValues, policy: str, plan: dict[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    """What the sender found, and the server's correction of times at the end."""
    command = ("-c", SERVER, str(ROOT), values.workdir, policy, str(values.deadline_ms))
    with tempfile.TemporaryDirectory() as folder, ServerProcess(*command) as server:
        plan_file, found_file = f"{folder}/plan.npz", f"{folder}/found.npz"
        np.savez(plan_file, port=server.port, **plan)
        client = ROOT / "benchmarks/serving_client.py"
        subprocess.run([sys.executable, str(client), plan_file, found_file], check=True)
        correction = _correction(server.port)
        with np.load(found_file) as found:
            return dict(found), correction


def _correction(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    match = re.search(r"^urnet_time_correction (\S+)$", text, re.MULTILINE)
    assert match is not None
    return float(match[1])


def _row(
    found: dict[str, np.ndarray], times: np.ndarray, labels: np.ndarray, values: flags.FlagValues
) -> results.Row:
    """Attainment, goodput, top-1 of answers in time, latencies, and what the sender took."""
    answered = found["status"] == 200
    in_time = answered & (1e3 * found["latency"] <= values.deadline_ms)
    rows = np.arange(len(times))[:, None] * values.rows + np.arange(values.rows)
    right = found["classes"] == labels[rows % len(labels)]
    p50, p99, p999 = (
        np.percentile(1e3 * found["latency"][answered], [50, 99, 99.9])
        if answered.any() else [None] * 3
    )  # fmt: skip
    return {
        "requests": len(times),
        "attainment": float(in_time.mean()),
        "goodput_per_s": float(in_time.sum() / values.seconds),
        "top1_percent": float(100 * right[in_time].mean()) if in_time.any() else None,
        "mean_scale": float(found["scale"][in_time].mean()) if in_time.any() else 0.0,
        "p50_ms": p50, "p99_ms": p99, "p999_ms": p999,
        "shed": int((found["status"] == 503).sum()),
        "failed": int((~answered & (found["status"] != 503)).sum()),
        "sent_late": float((found["delay"] > LATE_S).mean()),
        "sender_cpu_share": float(found["own_cpu_s"] / values.seconds),
    }  # fmt: skip


def _simulated(
    values: flags.FlagValues, bundle: Any, policy: str, times: np.ndarray,
    bounds: tuple[float, float], correction: float,
) -> float:  # fmt: skip
    """The attainment that the simulation expects, batches taking what they took in the end."""
    costs = Costs(bundle.profile)
    costs.correction = correction
    limit = values.deadline_ms / 1000
    requests = [Request(values.rows, at, at + limit, *bounds) for at in times.tolist()]
    chosen = serving_policies.policy(policy, limit)
    found = simulate(requests, Scheduler(costs, policy=chosen), lambda batch: batch.expected_s)
    return found.attainment


if __name__ == "__main__":
    main(sys.argv)
