"""`nabn inspect` on the command line."""

from __future__ import annotations

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ("gaussian:relative_to=column", "tiles of 512 x 512, weights in the layer's own units"),
        ("pcm", "tiles of 512 x 512, each column scaled to full range"),
        (
            "crossbar:replicate_rows=true,output_range=true",
            "each column scaled to full range, columns copied over free rows, ADC ranges from images (2 to 56 times: ",
        ),
    ],
)
def test_it_says_how_weights_are_mapped(noise: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, ["inspect", "torchvision:mobilenet_v2", "--noise", noise]) == 0
    assert said in capsys.readouterr().out


def test_a_bad_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, ["inspect", "torchvision:mobilenet_v2", "--noise", "pcm:replicate_rows=0"]) == 2
    assert "replicate_rows must be true, false or a largest number of copies >= 1, got 0" in capsys.readouterr().err
