"""Pictures that are decoded at one time, and the memory that they take together."""

import threading

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.imaging import decode
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.room import SMALL_BYTES, Room
from foveate_runtime.imaging.transform import prepare

from ...encoding import encoded
from ...waiting import wait_until

LIMITS = ImageLimits()
SPEC = InputSpec(
    height=48,
    width=64,
    channels=3,
    resize=56,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def test_a_picture_waits_until_there_is_room() -> None:
    room, size = Room(4 * SMALL_BYTES), 3 * SMALL_BYTES
    entered: list[int] = []
    leave = threading.Event()

    def work(number: int) -> None:
        with room.hold(size):
            entered.append(number)
            leave.wait(60)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(entered) == 1)
    # Small ones pass, and one of another size that fits.
    with room.hold(SMALL_BYTES), room.hold(SMALL_BYTES):
        assert len(entered) == 1
    leave.set()
    for thread in threads:
        thread.join(60)
    assert sorted(entered) == [0, 1]
    # One that is larger than the room has it alone.
    with room.hold(100 * SMALL_BYTES):
        pass


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("spec", [SPEC, SPEC.model_copy(update={"height": 90, "width": 120})])
def test_a_large_picture_becomes_what_a_small_one_does(
    mode: str, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (90, 120, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray((noise[..., 0].astype(np.uint16) << 8) + noise[..., 1])
    else:
        picture = Image.fromarray(noise).convert(mode)
    file = encoded(picture)
    expected, _ = prepare(file, spec, LIMITS)
    monkeypatch.setattr(decode, "_LARGE_PIXELS", 0)
    found, _ = prepare(file, spec, LIMITS)
    np.testing.assert_array_equal(found, expected)


def test_a_file_that_is_mended_and_read_again_waits_for_no_room_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "ROOM", Room(1))
    file = encoded(Image.new("RGB", (2000, 1500), (9, 99, 199)), "JPEG", progressive=True)
    pixels, view = prepare(file[:-2], SPEC, LIMITS)
    assert view.warnings == (decode.MISSING_END,)
    assert abs(pixels.astype(int) - (9, 99, 199)).max() <= 2
