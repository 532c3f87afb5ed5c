"""The page at `/`: an image, the knob, what runs, and the load; one file, no network needed."""

import jinja2

from urnet_jax.serve.predictor import Predictor
from urnet_jax.serve.web.recent import WINDOW_S


def page(predictor: Predictor, name: str) -> bytes:
    """The page of a network.

    Args:
      predictor: that answers.
      name: of the model in addresses.
    """
    loader = jinja2.PackageLoader("urnet_jax.serve.web", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True)
    arch, (height, width, channels) = predictor.arch, predictor.image_shape
    data = {
        "name": name, "shape": [height, width, channels], "groups": list(arch.gate_groups),
        "full_flops": predictor.full_flops, "class_names": list(predictor.class_names),
    }  # fmt: skip
    text = environment.get_template("page.html").render(
        name=name, about=arch.describe(), height=height, width=width, window=f"{WINDOW_S:g}",
        data=data,
    )  # fmt: skip
    return text.encode()
