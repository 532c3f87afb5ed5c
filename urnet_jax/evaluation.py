"""Exact evaluation over a grid of S: every example once for each S; tables, files and plots."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from etils import epath
from jaxtyping import Float, Float64, Int, UInt8
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import urnet_jax
from urnet_jax import checkpoint, data, plots, steps
from urnet_jax.architecture import Architecture
from urnet_jax.config import Config, architecture
from urnet_jax.errors import UserError
from urnet_jax.flops import flops_per_sample, network_macs


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network did on each of n examples at each of k scales.

    Attributes:
      arch: the network; it has N blocks.
      scales: S, ascending; a plain network has the one entry 1.
      index: each example's number in its split.
      labels: each example's class.
      predictions: the class of the largest logit.
      loss: cross entropy, in nats.
      gates: 1 where the sample used the block, else 0; blocks in network order.
      flops: of each sample: its blocks, all gates, stem and head.
    """

    arch: Architecture
    scales: tuple[float, ...]
    index: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    predictions: Int[np.ndarray, "k n"]
    loss: Float[np.ndarray, "k n"]
    gates: UInt8[np.ndarray, "k n N"]
    flops: Float64[np.ndarray, "k n"]

    @property
    def full_flops(self) -> float:
        """FLOPs of a sample that uses every block, gates included."""
        return 2.0 * network_macs(self.arch)


def check_scales(scales: Iterable[float]) -> tuple[float, ...]:
    """The grid of S, sorted and without repeats.

    Raises:
      UserError: the grid is empty or holds something else than numbers from 0 to 1.
    """
    grid = sorted({float(scale) for scale in scales})
    wrong = [scale for scale in grid if not 0.0 <= scale <= 1.0]
    if wrong or not grid:
        found = f"the scale {wrong[0]:g}" if wrong else "no scale"
        raise UserError(
            f"The evaluation was given {found}; expected numbers from 0 to 1, as in "
            "--scales=0.2,0.5,1.0."
        )
    return tuple(grid)


def evaluate(
    eval_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    batch_stats: Any,
    split: data.Split,
    config: Config,
    scales: Iterable[float],
    batch_size: int,
    progress: bool = True,
) -> Evaluation:
    """Runs every example of the split exactly once for each S.

    Args:
      eval_step: of `steps.make_eval_step`.
      params: that `eval_step` takes.
      batch_stats: that `eval_step` takes.
      split: of `data.open_split`.
      config: the run's config, which describes the data and the network.
      scales: the grid of S, in any order. A plain network ignores S and is evaluated once, at 1.
      batch_size: samples per step, which the results do not depend on; the last batch is padded.
      progress: shows a progress bar on stderr if that is a terminal.

    Raises:
      UserError: a scale is not in [0, 1].
    """
    arch = architecture(config)
    grid = check_scales(scales) if arch.gated else (1.0,)
    requests = [jnp.full((batch_size,), scale, jnp.float32) for scale in grid]
    kept = ("prediction", "loss", "gates")
    parts = [{name: [] for name in kept} for _ in grid]
    labels, index = [], []

    def dispatch() -> Iterator[tuple[int, np.ndarray, dict[str, jax.Array]]]:
        # Batches are outermost, so that each is read and decoded once for all S.
        for batch in data.eval_batches(split, config.data, batch_size):
            mask = batch["mask"]
            labels.append(batch["label"][mask])
            index.append(batch["index"][mask])
            inputs = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
            for k, request in enumerate(requests):
                yield k, mask, eval_step(params, batch_stats, *inputs, request)

    total, hidden = split.num_examples * len(grid), None if progress else True
    with tqdm(total=total, desc="evaluate", unit="img", disable=hidden, leave=False) as bar:
        for k, mask, result in _one_behind(dispatch()):
            for name in kept:
                parts[k][name].append(np.asarray(result[name])[mask])
            bar.update(int(mask.sum()))

    rows = {name: np.stack([np.concatenate(part[name]) for part in parts]) for name in kept}
    evaluation = Evaluation(
        arch=arch,
        scales=grid,
        index=np.concatenate(index),
        labels=np.concatenate(labels),
        predictions=rows["prediction"],
        loss=rows["loss"],
        gates=(rows["gates"] > 0).astype(np.uint8),
        flops=np.stack([flops_per_sample(arch, g) for g in rows["gates"]]).astype(np.float64),
    )
    if not np.array_equal(np.sort(evaluation.index), np.arange(split.num_examples)):
        raise RuntimeError("The input did not deliver every example exactly once: a defect.")
    return evaluation


def _one_behind(results: Iterator[Any]) -> Iterator[Any]:
    """Yields each result only once the next is dispatched, so that the device never waits."""
    previous = next(results, None)
    for result in results:
        yield previous
        previous = result
    if previous is not None:
        yield previous


def summarize(evaluation: Evaluation) -> pd.DataFrame:
    """One row for every S, with the units in the columns' names.

    Means and standard deviations (of the population) are over samples. `blocks_*` count the
    residual blocks that a sample used of `blocks_total`; `usage_mean` is their share. `flops_share`
    is `flops_mean` as a share of `flops_full`, the network with every block used.
    """
    total, full = evaluation.arch.num_blocks, evaluation.full_flops
    correct = (evaluation.predictions == evaluation.labels).sum(axis=1)
    blocks, flops = evaluation.gates.sum(axis=2, dtype=np.int64), evaluation.flops
    return pd.DataFrame(
        {
            "scale": evaluation.scales,
            "examples": len(evaluation.labels),
            "correct": correct,
            "top1_percent": 100 * correct / len(evaluation.labels),
            "loss_mean": evaluation.loss.mean(axis=1, dtype=np.float64),
            "blocks_mean": blocks.mean(axis=1),
            "blocks_std": blocks.std(axis=1),
            "blocks_min": blocks.min(axis=1),
            "blocks_max": blocks.max(axis=1),
            "blocks_total": total,
            "usage_mean": blocks.mean(axis=1) / total,
            "flops_mean": flops.mean(axis=1),
            "flops_std": flops.std(axis=1),
            "flops_full": full,
            "flops_share": flops.mean(axis=1) / full,
        }
    )


def print_table(summary: pd.DataFrame, title: str = "") -> None:
    """Prints `summarize`'s table for people, within 80 columns."""
    unit, name = (1e9, "G") if summary["flops_full"].iloc[0] >= 1e9 else (1e6, "M")
    blocks = f"blocks used of {summary['blocks_total'].iloc[0]}\nmean ± std (min-max)"
    flops = f"FLOPs, {name}\nmean ± std"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("S", "top-1, %", blocks, flops, "of the full\nnetwork, %"):
        table.add_column(header, justify="right")
    rows: Iterable[Any] = summary.itertuples()
    for row in rows:
        table.add_row(
            f"{row.scale:g}",
            f"{row.top1_percent:.2f}",
            f"{row.blocks_mean:.2f} ± {row.blocks_std:.2f} ({row.blocks_min}-{row.blocks_max})",
            f"{row.flops_mean / unit:.2f} ± {row.flops_std / unit:.2f}",
            f"{100 * row.flops_share:.1f}",
        )
    Console().print(table)


def write(
    evaluation: Evaluation, directory: epath.PathLike, meta: Mapping[str, Any]
) -> list[epath.Path]:
    """Writes eval.csv, eval.json, eval_samples.npz, top1_vs_flops.png and block_usage.png.

    Each file is replaced as a whole, so that an interruption leaves the old one or the new one.

    Args:
      evaluation: what to write.
      directory: of the files; it is made where it is missing.
      meta: more to record in eval.json, such as step, phase, dataset and split.

    Returns:
      The files' paths, the plots last.
    """
    summary, arch, device = summarize(evaluation), evaluation.arch, jax.devices()[0]
    record = {
        **meta,
        "architecture": arch.describe(),
        "scales": evaluation.scales,
        "device": {"platform": device.platform, "kind": device.device_kind},
        "versions": {m.__name__: m.__version__ for m in (urnet_jax, jax, flax)},
        # JSON knows no NaN, which the loss of a diverged network is.
        "rows": summary.replace([np.inf, -np.inf, np.nan], None).to_dict("records"),
    }
    arrays = {f.name: getattr(evaluation, f.name) for f in dataclasses.fields(evaluation)[1:]}
    samples = io.BytesIO()
    np.savez_compressed(samples, **arrays)
    stages = [stage.num_blocks for stage in arch.stages]
    usage = plots.plot_block_usage(evaluation.gates, evaluation.scales, stages, arch.describe())
    files = {
        "eval.csv": summary.to_csv(index=False).encode(),
        "eval.json": (json.dumps(record, indent=2, allow_nan=False) + "\n").encode(),
        "eval_samples.npz": samples.getvalue(),
        "top1_vs_flops.png": plots.to_png(plots.plot_top1_vs_flops(summary, arch.describe())),
        "block_usage.png": plots.to_png(usage),
    }
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = directory / f".{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(directory / name)
    return [directory / name for name in files]


def evaluate_workdir(
    workdir: epath.PathLike,
    *,
    scales: Sequence[float] | None = None,
    split: str = "test",
    batch_size: int = 0,
    data_dir: str | None = None,
    output: epath.PathLike | None = None,
) -> pd.DataFrame:
    """Evaluates a run's newest checkpoint: returns and prints its table, `write`s its files.

    Args:
      workdir: of the run; nothing else is needed.
      scales: the grid of S; by default the config's.
      split: `train` or `test`.
      batch_size: samples per step; 0 takes the config's.
      data_dir: where the dataset lies now; by default where the config says.
      output: folder of the files; by default the workdir.

    Raises:
      UserError: the workdir holds no readable checkpoint, or an argument is not usable.
    """
    requested = None if scales is None else check_scales(scales)
    if batch_size < 0:
        raise UserError(f"batch_size is {batch_size}; expected at least 1, or 0 for the config's.")
    directory = epath.Path(output or workdir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"The output {directory} is a file; name a folder with --output.")
    meta, params, batch_stats = checkpoint.load_for_evaluation(workdir)
    config = meta.config
    if data_dir:
        config.data.dir = data_dir
    opened = data.open_split(config.data, split)
    grid = requested or config.eval.scales
    if not config.model.gated:
        print("This network is plain: it has no gates, so S is ignored and it is evaluated once.")
    elif meta.phase == "pretrain":
        print("This run is in phase pretrain, its gates untrained: evaluated once, all blocks on.")
        grid = (1.0,)

    eval_step = steps.make_eval_step(config, meta.phase)
    batch_size = batch_size or config.eval.batch_size
    evaluation = evaluate(eval_step, params, batch_stats, opened, config, grid, batch_size)
    about = {"dataset": opened.dataset, "split": split, "phase": meta.phase, "step": meta.step}
    paths = write(evaluation, directory, about)
    summary = summarize(evaluation)
    images = f"{opened.num_examples} images of {opened.dataset} {split}"
    title = f"{evaluation.arch.describe()}\n{images}, step {meta.step} ({meta.phase})"
    print_table(summary, title)
    print(*paths, sep="\n")
    return summary
