"""The files that an evaluation writes: tables, what each sample did, plots, and the page."""

import dataclasses
import datetime
import io
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np
import pandas as pd
from etils import epath

from urnet_jax.evaluate import plots
from urnet_jax.evaluate.evaluation import Evaluation, summarize
from urnet_jax.evaluate.figures import to_png
from urnet_jax.nets.labels import labels_of
from urnet_jax.version import __version__


def describe(evaluation: Evaluation, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What eval.json records: `meta`, where and how the evaluation was made, and its table."""
    device = jax.devices()[0]
    return {
        **meta,
        "network": evaluation.arch.name,
        "architecture": evaluation.arch.describe(),
        "scales": evaluation.scales,
        "command": shlex.join([*pathlib.Path(sys.argv[0]).name.split(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.local_device_count(),
            "cpu_cores": os.cpu_count(),
        },
        "versions": {"urnet_jax": __version__, "jax": jax.__version__, "flax": flax.__version__},
        # JSON knows no NaN, which the loss of a diverged network is.
        "rows": summarize(evaluation).replace([np.inf, -np.inf, np.nan], None).to_dict("records"),
    }


def write(
    evaluation: Evaluation,
    directory: epath.PathLike,
    meta: Mapping[str, Any],
    show: Callable[[dict[str, Any]], str] | None = None,
    beside: pd.DataFrame | None = None,
) -> list[epath.Path]:
    """Writes eval.csv, eval.json, eval_samples.npz, top1_vs_flops.png and block_usage.png.

    Where labels are maps it is miou_vs_flops.png, with whatever the network is measured by.

    Each file is replaced as a whole, so that an interruption leaves the old one or the new one.

    Args:
      evaluation: what to write.
      directory: of the files; it is made where it is missing.
      meta: more to record in eval.json, such as step, phase, dataset and split. Its
        `plain_top1_percent`, or of another measure, is also drawn.
      show: gives report.html from what eval.json records; without it there is none.
      beside: plain networks that are drawn beside it, of `static.read`.

    Returns:
      The files' paths, the plots after the tables and the page last.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record, summary, arch = describe(evaluation, meta), summarize(evaluation), evaluation.arch
    # The logits are for inspection: as many floats as there are gates, which are bits.
    left_out = {"arch", "gate_logits"}
    # Of classes `correct` is all that counts say; of maps there is nothing but counts.
    maps = labels_of(evaluation.arch) == "map"
    left_out |= {"labels", "predictions"} if maps else {"counts"}
    names = {field.name for field in dataclasses.fields(evaluation)} - left_out
    arrays: dict[str, Any] = {name: getattr(evaluation, name) for name in sorted(names)}
    arrays["correct"] = evaluation.right
    samples = io.BytesIO()
    np.savez_compressed(samples, **arrays)
    measure = evaluation.measure
    plain = meta.get(f"plain_{measure.column}")
    curve = plots.plot_against_flops(summary, arch.describe(), plain, static=beside)
    usage = plots.plot_block_usage(
        evaluation.gates, evaluation.scales, evaluation.gate_groups, arch.describe()
    )
    files = {
        "eval.csv": summary.to_csv(index=False).encode(),
        "eval.json": (json.dumps(record, indent=2, allow_nan=False) + "\n").encode(),
        "eval_samples.npz": samples.getvalue(),
        f"{measure.name}_vs_flops.png": to_png(curve),
        "block_usage.png": to_png(usage),
    }
    if show is not None:
        files["report.html"] = show(record).encode()
    # Not before all are made: that takes seconds, in which old files would stand beside new ones.
    return [_replace(directory / name, content) for name, content in files.items()]


def _replace(path: epath.Path, content: bytes) -> epath.Path:
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(content)
    temporary.replace(path)
    return path
