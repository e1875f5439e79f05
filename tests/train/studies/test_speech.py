"""Spoken digits and their spectrograms."""

import math

import pytest
import torch
from torch import nn

from foveate_train import registry
from foveate_train.studies import speech
from foveate_train.studies.speech_words import (
    HOP,
    RATE,
    SAMPLES,
    SECONDS,
    SIDE,
    WORDS,
    band,
    spectrogram,
    spoken,
)


@pytest.mark.parametrize("frequency", [300, 1000, 5000])
def test_a_tone_stands_at_its_frequency_and_time(frequency):
    times = torch.arange(SAMPLES) / RATE
    picture = spectrogram(torch.sin(2 * math.pi * frequency * times) * (times > SECONDS / 2))
    assert picture.shape == (SIDE, SIDE)
    assert picture.dtype == torch.uint8
    rows = picture[:, 3 * SIDE // 4].float()
    assert int(rows.argmax()) == pytest.approx(band(frequency), abs=1.5)
    assert picture[:, : SIDE // 2 - 3].max() == 0
    assert picture[:, SIDE // 2 + 3 :].amax(0).min() > 200


def test_every_word_has_a_speaker_of_its_own_and_is_the_same_again():
    first, again, other = spoken(7, 0), spoken(7, 0), spoken(17, 0)
    assert (first.wave == again.wave).all()
    assert first.digit == other.digit == 7
    assert first.begins != other.begins
    assert spoken(7, 1).begins != first.begins
    for word in (first, other):
        assert word.wave.shape == (SAMPLES,)
        assert word.wave.abs().max() == pytest.approx(0.7)
        assert 0 < word.begins[0] < word.begins[-1] < SECONDS
        assert len(word.begins) == len(WORDS["seven"]) + 1


def test_breath_is_high_and_voice_is_low():
    word = spoken(6, 0)
    picture = spectrogram(word.wave).float()
    middles = [
        int((start + end) / 2 * RATE / HOP)
        for start, end in zip(word.begins, word.begins[1:], strict=False)
    ]
    loudest = [int(picture[:, column].argmax()) for column in middles]
    hiss, vowel, _, _, last = loudest
    assert max(hiss, last) < band(4000) < band(1000) < vowel
    # Before the word there is the background alone.
    assert picture[:, : int(word.begins[0] * RATE / HOP) - 4].mean() < picture[:, middles[1]].mean()


def test_the_cells_of_the_map_are_where_the_page_says():
    module = registry.create("foveate:spectrogram_cnn", weights="random:0").module
    # An average takes all that a maximum chooses from.
    module.pool1 = nn.AvgPool2d((4, 2))
    module.conv1[1] = nn.Identity()
    module.conv2[1] = nn.Identity()
    image = torch.ones(1, 1, SIDE, SIDE, requires_grad=True)
    maps = module.conv2(module.pool1(module.conv1(image)))
    assert maps.shape[2:] == (27, 58)
    for row, column in ((0, 0), (13, 30), (26, 57)):
        (gradient,) = torch.autograd.grad(maps[0, :, row, column].sum(), image, retain_graph=True)
        places = gradient[0, 0].nonzero().float()
        middle = (places.amax(0) + places.amin(0)) / 2
        expected = [
            first + step * number
            for first, step, number in zip(speech._FIRST, speech._STEP, (row, column), strict=True)
        ]
        assert middle.tolist() == expected
