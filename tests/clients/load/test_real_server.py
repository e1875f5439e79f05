"""`foveate load` drives `foveate serve`, by both of its protocols."""

import json

import pytest

from foveate_client.commands import load


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["--cam-share", "0.4", "--feature-map-share", "0.3"], {"plain", "cam", "feature maps"}),
        (["--protocol", "oip", "--model", "efficientnet_lite0"], {"plain"}),
    ],
)
def test_a_server_is_driven(imagenet_server, coffee, capsys, arguments, kinds):
    code = load.main(
        [
            *(str(coffee), "--address", imagenet_server, "--concurrency", "4"),
            *("--duration", "1.5", "--warmup", "0.2", "--json", *arguments),
        ]
    )
    (found,) = json.loads(capsys.readouterr().out)["targets"]
    assert code == 0
    assert (found["model"], found["errors"]) == ("efficientnet_lite0", {})
    assert set(found["kinds"]) == kinds
    # Little's law holds for a server that does real work as well.
    in_flight = found["rate"] * found["latency_ms"]["mean"] / 1000
    assert in_flight == pytest.approx(4, rel=0.4)
