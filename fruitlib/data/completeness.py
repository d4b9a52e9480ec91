"""Whether a file holds the whole picture that its header promises, where decoders fill in what is missing in silence.

libjpeg paints the rest grey when a JPEG file ends too early, if only an end marker stands there; libpng's readers leave
rows black when the compressed data end. Pillow reports neither. Other formats report it themselves.
"""

import re
import struct
import zlib
from dataclasses import dataclass, field

# A marker inside coded JPEG data: FF, then neither 00 (FF as data), nor a restart, nor a fill byte (ITU-T T.81, B.1.1)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_END, _SCAN, _ARITHMETIC = 0xD9, 0xDA, (0xC9, 0xCA)
_FRAMES = (0xC0, 0xC1, 0xC2, *_ARITHMETIC)
_END_OF_IMAGE = b"\xff\xd9"
# What a decoder may read ahead of the last block: eight bytes of ones, which no Huffman code consists of.
_AHEAD = b"\xff\x00" * 8
# Bytes that look like coded data, without a marker among them: of a linear congruential generator
_STUFFING = bytes((at * 1103515245 + 12345 >> 16) % 255 for at in range(512))


@dataclass
class JpegScans:
    """The scans of a JPEG file: where the last one's data end, and how finely each coefficient has been coded.

    `end` is -1 where no end marker follows. `precision` maps a component to 64 numbers, for each coefficient the bits
    that are still missing.
    """

    end: int = -1
    count: int = 0
    components: int = 0
    arithmetic: bool = False
    precision: dict[int, list[int]] = field(default_factory=dict)

    @property
    def all_there(self) -> bool:
        """Whether some scan has brought every coefficient of every component to its full precision."""
        return len(self.precision) >= self.components and not any(map(any, self.precision.values()))


def jpeg_scans(content: bytes) -> JpegScans:
    """Walk from marker to marker up to the first picture's end; takes about a hundredth of the time of decoding.

    An MPO file holds more pictures after that end, others hold previews or text there. Any marker ends a scan's data,
    also one that is a damaged byte.
    """
    scans, at, kind, data_end = JpegScans(), 2, 0, -1
    while found := _MARKER.search(content, at):
        data_end = found.start() if kind == _SCAN else data_end
        kind, at = found[1][0], found.end()
        if kind == _END:
            break
        length = int.from_bytes(content[at : at + 2])
        segment = content[at + 2 : at + length]
        if kind in _FRAMES and len(segment) > 5:
            scans.components, scans.arithmetic = segment[5], kind in _ARITHMETIC
        if kind == _SCAN:
            scans.count += 1
            _add_scan(scans, segment)
        at += length
    if data_end > 0 and content.find(_END_OF_IMAGE, data_end) > 0:
        scans.end = data_end
    return scans


def _add_scan(scans: JpegScans, header: bytes) -> None:
    """Note what a scan's header (T.81, B.2.3) says it refines: of which components, which coefficients, how far."""
    if len(header) < 4 or len(header) < 2 * header[0] + 4:
        return
    first, last, missing = header[-3], min(header[-2], 63), header[-1] & 15
    for component in header[1 : 1 + 2 * header[0] : 2]:
        kept = scans.precision.setdefault(component, [15] * 64)
        kept[first : last + 1] = [missing] * (last + 1 - first)


def without_end(content: bytes, scans: JpegScans) -> bytes:
    """A JPEG file of one scan up to the end of its data.

    Pillow decodes it completely if all blocks are there, to within the last one or two, and raises "truncated" if not:
    without a marker to stop at, libjpeg waits for more data instead of inventing some.
    """
    return content[: scans.end] + _AHEAD


def with_stuffing(content: bytes, scans: JpegScans) -> bytes:
    """A JPEG file with bytes that mean nothing after the data of its last scan.

    For a file of several scans (a progressive one), which libjpeg reads up to its end before it shows anything.
    A decoder skips the bytes if the last scan is complete, so the picture stays the same; else they become part of it.
    """
    return content[: scans.end] + _STUFFING + _END_OF_IMAGE


def png_is_short(content: bytes) -> bool:
    """Whether a PNG file's compressed data end before the last row that its header promises."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    sizes = [(width, height)]
    if interlaced:  # Adam7: first column and row, step across and down of each pass (PNG specification, 8.2)
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        sizes = [(-((x - width) // across), -((y - height) // down)) for x, y, across, down in passes]
    expected = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0)
    return _inflated(content, expected) < expected


def _inflated(content: bytes, enough: int) -> int:
    """How many bytes a PNG file's image data inflate to, counted up to `enough`; a megabyte at a time is in memory."""
    inflate, count, at = zlib.decompressobj(), 0, 8
    while at + 8 <= len(content) and count < enough and not inflate.eof:
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        waiting = content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while waiting and count < enough:
            count += len(inflate.decompress(waiting, 2**20))
            waiting = inflate.unconsumed_tail
        at += length + 12
    return count
