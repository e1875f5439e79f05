"""`foveate visualize embed`."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate_train import registry
from foveate_train.commands.visualize import main
from foveate_train.errors import SettingsError
from foveate_train.penultimate import head_of, penultimate
from foveate_train.visualize import embed

HOSTILE = "<script><img src=x onerror=alert(1)>"
"""A folder's name; none holds a slash."""


def test_digits_of_a_class_are_near_each_other(trained, tmp_path, capsys):
    assert main(["embed", str(trained), "mnist", "--limit", "200", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    found = {
        name: np.load(tmp_path / f"embed-{name}.npy")
        for name in ("features", "points", "neighbours", "labels")
    }
    assert np.bincount(found["labels"]).tolist() == [20] * 10
    assert found["features"].shape == (200, 128)
    assert found["neighbours"].shape == (200, 6)
    same = found["labels"][found["neighbours"][:, 0]] == found["labels"]
    assert same.mean() > 0.85
    assert f"the nearest neighbour of {same.mean():.1%} is of their own folder" in said
    # Also in two dimensions: the nearest other point.
    apart = np.linalg.norm(found["points"][:, None] - found["points"], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (found["labels"][apart.argmin(1)] == found["labels"]).mean() > 0.75
    with Image.open(tmp_path / "embed.png") as picture:
        assert min(picture.size) > 800


def test_a_folder_of_photographs_by_pca(photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "in")
    (tmp_path / "in" / "things").rename(tmp_path / "in" / HOSTILE)
    words = ["embed", "package:efficientnet_lite0", str(tmp_path / "in"), "--method", "pca"]
    assert main([*words, "--limit", "8", "--neighbours", "3", "--out", str(tmp_path)]) == 0
    assert np.load(tmp_path / "embed-features.npy").shape == (8, 1280)
    text = (tmp_path / "embed.html").read_text()
    # The name is in the data alone, where it can end nothing, and nothing is fetched.
    assert "onerror" in text
    assert "<img" not in text
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", text)
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [each["name"] for each in data["classes"]] == sorted(["animals", HOSTILE])
    assert len(data["names"]) == len(data["points"]) == 8
    assert {len(each) for each in data["neighbours"]} == {3}
    assert all(Path(tmp_path / "in" / name).is_file() for name in data["names"])


def test_the_page_shows_neighbours_in_a_browser(tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    side = 8
    thumbnails = torch.zeros(5, side, side, 3, dtype=torch.uint8)
    thumbnails[:, :, :, 0] = torch.arange(5)[:, None, None] * 60
    features = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.5, 0.5]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    found = embed.Embedded("abcde", labels, ["<b>first", "second"], thumbnails, features)
    near = embed.nearest(features, 2)
    assert near[:, 0].tolist()[:4] == [1, 0, 3, 2]
    text = embed.page(found, torch.rand(5, 2), near, "a <title>")
    (tmp_path / "page.html").write_text(text)
    asked = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, asked, directory=tmp_path)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        shown = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
                "--dump-dom", f"http://127.0.0.1:{server.server_port}/page.html",
            ],
            capture_output=True, text=True, check=True, timeout=180,
        ).stdout  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/page.html"]
    assert '<h1 id="title">a &lt;title&gt;</h1>' in shown
    assert '<p id="name">a</p>' in shown
    assert '<p id="folder">&lt;b&gt;first</p>' in shown
    assert re.findall(r'<button[^>]* title="(\w) \(', shown) == [
        "abcde"[number] for number in near[0]
    ]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Keeps what is asked for, but for the icon that a browser itself looks for."""

    def __init__(self, asked, *arguments, **more):
        self._asked = asked
        super().__init__(*arguments, **more)

    def do_GET(self):
        if self.path != "/favicon.ico":
            self._asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


def test_a_folder_of_one_picture_has_no_neighbour_of_its_own():
    near = torch.tensor([[1], [0], [0]])
    assert embed._agreement(torch.tensor([0, 1, 2]), near) == ""
    said = "; the nearest neighbour of 50.0% is of their own folder"
    assert embed._agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([[1], [2], [3], [0]])) == said
    assert embed._agreement(torch.tensor([0, 0, 1]), near).startswith("; the nearest")


def test_neighbours_are_those_of_all_pairs():
    features = torch.randn(30, 7)
    found = embed.nearest(features, 4)
    for row, own in enumerate(features):
        alike = torch.nn.functional.cosine_similarity(own[None], features)
        alike[row] = -2
        assert found[row].tolist() == alike.argsort(descending=True)[:4].tolist()


@pytest.mark.parametrize(
    ("name", "features"),
    [("foveate:lenet5", None), ("foveate:nin", None), ("timm:resnet10t", 512)],
)
def test_the_head_makes_the_logits_of_what_is_recorded(name, features):
    classifier = registry.create(name, weights="random:0")
    module, spec = classifier.module.eval(), classifier.input
    image = torch.randn(2, spec.channels, spec.height, spec.width)
    head = head_of(module, image[:1], len(classifier.labels))
    with torch.no_grad(), penultimate(module, head) as seen:
        logits = module(image)
    (values,) = seen
    assert values.shape[0] == 2
    assert values.ndim == 2
    assert features in (None, values.shape[1])
    layer = module.get_submodule(head)
    if isinstance(layer, torch.nn.Linear):
        assert torch.allclose(layer(values), logits, atol=1e-4)


def test_a_network_without_a_head_says_so():
    with pytest.raises(SettingsError, match="no layer of 10 outputs"):
        head_of(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2), 10)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("mnist", "--limit", "3"), "--limit 3: Input should be greater than or equal to 4", 2),
        (("nowhere",), "nowhere: No such file", 1),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, arguments, said, code):
    assert main(["embed", "foveate:convnet4", *arguments, "--out", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_digits_are_for_classifiers_of_digits(tmp_path, capsys):
    words = ["embed", "foveate:resnet18", "mnist", "--weights", "random:0", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "DIR mnist: foveate:resnet18 is no classifier of digits" in capsys.readouterr().err


def test_umap_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    words = ["embed", "foveate:convnet4", "mnist", "--method", "umap", "--out", str(tmp_path)]
    assert main(words) == 1
    assert 'pip install "foveate-train[umap]"' in capsys.readouterr().err
