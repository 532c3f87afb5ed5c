# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which blocks does an image use?
#
# A gate before each block of the network sees the image's features and the scale S that the user
# asks for, and decides whether the block runs. This notebook opens a finished run and looks at what
# its gates do with the test images.
#
# It opens the demo's run: run `make demo` first, or name the workdir of another run. Everything
# here is `urnet_jax.evaluate.inspection`: tables are pandas DataFrames, pictures are matplotlib
# figures.

# %%
import os
import pathlib

# The notebook is in notebooks/; paths, also those in a run's config, start at the repository.
if not pathlib.Path("notebooks").is_dir():
    os.chdir("..")

WORKDIR = os.environ.get("URNET_WORKDIR", "runs/digits")
DATA_DIR = os.environ.get("URNET_DATA_DIR", "")  # where the data lies, if not where the config says
SCALES = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
EXAMPLES = 1000  # of the test images, at most, to look at

# %%
import functools

import ipywidgets
from IPython.display import display

from urnet_jax.evaluate import figures, inspection
from urnet_jax.evaluate.evaluation import summarize

run = inspection.load(WORKDIR, data_dir=DATA_DIR)
split = run.subset(EXAMPLES)
print(f"{run.arch.describe()}; step {run.meta.step} of {WORKDIR}")
print(f"{split.num_examples} images of {split.dataset} {split.name}")

# %% [markdown]
# ## What S buys
#
# Every image once for each S: the accuracy, how many blocks the images used (mean and standard
# deviation over images, fewest, most), and the share of the full network's FLOPs that it took.

# %%
evaluation = run.evaluate(SCALES, split)
columns = ["scale", "top1_percent", "blocks_mean", "blocks_std", "blocks_min", "blocks_max"]
summarize(evaluation)[[*columns, "flops_share"]].round(3)

# %%
inspection.plot_top1(evaluation)

# %% [markdown]
# ## Which blocks are used
#
# Figure 4 of the paper: the share of images that use each block, for each S. At 0 and 100 all
# images are treated alike; in between, the gate decides by the image.

# %%
inspection.plot_usage(evaluation)

# %% [markdown]
# The same averaged over blocks, by class: do some classes need more of the network than others?

# %%
gates = inspection.gate_table(evaluation)
inspection.plot_usage_by_class(gates)

# %% [markdown]
# And at one S by class and block: where do classes part?

# %%
inspection.plot_usage_by_class(gates, scale=0.6)

# %% [markdown]
# That table has a row for every image, S and block, for questions that are not asked here.

# %%
gates.sample(5, random_state=0)

# %% [markdown]
# ## Easy and hard images
#
# The eight images that use the fewest blocks at S = 0.6, and below them the eight that use the most
# (of equals, the first of the split).

# %%
chosen = inspection.easy_and_hard(gates, scale=0.6)
run.plot_samples(chosen, split)

# %% [markdown]
# ## What less compute loses
#
# Images that are right at one S and wrong at a lower one, the first eight of each; blocks are those
# used at the higher S.

# %%
for more, less in ((0.8, 0.6), (1.0, 0.2)):
    lost = inspection.right_and_wrong(gates, right_at=more, wrong_at=less)
    print(f"{len(lost)} of {split.num_examples} images are right at S = {more}, wrong at {less}.")
    if len(lost):
        display(run.plot_samples(lost.head(8), split))

# %% [markdown]
# ## One image, all S
#
# The blocks that one image uses (yellow) as S goes from 0 to 1, and what the network then takes it
# for (red where that is wrong). It is an image that the lowest S lost, or a hard one if none was.

# %%
sample = int((lost if len(lost) else chosen)["sample"].iloc[-1])
inspection.plot_sweep(run.sweep(sample, split=split))

# %% [markdown]
# ## How many paths there are
#
# A path is the set of blocks that an image uses. Gates that heeded S alone would have one path at
# each S; more than one means that they look at the image.

# %%
sweep = run.gates(inspection.SWEEP[::2], split)
inspection.distinct_paths(sweep).to_frame().T

# %% [markdown]
# ## What the gates are made of
#
# A gate is open where its logit is 0 (dashed) or more. The line is the median over images, the band
# holds nine images of ten: a block whose band crosses 0 is used by some images and not by others,
# and one that stays on a side of it does the same at every S. Of more than twelve blocks the plot
# shows those that move most.

# %%
inspection.plot_logits(sweep)


# %% [markdown]
# ## Any S
#
# First at one S: top-1, the mean share of blocks and of FLOPs, and the share of images that use
# each block. Then with a slider, which evaluates the images at the S that it is moved to; it needs
# a running notebook.


# %%
@functools.cache
def evaluate_at(scale):
    return run.evaluate([scale], split)


def look(scale):
    return inspection.plot_blocks(evaluate_at(scale), scale)


look(0.5)

# %%
slider = ipywidgets.FloatSlider(0.5, min=0, max=1, step=0.05, description="S")
slider.continuous_update = False  # evaluate where it is let go, not on the way
picture = ipywidgets.Image()


def show(_=None):
    picture.value = figures.to_png(look(slider.value))


slider.observe(show, names="value")
show()
ipywidgets.VBox([slider, picture])
