"""The ten digits, spoken by a small synthesiser, and their mel spectrograms.

A word is a row of sounds. Each has the resonances of the mouth (formants; vowels by Peterson &
Barney, Control methods used in a study of the vowels, 1952, of men), and how much of the vocal
cords and of breath is in it. As in Klatt, Software for a cascade/parallel formant synthesizer,
1980, pulses and noise pass through resonances that glide from sound to sound. The filter is
applied to the short-time Fourier transform. Every word has a speaker of its own.
"""

import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional

RATE = 16_000
"""Samples a second."""
SIDE = 128
"""How many mel bands and how many frames a spectrogram has."""
HOP = 128
"""Samples from one frame to the next."""
SAMPLES = SIDE * HOP
SECONDS = SAMPLES / RATE

_WINDOW = 512
# Zeros after the window, so that the lowest mel bands, of 14 Hz, have bins of their own.
_BINS = 4096
_RANGE = 70.0
"""Decibels from black to white."""
_SILENCE = 0.02
"""The level of what lies before and after a word, where the background is heard alone."""


class Sound(NamedTuple):
    """A sound of speech.

    Attributes:
        formants: the three lowest resonances, in Hz.
        seconds: how long it lasts.
        voice: the level of the vocal cords.
        breath: the level of the noise.
        noise: the middle of the noise, in Hz.
        width: of the noise, in Hz.
    """

    formants: tuple[int, int, int]
    seconds: float
    voice: float = 1.0
    breath: float = 0.0
    noise: int = 3000
    width: int = 1500


_CLOSED = Sound((400, 1500, 2500), 0.06, voice=0)
SOUNDS: Mapping[str, Sound] = {
    "ee": Sound((270, 2290, 3010), 0.13),
    "i": Sound((390, 1990, 2550), 0.09),
    "e": Sound((530, 1840, 2480), 0.10),
    "a": Sound((730, 1090, 2440), 0.13),
    "o": Sound((570, 840, 2410), 0.13),
    "oo": Sound((300, 870, 2240), 0.13),
    "u": Sound((640, 1190, 2390), 0.12),
    "w": Sound((290, 610, 2150), 0.07, voice=0.6),
    "r": Sound((310, 1060, 1380), 0.08, voice=0.7),
    "n": Sound((250, 1450, 2500), 0.09, voice=0.35),
    "v": Sound((250, 1100, 2300), 0.06, voice=0.3, breath=0.05, noise=5000, width=2500),
    "z": Sound((250, 1700, 2500), 0.10, voice=0.25, breath=0.3, noise=6000, width=1300),
    "s": Sound((300, 1700, 2500), 0.12, voice=0, breath=0.45, noise=6000, width=1300),
    "f": Sound((300, 1100, 2300), 0.10, voice=0, breath=0.1, noise=5000, width=2800),
    "th": Sound((300, 1400, 2500), 0.10, voice=0, breath=0.07, noise=5500, width=2200),
    "t": Sound((300, 1800, 2600), 0.03, voice=0, breath=0.5, noise=4200, width=1500),
    "k": Sound((300, 1900, 2400), 0.03, voice=0, breath=0.5, noise=2000, width=700),
    "-": _CLOSED,
}
WORDS: Mapping[str, Sequence[str]] = {
    "zero": ("z", "i", "r", "o", "oo"),
    "one": ("w", "u", "n"),
    "two": ("-", "t", "oo"),
    "three": ("th", "r", "ee"),
    "four": ("f", "o", "r"),
    "five": ("f", "a", "i", "v"),
    "six": ("s", "i", "-", "k", "s"),
    "seven": ("s", "e", "v", "u", "n"),
    "eight": ("e", "ee", "-", "t"),
    "nine": ("n", "a", "i", "n"),
}


class Spoken(NamedTuple):
    """A spoken word.

    Attributes:
        digit: 0 to 9.
        wave: float32 [16384], -1 to 1.
        begins: when each sound begins, in seconds, and when the last one ends.
    """

    digit: int
    wave: torch.Tensor
    begins: tuple[float, ...]


def spoken(number: int, seed: int) -> Spoken:
    """Speak a digit, which is the last one of `number`, by a speaker whom both numbers name."""
    draw = random.Random(f"{seed} {number}")  # noqa: S311  no secret
    digit = number % len(WORDS)
    sounds = [SOUNDS[name] for name in tuple(WORDS.values())[digit]]
    speed = draw.uniform(0.8, 1.3)
    lasts = [sound.seconds * draw.uniform(0.8, 1.2) / speed for sound in sounds]
    begin = draw.uniform(0.08, SECONDS - sum(lasts) - 0.08)
    begins = [begin + sum(lasts[:place]) for place in range(len(lasts) + 1)]
    # Small people have high voices and short throats, with high resonances.
    size = draw.uniform(0, 1)
    pitch = 95 + 130 * size + draw.uniform(-12, 12)
    scale = 1 + 0.18 * size + draw.uniform(-0.03, 0.03)
    noise = torch.Generator().manual_seed(draw.getrandbits(62))
    tracks = _tracks(sounds, begins)
    frequencies = torch.linspace(0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    voice = _through(_pulses(pitch, begins, draw), _resonances(frequencies, tracks, scale))
    breath = _through(torch.randn(SAMPLES, generator=noise), _noises(frequencies, tracks))
    # Levels are those of the loudest sample of each.
    wave = voice / voice.abs().max() + breath / 4
    wave = wave / wave.abs().max()
    background = torch.randn(SAMPLES, generator=noise)
    wave = wave + background * _SILENCE * 10 ** draw.uniform(-1, 0.3)
    return Spoken(digit, (0.7 * wave / wave.abs().max()).float(), tuple(begins))


def spectrogram(wave: torch.Tensor) -> torch.Tensor:
    """Return the mel spectrogram of a wave as a grey picture, uint8 [128, 128].

    The highest of the 128 mel bands is on top, time runs to the right; white is the
    loudest, and black 70 dB below it or less.
    """
    window = functional.pad(torch.hann_window(_WINDOW), (0, _BINS - _WINDOW))
    padded = functional.pad(wave, (_WINDOW // 2, _BINS))
    frames = padded.unfold(0, _BINS, HOP)[:SIDE]
    power = torch.fft.rfft(frames * window).abs().square()
    decibels = 10 * (_filters() @ power.T).clamp(min=1e-10).log10()
    scaled = 1 + (decibels - decibels.max()) / _RANGE
    picture: torch.Tensor = (255 * scaled.clamp(0, 1)).round().to(torch.uint8)
    return picture.flip(0)


def band(frequency: float) -> float:
    """Return the row of a spectrogram at which a frequency in Hz lies; 0 is the upper edge."""
    return SIDE * (1 - (_mel(frequency) / _mel(RATE / 2)))


def _mel(frequency: float) -> float:
    """Return a frequency in mel, as O'Shaughnessy has it (Speech communication, 1987)."""
    return 2595 * math.log10(1 + frequency / 700)


@cache
def _filters() -> torch.Tensor:
    """Return the triangles of the mel bands over the bins, the lowest first, [128, bins]."""
    edges = torch.linspace(0, _mel(RATE / 2), SIDE + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, _BINS // 2 + 1)
    low, middle, high = (edges[place : place + SIDE, None] for place in range(3))
    return torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(0)


def _tracks(sounds: Sequence[Sound], begins: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the formants and levels by frame: each sound holds for its half, and glides else."""
    times = torch.arange(SIDE + 1) * HOP / RATE
    first, last = sounds[0], sounds[-1]
    knots = [-1.0, begins[0] - 0.02]
    rows = [[*first.formants, 0.0, 0.0, first.noise, first.width]] * 2
    for sound, start, end in zip(sounds, begins, begins[1:], strict=False):
        quarter = (end - start) / 4
        knots += [start + quarter, end - quarter]
        rows += [[*sound.formants, sound.voice, sound.breath, sound.noise, sound.width]] * 2
    knots += [begins[-1] + 0.02, SECONDS + 1]
    rows += [[*last.formants, 0.0, 0.0, last.noise, last.width]] * 2
    at = torch.tensor(knots)
    values = torch.tensor(rows, dtype=torch.float32)
    right = torch.searchsorted(at, times, right=True).clamp(1, len(at) - 1)
    share = ((times - at[right - 1]) / (at[right] - at[right - 1]))[:, None]
    found = (values[right - 1] * (1 - share) + values[right] * share).T
    names = ("f1", "f2", "f3", "voice", "breath", "noise", "width")
    return dict(zip(names, found, strict=True))


def _pulses(pitch: float, begins: Sequence[float], draw: random.Random) -> torch.Tensor:
    """Return the pulses of vocal cords: the pitch falls by some tones, and trembles."""
    times = torch.arange(SAMPLES) / RATE
    falls = draw.uniform(0.1, 0.35)
    along = ((times - begins[0]) / (begins[-1] - begins[0])).clamp(0, 1)
    tremble = 1 + 0.01 * torch.sin(2 * math.pi * 6 * times + draw.uniform(0, 6))
    turns = (pitch * (1 - falls * along) * tremble / RATE).cumsum(0).floor()
    return functional.pad(turns.diff(), (1, 0))


def _resonances(
    frequencies: torch.Tensor, tracks: Mapping[str, torch.Tensor], scale: float
) -> torch.Tensor:
    """Return what the mouth makes of pulses, [bins, frames]."""
    formants = [tracks[name] for name in ("f1", "f2", "f3")]
    gain = torch.ones(())
    for formant in (*formants, torch.tensor(3500.0), torch.tensor(4500.0)):
        middle = scale * formant
        width = 50 + middle / 20
        squares = (middle.square() - frequencies.square()).square()
        gain = gain * middle.square() / (squares + (width * frequencies).square()).sqrt()
    # The cords' own spectrum falls by 12 dB an octave, and lips raise it by 6.
    return gain * tracks["voice"] / (1 + (frequencies / 300))


def _noises(frequencies: torch.Tensor, tracks: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what narrow places make of breath, [bins, frames]."""
    apart = (frequencies - tracks["noise"]) / tracks["width"]
    return tracks["breath"] * torch.exp(-apart.square() / 2)


def _through(source: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Return a source after a filter that changes by frame, of the source's length."""
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(source, _WINDOW, HOP, window=window, return_complex=True)
    return torch.istft(spectrum * gain, _WINDOW, HOP, window=window, length=SAMPLES)
