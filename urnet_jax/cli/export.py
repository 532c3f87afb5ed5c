"""`urnet export`."""

from absl import app, flags

from urnet_jax.cli.flags import FLAGS, check_workdir, parse, show_help, which_step
from urnet_jax.cli.interruption import end_at_once_on_ctrl_c
from urnet_jax.errors import UserError, told_to_the_user

_INTERRUPTED = "Interrupted: the file was not written."
_told_to_the_user = told_to_the_user(_INTERRUPTED)


def main() -> None:
    """Write a run's network as a PyTorch state dict, or as a bundle for `urnet_jax.load`.

        python -m urnet_jax export --workdir=DIR --output=FILE
        python -m urnet_jax export --workdir=DIR --format=bundle --output=FOLDER

    --workdir  the folder of a run by train.py
    --output   the file: .safetensors, or .pt, .pth or .th, which need the extra torch; of a bundle
               the folder
    --format   state_dict (default), or bundle: weights, config, calibration and a model card
    --names    torchvision (default; those of CIFAR ResNets where it is one), or huggingface: of its
               ResNetForImageClassification
    --step     newest (default), best (by its evaluation, over all S) or a step's number
    --prune_at an S: of a network whose gates switch channels, the plain one that has only the
               channels which training images use at that S
    --images   how many of them are asked, with --prune_at (default: 2000)
    --data_dir where the data lies now, with --prune_at (default: the run's data.dir)

    Gates are written too, as layer1.0.gate.fc1.weight and so on. --config.init.from=FILE takes the
    file back.
    """
    end_at_once_on_ctrl_c(_INTERRUPTED)
    app.run(_export, flags_parser=_parse_export)


@_told_to_the_user
def _parse_export(argv: list[str]) -> None:
    show_help(argv, main)
    flags.DEFINE_string("workdir", "", "The folder of a run by train.py.")
    flags.DEFINE_string("output", "", "The file.")
    flags.DEFINE_string("step", "newest", "Which checkpoint.")
    flags.DEFINE_enum("format", "state_dict", ["state_dict", "bundle"], "What is written.")
    flags.DEFINE_enum("names", "torchvision", ["torchvision", "huggingface"], "Whose names.")
    flags.DEFINE_float("prune_at", None, "An S.")
    flags.DEFINE_integer("images", 2000, "Training images.", lower_bound=1)
    flags.DEFINE_string("data_dir", "", "Where the data lies now.")
    parse(argv)
    check_workdir()
    which_step()
    if not FLAGS.output:
        example = "folder, as --output=mine" if FLAGS.format == "bundle" else (
            "file, as --output=mine.safetensors"
        )  # fmt: skip
        raise UserError(f"--output is missing; name a {example}.")
    if FLAGS.format == "bundle" and (FLAGS["names"].present or FLAGS.prune_at is not None):
        raise UserError("--names and --prune_at belong to a state dict, and --format is 'bundle'.")
    if FLAGS.prune_at is None and (FLAGS["images"].present or FLAGS.data_dir):
        raise UserError("--images and --data_dir belong to --prune_at: set it, or leave them out.")
    if FLAGS.prune_at is not None and not 0 <= FLAGS.prune_at <= 1:
        raise UserError(f"--prune_at is {FLAGS.prune_at:g}; expected an S from 0 to 1.")
    if FLAGS.prune_at is not None and FLAGS.names != "torchvision":
        raise UserError("--names is 'huggingface', which --prune_at does not write: leave it out.")


@_told_to_the_user
def _export(_: None) -> None:
    if FLAGS.prune_at is not None:
        from urnet_jax.evaluate.pruning import prune_workdir
        from urnet_jax.xla import cache

        cache.keep_compiled()
        prune_workdir(
            FLAGS.workdir, FLAGS.output, FLAGS.prune_at, which=which_step(), images=FLAGS.images,
            data_dir=FLAGS.data_dir,
        )  # fmt: skip
        return
    from urnet_jax.runs import export

    if FLAGS.format == "bundle":
        export.export_bundle(FLAGS.workdir, FLAGS.output, which_step())
    else:
        export.export_workdir(FLAGS.workdir, FLAGS.output, which_step(), FLAGS.names)
