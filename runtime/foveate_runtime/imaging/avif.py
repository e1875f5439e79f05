"""AVIF files, read for what decoding them will take before libavif begins.

libavif decodes whatever size the coded frames have, and then scales it to the size that the file
claims; it takes items, extents and hidden frames one by one, and Pillow lets no other thread run
meanwhile. The boxes are those of ISO/IEC 14496-12 and 23008-12, the frames those of the AV1
bitstream specification.
"""

import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from foveate_runtime.imaging.parts import TooManyPartsError

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    SUPPORTED = False
else:
    SUPPORTED = AvifImagePlugin.SUPPORTED
    # A picture takes one of the threads that decode; libavif would take as many as there are cores.
    AvifImagePlugin.DEFAULT_MAX_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS or 1

MAX_AVIF_PIXELS = 1 << 24
"""Pixels of an AVIF: Pillow takes 11 to 13 bytes for each, and lets no other thread run."""

MAX_AVIF_PARTS = 1 << 14
"""Boxes, items, extents and units of an AVIF together: one in tiles has about ten for each."""

MAX_SHARED = 4
"""How often the items of an AVIF may hold each of its bytes, on average."""

_BRANDS = frozenset((b"avif", b"avis", b"mif1", b"msf1"))
_SEQUENCE, _STILL = b"avis", b"avif"
_HEAD = struct.Struct(">I4s")
_LARGE = struct.Struct(">Q")
_EXTENT = struct.Struct(">II")
_FULL = 4
"""Bytes of version and flags before what a full box holds."""

_METADATA = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))(?:Exif|mime)", re.DOTALL)
"""An item's entry up to its kind."""

_SEQUENCE_HEADER = 1
_FRAMES = frozenset((3, 6, 7))
"""Units that begin a frame: its header, the whole of it, and the header once more."""
_LONGEST_HEADER = 512
_KEY, _SWITCH = 0, 3
_EITHER = 2
"""What a sequence leaves to its frames (AV1, `SELECT_SCREEN_CONTENT_TOOLS` and the like)."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an AVIF file holds.

    `sizes` are the width and the height of each of its pictures, as the file claims; `coded`
    counts the pixels of all frames that it may take to decode them, and what they are scaled
    to. `moves` tells that there is a sequence of frames beside, or in place of, the pictures.
    """

    sizes: tuple[tuple[int, int], ...]
    coded: int
    moves: bool


@dataclass
class _Item:
    is_coded: bool = False
    extents: list[tuple[bool, int, int]] = field(default_factory=list)
    """Whether it lies in the box of data, where, and how long it is."""
    largest: int = 0
    """The pixels of the size that it claims."""


def is_avif(data: bytes) -> bool:
    """Tell whether Pillow would take a file for an AVIF."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


def look(data: bytes) -> Contents:
    """Return what an AVIF file holds; no pixel is decoded.

    Raises TooManyPartsError, and ValueError where it is malformed.
    """
    try:
        return _Reader(data).contents()
    except (IndexError, struct.error) as error:
        raise ValueError("the boxes of the AVIF are malformed") from error


def still(data: bytes) -> bytes:
    """Return an AVIF file whose first picture is decoded, upright as its own properties say.

    Of a sequence that is the still picture beside it. EXIF and XMP are hidden: a viewer turns an
    AVIF by `irot` and `imir` alone, and Pillow refuses it where they are malformed.
    """
    hidden = bytearray(_METADATA.sub(rb"\1skip", data))
    for name, start, end in _boxes(memoryview(data), 0, len(data)):
        if name == b"ftyp":
            brands = (hidden[at : min(at + 4, end)] for at in range(start, end, 4))
            hidden[start:end] = b"".join(_STILL if x == _SEQUENCE else x for x in brands)
        elif name == b"moov":
            place = hidden.rfind(name, 0, start)
            hidden[place : place + len(name)] = b"free"
    return bytes(hidden)


class _Reader:
    """Reads one file, and counts the parts that it comes by."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self._parts = 0

    def contents(self) -> Contents:
        sizes: list[tuple[int, int]] = []
        coded, moves = 0, False
        for name, start, end in self._boxes(0, len(self._view)):
            moves |= name == b"moov"
            if name == b"meta":
                found, pixels = self._pictures(start + _FULL, end)
                sizes += found
                coded += pixels
        return Contents(sizes=tuple(sizes), coded=coded, moves=moves)

    def _boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        for box in _boxes(self._view, start, end):
            self._count()
            yield box

    def _count(self, parts: int = 1) -> None:
        self._parts += parts
        if self._parts > MAX_AVIF_PARTS:
            raise TooManyPartsError("parts of an AVIF", MAX_AVIF_PARTS)

    def _pictures(self, start: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """Return the sizes that are claimed in a box of metadata, and the pixels to decode."""
        items: defaultdict[int, _Item] = defaultdict(_Item)
        sizes: list[tuple[int, int]] = []
        stored = self._view[:0]
        for name, body, limit in self._boxes(start, end):
            if name == b"iloc":
                self._read_places(body, limit, items)
            elif name == b"iinf":
                self._read_kinds(body, limit, items)
            elif name == b"iref":
                self._count((limit - body) // 2)
            elif name == b"iprp":
                sizes += self._read_properties(body, limit, items)
            elif name == b"idat":
                stored = self._view[body:limit]
        contents = [
            [
                (stored if inside else self._view)[place : place + length]
                for inside, place, length in item.extents
            ]
            for item in items.values()
        ]
        if sum(map(len, chain(*contents))) > MAX_SHARED * len(self._view):
            raise TooManyPartsError("bytes of items", MAX_SHARED * len(self._view))
        coded = 0
        for item, parts in zip(items.values(), contents, strict=True):
            if item.is_coded:
                content = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
                coded += max(item.largest, sum(self._frames(content)))
        return sizes, coded

    def _read_places(self, start: int, end: int, items: dict[int, _Item]) -> None:
        """Read where each item lies (23008-12, the box `iloc`)."""
        fields = _Fields(self._view[start:end])
        version = fields.take(1)
        fields.take(3)
        offset_size, length_size = divmod(fields.take(1), 16)
        base_size, index_size = divmod(fields.take(1), 16)
        wide = 4 if version == 2 else 2
        for _ in range(fields.take(wide)):
            item = items[fields.take(wide)]
            inside = version > 0 and fields.take(2) % 16 == 1
            fields.take(2)
            base, extents = fields.take(base_size), fields.take(2)
            self._count(1 + extents)
            for _ in range(extents):
                fields.take(index_size if version else 0)
                offset = base + fields.take(offset_size)
                item.extents.append((inside, offset, fields.take(length_size)))

    def _read_kinds(self, start: int, end: int, items: dict[int, _Item]) -> None:
        """Read which items are coded (the box `iinf`)."""
        entries = start + _FULL + (4 if self._view[start] else 2)
        for name, body, limit in self._boxes(entries, end):
            if name == b"infe":
                fields = _Fields(self._view[body:limit])
                version = fields.take(1)
                fields.take(3)
                item = items[fields.take(4 if version > 2 else 2)]
                fields.take(2)
                item.is_coded |= fields.raw(4) == b"av01"

    def _read_properties(
        self, start: int, end: int, items: dict[int, _Item]
    ) -> list[tuple[int, int]]:
        """Read the sizes, and return them (the boxes `ipco`, `ispe` and `ipma`)."""
        sizes: dict[int, tuple[int, int]] = {}
        for name, body, limit in self._boxes(start, end):
            if name == b"ipco":
                for number, (kind, place, _) in enumerate(self._boxes(body, limit), 1):
                    if kind == b"ispe":
                        width, height = _EXTENT.unpack_from(self._view, place + _FULL)
                        sizes[number] = width, height
        for name, body, limit in _boxes(self._view, start, end):
            if name == b"ipma":
                self._read_associations(body, limit, items, sizes)
        return list(sizes.values())

    def _read_associations(
        self, start: int, end: int, items: dict[int, _Item], sizes: dict[int, tuple[int, int]]
    ) -> None:
        fields = _Fields(self._view[start:end])
        version = fields.take(1)
        wide = fields.take(3) & 1
        # The first bit says whether a reader must know the property.
        mask = 0x7FFF if wide else 0x7F
        for _ in range(fields.take(4)):
            item = items[fields.take(4 if version else 2)]
            count = fields.take(1)
            self._count(1 + count)
            for _ in range(count):
                width, height = sizes.get(fields.take(1 + wide) & mask, (0, 0))
                item.largest = max(item.largest, width * height)

    def _frames(self, content: memoryview) -> Iterator[int]:
        """Yield the pixels of each frame, shown or not (AV1, section 5.3)."""
        sequence: _Sequence | None = None
        position = 0
        while position < len(content):
            self._count()
            head = content[position]
            kind = head >> 3 & 15
            position += 2 if head & 4 else 1
            end = len(content)
            if head & 2:
                length, position = _leb128(content, position)
                end = position + length
            body = bytes(content[position : min(end, position + _LONGEST_HEADER)])
            if kind == _SEQUENCE_HEADER:
                sequence = _sequence(_Bits(body))
            elif kind in _FRAMES and sequence is not None:
                yield sequence.pixels(_Bits(body))
            position = end


class _Fields:
    """Reads whole numbers of some bytes, one after the other. Raises IndexError at the end."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def raw(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._view):
            raise IndexError
        return bytes(self._view[start : self._position])

    def take(self, size: int) -> int:
        return int.from_bytes(self.raw(size), "big")


class _Bits:
    """Reads whole numbers of some bits, one after the other. Raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & ((1 << count) - 1)

    def variable(self) -> int:
        """Read a number of any length (AV1, section 4.10.3)."""
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros) if zeros < 32 else (1 << 32) - 1


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """What a sequence header says of the frames after it (AV1, section 5.5)."""

    is_reduced: bool
    width: int
    height: int
    most: int
    """Pixels of the largest frame that a header has the bits for."""
    time_bits: int
    id_bits: int
    screen: int
    whole_motion: int

    def pixels(self, bits: _Bits) -> int:
        """Return those of a frame by the beginning of its header (AV1, section 5.9.2)."""
        if self.is_reduced:
            return self.width * self.height
        if bits.take(1):  # shows a frame that was decoded before
            return 0
        kind, shown = bits.take(2), bits.take(1)
        bits.take(self.time_bits if shown else 1)
        if kind != _SWITCH and not (kind == _KEY and shown):
            bits.take(1)  # error_resilient_mode
        bits.take(1)  # disable_cdf_update
        screen = bits.take(1) if self.screen == _EITHER else self.screen
        if screen and self.whole_motion == _EITHER:
            bits.take(1)
        bits.take(self.id_bits)
        has_own_size = kind == _SWITCH or bits.take(1)
        return self.most if has_own_size else self.width * self.height


def _sequence(bits: _Bits) -> _Sequence:
    bits.take(4)  # profile, still_picture
    is_reduced = bool(bits.take(1))
    time_bits = id_bits = 0
    if is_reduced:
        bits.take(5)
    else:
        time_bits = _operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    if not is_reduced and bits.take(1):
        id_bits = bits.take(4) + 2
        id_bits += bits.take(3) + 1
    bits.take(3)  # superblocks, intra filters
    screen = whole_motion = _EITHER
    if not is_reduced:
        bits.take(4)  # compound modes, warped motion, dual filters
        if bits.take(1):  # enable_order_hint
            bits.take(2)
        screen = _EITHER if bits.take(1) else bits.take(1)
        if screen:
            whole_motion = _EITHER if bits.take(1) else bits.take(1)
    return _Sequence(
        is_reduced=is_reduced,
        width=width,
        height=height,
        most=1 << width_bits + height_bits,
        time_bits=time_bits,
        id_bits=id_bits,
        screen=screen,
        whole_motion=whole_motion,
    )


def _operating_points(bits: _Bits) -> int:
    """Read past the operating points; return the bits of a frame's time in its header."""
    decoder_model = equal = delay_bits = time_bits = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        equal = bits.take(1)
        if equal:
            bits.variable()
        decoder_model = bits.take(1)
        if decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(37)
            time_bits = bits.take(5) + 1
    delays = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # levels above have tiers
            bits.take(1)
        if decoder_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if delays and bits.take(1):
            bits.take(4)
    return 0 if equal else time_bits


def _boxes(view: memoryview, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box and where its content begins and ends. Raises ValueError.

    One that goes on beyond the end of the file ends there.
    """
    is_outer = end == len(view)
    while start + _HEAD.size <= end:
        size, name = _HEAD.unpack_from(view, start)
        body = start + _HEAD.size
        if size == 1:
            (size,) = _LARGE.unpack_from(view, body)
            body += _LARGE.size
        elif size == 0:
            size = end - start
        if start + size < body or (start + size > end and not is_outer):
            raise ValueError("a box of the AVIF is malformed")
        yield bytes(name), body, min(start + size, end)
        start += size


def _leb128(view: memoryview, position: int) -> tuple[int, int]:
    """Return a number of up to 8 bytes and where it ends (AV1, section 4.10.5)."""
    value = 0
    for number in range(8):
        byte = view[position + number]
        value |= (byte & 0x7F) << 7 * number
        if not byte & 0x80:
            return value, position + number + 1
    raise ValueError("a length in the AVIF is malformed")
