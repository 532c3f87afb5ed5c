import jax
import jax.numpy as jnp
import numpy as np
import pytest

from urnet_jax.xla import compilation
from urnet_jax.xla.compilation import compiler_options

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are XLA:CPU's")


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


@on_cpu
def test_convolutions_run_on_all_threads_with_the_same_result():
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4, 8, 8, 32), (3, 3, 32, 32))
    )
    assert compiler_options() is not None
    program = jax.jit(convolution, compiler_options=compiler_options()).lower(x, kernel).compile()
    assert "ynn_fusion" not in str(program.as_text())
    # XLA's own choice; if this fails, see whether the options are still needed.
    assert "ynn_fusion" in str(jax.jit(convolution).lower(x, kernel).compile().as_text())
    expected = np.asarray(jax.jit(convolution)(x, kernel))
    assert np.abs(program(x, kernel) - expected).max() <= 1e-5 * np.abs(expected).max()


@on_cpu
def test_options_that_are_not_known_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "_FAST_CONVOLUTIONS", {"xla_cpu_no_such_option": True})
    assert compiler_options.__wrapped__() is None


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_have_no_options(monkeypatch, platform: str):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert compiler_options.__wrapped__() is None
