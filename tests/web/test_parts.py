"""The page's parts, without a browser."""

import io
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from foveate_client import ImageError, InputSpec, Model
from foveate_train.data import mnist
from foveate_web import command, drawing, fragments, link, pictures
from foveate_web.asking import Answer, Choice
from foveate_web.pictures import Pictures
from foveate_web.serving import MAX_BODY

from ..encoding import encoded
from .conftest import shown


def test_a_digit_drawn_large_and_aside_becomes_that_of_mnist() -> None:
    digits, _ = mnist.load("test")
    likeness = []
    for digit in digits[:100]:
        large = Image.new("L", (280, 280))
        large.paste(Image.fromarray(digit).resize((168, 168), Image.Resampling.BICUBIC), (90, 20))
        with Image.open(io.BytesIO(drawing.digit(encoded(large)))) as drawn:
            assert (drawn.mode, drawn.size) == ("L", (28, 28))
            found = np.asarray(drawn).astype(float)
        likeness.append(np.corrcoef(found.ravel(), digit.ravel())[0, 1])
    # A digit that lies a pixel aside is like its own to 0.8.
    assert np.median(likeness) > 0.95


def test_what_the_page_writes_is_sent_at_once() -> None:
    with (
        command._listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("strokes", "told"),
    [
        (encoded(Image.new("L", (280, 280))), "nothing is drawn"),
        (encoded(Image.new("L", (1025, 8), 255)), "1024 pixels"),
        (b"no picture", "no PNG"),
    ],
)
def test_a_drawing_that_cannot_be_one_is_refused(strokes: bytes, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        drawing.digit(strokes)


def test_pictures_are_kept_within_bounds_and_the_last_used_stay() -> None:
    kept = Pictures(most=2)
    one, two, three = (encoded(Image.new("RGB", (8, 8), (n, 0, 0))) for n in range(3))
    first, second = kept.add(one), kept.add(two)
    assert kept.get(first.name).data == one
    kept.add(three)
    assert kept.get(first.name).data == one
    with pytest.raises(ImageError, match="choose it again"):
        kept.get(second.name)
    assert kept.get("seven").grey


def test_pictures_are_kept_within_their_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    kept = Pictures(most_bytes=10_000)
    names = [kept.add(encoded(each)).name for each in noise]
    assert kept.get(names[-1])
    with pytest.raises(ImageError):
        kept.get(names[0])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"GIF89a", "no PNG, JPEG, WebP, BMP or GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG, WebP, BMP or GIF"),
        (b"\0" * (pictures.MAX_BYTES + 1), f"limit is {pictures.MAX_BYTES} bytes"),
        (encoded(Image.new("1", (10_000, 5_001))), f"limit is {pictures.MAX_PIXELS} pixels"),
    ],
)
def test_what_cannot_be_a_picture_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(ImageError, match=re.escape(told)):
        Pictures().add(data)


def test_a_model_without_maps_says_why() -> None:
    model = Model(
        name="plain",
        version="1",
        state="ready",
        classifier="own",
        active_variant="fp32",
        backend="onnxruntime",
        device="cpu",
        labels=("a", "b"),
        input=InputSpec(
            height=8, width=8, channels=3, resize=8, interpolation="bilinear", mean=(), std=()
        ),
        layers=(),
        cam_methods=(),
        variants=(),
        created=datetime.now(UTC),
        parameters=1,
        assumptions={"cams": "none: the head is <new>"},
    )
    answer = Answer(
        choice=Choice(), model=model, result=None, heatmaps=(), features=None, seconds=0
    )
    said = fragments.maps(answer, Pictures().get("cat"))
    assert "plain has no class activation maps: the head is &lt;new&gt;" in said


def test_a_link_restores_what_it_was_made_of() -> None:
    choices = (
        Choice(
            model="a b&c", class_id=3, against=5, methods=("cam", "layercam"), layer=2, channel=9
        ),
        Choice(model="other", methods=("cam",)),
    )
    query = link.query("coffee", choices)
    values = dict(urllib.parse.parse_qsl(query[1:]))
    assert link.read(values) == ("coffee", choices)


def test_a_link_that_was_tampered_with_names_nothing() -> None:
    values = {"picture": "x" * 257, "class": "-1", "layer": "1e9", "channel": "9" * 10}
    picture, (one, two) = link.read(values)
    assert picture == ""
    assert (one.class_id, one.layer, one.channel) == (None, 0, 0)
    assert two.model == ""


@pytest.mark.slow
def test_a_body_is_bounded_and_the_headers_keep_the_browser_here() -> None:
    # No server is needed to open the page.
    with shown("127.0.0.1:9") as address:
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - our own server
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert b"fonts.g" not in answer.read()
        request = urllib.request.Request(  # noqa: S310
            f"{address}gradio_api/upload",
            data=b"x" * 16,
            headers={"content-length": str(MAX_BODY + 1)},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)  # noqa: S310
        with refused.value as answer:
            assert answer.code == 413


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "--address"),
        (["--address", "localhost:1", "--listen", "7860"], 2, "no HOST:PORT"),
        (["--address", "localhost:1", "--listen", "127.0.0.1:70000"], 2, "0 to 65535"),
        (["--address", "localhost:1", "--listen", "no.such.host.invalid:0"], 1, "--listen"),
        (["--address", "http://localhost:1", "--listen", "127.0.0.1:0"], 1, "localhost:1"),
        (["--address", "localhost:1", "--token-file", "/no/such/file"], 1, "/no/such/file"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # as the command sets it, and back
    try:
        ended = command.main(arguments)
    except SystemExit as ending:
        ended = ending.code
    assert ended == code
    assert told in capsys.readouterr().err.splitlines()[-1]
