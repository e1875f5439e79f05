"""Sounds by the pipeline of pictures: trained, exported, served and explained."""

import json
import subprocess

import numpy as np
import torch
from PIL import Image

from foveate_train import checkpoint
from foveate_train.activation_maps import METHODS
from foveate_train.commands.train import main
from foveate_train.data.memory import normalise
from foveate_train.recording import recorded
from foveate_train.studies import speech
from foveate_train.studies.speech_words import WORDS

from ..conftest import FOVEATE
from .conftest import running


def test_a_spoken_word_is_recognised_by_a_server_with_the_map_of_the_page(tmp_path):
    study, models = tmp_path / "study", tmp_path / "models"
    train = ["study", "speech", "--subset", "500", "--epochs", "4", "--batch-size", "16"]
    assert main([*train, "--threads", "1", "--out", str(study)]) == 0
    results = json.loads((study / "results.json").read_text())
    assert results["test_accuracy"] > 0.5
    gains = []
    for word, shares in results["shares"].items():
        own, times = torch.tensor(shares).T
        assert len(own) == len(WORDS[word]) + 1
        if results["right"][word].startswith("0 of"):
            assert not own.any()
            continue
        assert abs(float(own.sum()) - 1) < 1e-2
        assert abs(float(times.sum()) - 1) < 1e-2
        gains.append(float(own[:-1].sum() - times[:-1].sum()))
    # What is spoken counts for more than its time.
    assert sum(gains) / len(gains) > 0.1
    with Image.open(study / "words.png") as picture:
        assert min(picture.size) > 300
    export = [FOVEATE, "export", study / "checkpoint", "--repository", models, "--name", "speech"]
    export += ["--cam-layer", speech.LAYER]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    sound = study / "words" / "seven.png"
    with running(models, tmp_path / "log") as server:
        classify = [FOVEATE, "classify", sound, "--address", server.address, "--model", "speech"]
        classify += ["--cam", "--cam-method", speech.METHOD, "--out", tmp_path / "out", "--json"]
        answer = json.loads(subprocess.run(classify, check=True, stdout=subprocess.PIPE).stdout)
    best = answer["predictions"][0]
    classifier = checkpoint.load(study / "checkpoint").classifier
    with Image.open(sound) as picture:
        image = normalise(torch.from_numpy(np.array(picture))[None, None], classifier.input)
    with recorded(classifier.module, [speech.LAYER]) as seen:
        logits = classifier.module(image.requires_grad_())
    (gradient,) = torch.autograd.grad(logits[0].max(), seen[speech.LAYER])
    own = METHODS[speech.METHOD](seen[speech.LAYER].detach(), gradient)[0].numpy()
    assert best["label"] == classifier.labels[int(logits.argmax())]
    (cam,) = answer["cams"]
    served = np.load(cam["path"].replace(".png", ".npy"))
    assert served.shape == own.shape == (27, 58)
    assert np.abs(served - own).max() < 1e-4 * max(1, own.max())
