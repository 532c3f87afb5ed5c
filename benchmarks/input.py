"""Images per second and core of the ImageNet input path, beside plain PIL and torch's style.

    python benchmarks/input.py --data_dir=DIR [--image_size=224] [--rates=1000,10000] ...

--data_dir       a prepared TFDS data_dir with imagenet2012, or some of it
--image_size     of the network's input; default: 224
--rates          images/s whose need of cores is told; default: 1000,5000,20000
--repeats        timed rounds; default: 7
--torch          also times the transform in torch's style (default); needs '.[torch]'
--output         the folder for the results; default: runs/benchmarks/input; what is to be
                 kept in the repository: results/input
--fresh          measures again what is there already
--time_limit_s   after these seconds nothing further is started

Each transform decodes the same JPEG files, held in memory, on one thread: the same random windows,
resized. `urnet_jax` gives uint8, mirrored and normalised on the device; `PIL` mirrors every second
image; `torch` is what torchvision's ToTensor and Normalize make of PIL's image. The
pipelines are train.py's own, from the files of the data_dir (which lie in the system's cache) to
batches, on all cores: that is what the cores for a rate are to be read from.
"""

import io
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# Or a thread pool of JAX's would be inherited by the workers.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from absl import flags
from etils import epath
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results, timing
from benchmarks.results import Row
from urnet_jax import config as config_lib
from urnet_jax.data import augment, decode
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import Split
from urnet_jax.errors import UserError, told_to_the_user

Transform = Callable[[bytes, int, int], Any]
"""f(file, epoch, index) -> the image for the network."""

EPOCHS = 3
"""Different windows of each image in a timed call."""

PIPELINE_S = 4.0
"""Seconds over which the pipeline is timed in a round."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on where it stopped."):
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("data_dir", "", "", flag_values=values)
    flags.DEFINE_integer("image_size", 224, "", lower_bound=1, flag_values=values)
    flags.DEFINE_list("rates", ["1000", "5000", "20000"], "", flag_values=values)
    flags.DEFINE_integer("repeats", 7, "", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("torch", True, "", flag_values=values)
    results.define_flags(values, "input")
    timing.parse_flags(values, argv, __doc__ or "")
    if not values.data_dir:
        raise UserError("--data_dir is missing; name a TFDS data_dir that holds imagenet2012.")
    if values.torch:
        from benchmarks import torch_networks  # noqa: F401  # It says what to do without PyTorch.
    if not all(rate.isdecimal() and int(rate) for rate in values.rates):
        raise UserError(f"--rates is {','.join(values.rates)!r}; expected images/s, as 1000,5000.")
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Times what has not been timed; returns the results' file."""
    config = config_lib.load("imagenet_resnet101")
    config.data.dir, config.data.image_size = values.data_dir, values.image_size
    split = open_split(config.data, "train")
    settings = {"image_size": values.image_size, "repeats": values.repeats}
    transforms = (
        "transforms",
        settings | {"torch": values.torch},
        lambda: (_transforms(split, values), {}),
    )
    results.measure([transforms], values)
    # Its workers are other processes.
    pipeline = ("pipeline", settings, lambda: (_pipelines(split, config, values), {}))
    path, record = results.measure([pipeline], values, timed=False)
    print_table(record["rows"], [int(rate) for rate in values.rates])
    print(path)
    return path


def _transforms(split: Split, values: flags.FlagValues) -> list[Row]:
    """A row for each transform."""
    files = [r["image"] for r in split.source.__getitems__(list(range(split.num_examples)))]
    size = values.image_size
    transforms: dict[str, Transform] = {
        "urnet_jax": lambda file, *draw: decode.decode_train(file, size, 0, *draw),
        "PIL": lambda file, *draw: pil_transform(file, size, *draw),
    }
    if values.torch:
        transforms["torch"] = torch_transform(size)

    def all_files(transform: Transform) -> None:
        for epoch in range(EPOCHS):
            for index, file in enumerate(files):
                transform(file, epoch, index)

    calls = {name: lambda t=t: all_files(t) for name, t in transforms.items()}
    times_ms = timing.interleaved_times_ms(calls, values.repeats)
    rates = {name: 1e3 * EPOCHS * len(files) / ms for name, ms in times_ms.items()}
    return [
        {
            "transform": name, "cores": 1, "images": len(files),
            "images_per_s_per_core": float(np.median(rate)),
            "to_pil": float(np.median(rate / rates["PIL"])),
        }
        for name, rate in rates.items()
    ]  # fmt: skip


def pil_transform(file: bytes, size: int, epoch: int, index: int) -> np.ndarray:
    """Decodes the whole image, crops, resizes and mirrors it: what most people write."""
    return np.asarray(_pil_image(file, size, epoch, index))


def torch_transform(size: int) -> Transform:
    """The same, then as float32 [3, size, size], normalised on the host."""
    from benchmarks.torch_networks import torch

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in augment.normalization("imagenet2012"))

    def transform(file: bytes, epoch: int, index: int) -> Any:
        pixels = torch.from_numpy(np.array(_pil_image(file, size, epoch, index)))
        scaled = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return scaled.sub_(mean).div_(std)

    torch.set_num_threads(1)
    return transform


def _pil_image(file: bytes, size: int, epoch: int, index: int) -> Image.Image:
    image = Image.open(io.BytesIO(file)).convert("RGB")
    window = decode.draw_window(*image.size, 0, epoch, index)
    image = image.crop(window).resize((size, size), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if (epoch + index) % 2 else image


def _pipelines(split: Split, config: Any, values: flags.FlagValues) -> list[Row]:
    """Rows for train.py's batches: decoded by processes, by threads, and by threads with PIL."""
    cores, plain = timing.threads(), decode.decode_train

    def with_pil(file: bytes, size: int, seed: int, epoch: int, index: int) -> np.ndarray:
        del seed
        return pil_transform(file, size, epoch, index)

    kinds = {
        f"urnet_jax, pipeline, {cores} processes": (cores, plain),
        f"urnet_jax, pipeline, {cores} threads": (0, plain),
        f"PIL, the same pipeline, {cores} threads": (0, with_pil),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    config.data.threads, config.data.batch_size = cores, 32
    for _ in range(values.repeats):
        for name, (config.data.workers, decode.decode_train) in kinds.items():
            rates[name].append(_images_per_s(split, config))
    decode.decode_train = plain
    rows, pil = [], np.median(rates[list(kinds)[-1]])
    for name, found in rates.items():
        median = float(np.median(found))
        row = {"transform": name, "cores": cores, "images": split.num_examples}
        rows.append(row | {"images_per_s_per_core": median / cores, "to_pil": median / pil})
    return rows


def _images_per_s(split: Split, config: Any) -> float:
    """Of the training batches, once they flow."""
    batches = iter(train_batches(split, config.data, seed=0))
    for _ in range(4 * timing.threads()):
        next(batches)
    start, seen = time.perf_counter(), 0
    while time.perf_counter() - start < PIPELINE_S:
        seen += len(next(batches)["label"])
    rate = seen / (time.perf_counter() - start)
    batches.close()
    return rate


def print_table(rows: Sequence[Row], rates: Sequence[int]) -> None:
    """Prints a line for every transform, and the cores that each of the rates needs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("transform")
    for header in ("images/s\nand core", "to PIL's", *(f"cores for\n{r:,}/s" for r in rates)):
        table.add_column(header, justify="right")
    for row in rows:
        per_core = row["images_per_s_per_core"]
        needed = [str(math.ceil(rate / per_core)) for rate in rates]
        table.add_row(row["transform"], f"{per_core:.0f}", f"{row['to_pil']:.2f}", *needed)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv)
