"""What results show of themselves in a notebook."""

import io
import re
from base64 import b64decode
from dataclasses import replace

import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from foveate_client import Cam, Client

from .conftest import photograph


@pytest.fixture(scope="module")
def formats():
    """Return what IPython shows of a value, by MIME type."""
    formatter = DisplayFormatter()
    return lambda value: formatter.format(value, include={"text/html", "image/png"})[0]


@pytest.fixture
def client(imagenet_repository):
    with Client.local(imagenet_repository) as client:
        yield client


def test_results_show_themselves(client, formats):
    result = client.classify(
        photograph("chelsea.png"), cam=Cam(top=2), feature_maps=["blocks.2"], top_k=3
    )
    html = formats(result)["text/html"]
    for prediction in result.predictions:
        assert prediction.label in html
        assert f"{prediction.score:.1%}" in html
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 3
    for explanation in (*result.cams, *result.feature_maps):
        with Image.open(io.BytesIO(formats(explanation)["image/png"])) as image:
            assert max(image.size) <= 512
    with Image.open(io.BytesIO(b64decode(pictures[0]))) as image:
        assert image.getcolors(512 * 512) is None or len(image.getcolors(512 * 512)) > 100

    model = client.model()
    html = formats(model)["text/html"]
    assert "tench" in html
    assert "and 988 more" in html
    assert "blocks.6" in html


def test_a_label_is_text(client, formats):
    result = client.classify(photograph("chelsea.png"), top_k=1)
    (best,) = result.predictions
    hostile = replace(result, predictions=(replace(best, label="<script>"),), model="a & b")
    html = formats(hostile)["text/html"]
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "a &amp; b" in html
