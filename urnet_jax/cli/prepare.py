"""`urnet prepare`."""

from absl import app, flags

from urnet_jax.cli.flags import FLAGS, parse, show_help
from urnet_jax.errors import UserError, told_to_the_user

_told_to_the_user = told_to_the_user("Interrupted: nothing was prepared.")


def main() -> None:
    r"""Make a dataset that can be trained on, of a folder of images and label maps.

        urnet prepare --folder=CamVid --data_dir=DIR --name=camvid --num_classes=11 \
            --ignored_label=11

    --folder         holds train, val and test, each with images and labels of the same names; or
                     Cityscapes as it comes, leftImg8bit and gtFine
    --data_dir       the folder in which the dataset gets a folder of its name
    --name           of the dataset
    --num_classes    labels run from 0 to one less (default: the number of --class_names)
    --class_names    separated by commas (default: they have numbers only)
    --ignored_label  of pixels that count nowhere (default: all count)

    Cityscapes has 19 classes and the ignored label 255 by itself. A map is a PNG in 8-bit grey or
    with a palette. Without val, or without test, the other is tested on. At its end it prints what
    to put in a config.
    """
    app.run(_prepare, flags_parser=_parse)


@_told_to_the_user
def _parse(argv: list[str]) -> tuple[str, ...]:
    show_help(argv, main)
    flags.DEFINE_string("folder", "", "With images and label maps.")
    flags.DEFINE_string("data_dir", "", "Where the dataset gets a folder.")
    flags.DEFINE_string("name", "", "Of the dataset.")
    flags.DEFINE_integer("num_classes", None, "Labels.", lower_bound=1, upper_bound=256)
    flags.DEFINE_string("class_names", "", "In order.")
    flags.DEFINE_integer("ignored_label", None, "Counts nowhere.", lower_bound=-1, upper_bound=255)
    parse(argv)
    needed = {
        "folder": "name the folder of images and maps, as --folder=CamVid",
        "data_dir": "name the folder that is to hold the dataset, as --data_dir=DIR",
        "name": "name the dataset, as --name=camvid",
    }
    for name, what in needed.items():
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing; {what}.")
    names = tuple(name.strip() for name in FLAGS.class_names.split(","))
    if names == ("",):
        return ()
    if not all(names):
        raise UserError(
            f"--class_names is {FLAGS.class_names!r}; expected names separated by commas, as "
            "sky,road."
        )
    return names


@_told_to_the_user
def _prepare(names: tuple[str, ...]) -> None:
    from urnet_jax.data.prepare import prepare

    made = prepare(
        FLAGS.folder, FLAGS.data_dir, FLAGS.name, num_classes=FLAGS.num_classes, class_names=names,
        ignored_label=FLAGS.ignored_label,
    )  # fmt: skip
    counts = ", ".join(f"{count} {split}" for split, count in made.examples.items())
    print(f"{made.folder} holds {counts}. In a config:\n")
    for name, value in made.fields.items():
        print(f"    data.{name} = {value!r}")
    print("\n    data.image_size  # the side of a square that is cropped in training, in pixels")
