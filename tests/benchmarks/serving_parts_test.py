"""Flags of the benchmarks of a server that fall into parts."""

import pytest

from benchmarks import serving_http, serving_soak
from urnet_jax.errors import UserError


@pytest.mark.parametrize(
    ("parse", "flags", "sentence"),
    [
        (serving_http.parse, [], "--workdir is missing"),
        (serving_http.parse, ["--parts=rate,size"], "--parts names 'size'; expected some of late"),
        (serving_http.parse, ["--rounds=0"], "rounds=0"),
        (serving_soak.parse, ["--parts=many,few"], "--parts names 'few'; expected some of many, "),
        (serving_soak.parse, ["--stops=0"], "stops=0"),
        (serving_soak.parse, ["--minutes=0"], "minutes=0"),
    ],
)
def test_a_wrong_flag_is_one_sentence(parse, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(["benchmark.py", *(["--workdir=x", *flags] if flags else [])])


def test_defaults_are_those_that_the_help_names():
    for module in (serving_http, serving_soak):
        values = module.parse(["benchmark.py", "--workdir=x"])
        assert values.parts == ",".join(module.PARTS)
        for name in ("requests", "connections"):
            assert f"(default: {values[name].value})" in (module.__doc__ or "")
