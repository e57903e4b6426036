"""What several fuzz tests need: random label maps, image files written by hand, and what counts as a clear error."""

import contextlib
import io
import struct
import zlib

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st


CLEAR = (ValueError, TypeError, OSError, StrictDataclassError)  # what the package documents; anything else is a crash


def outcome(function, *arguments, **options):
    """(result, None), or (None, error) for an error of a documented kind with a message; other errors pass through."""
    try:
        return function(*arguments, **options), None
    except CLEAR as error:
        assert str(error).strip(), f"{type(error).__name__} without a message"
        return None, error


def run_cli(arguments):
    """Exit code and what went to standard output and error of `vss-hf ARGUMENTS`, run in this process."""
    from vss_hf.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


def error_line(text):
    """The one line of the command line's error; fails where it is missing, several lines long or unreadable."""
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert 10 < len(lines[0]) < 6000 and "Traceback" not in text, text
    return lines[0]


# --- label maps in memory


DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
STRANGE_DTYPES = ("float16", "float32", "float64", "complex64", "object", "U3", "datetime64[s]", "V2")
SHAPES = ((), (0,), (0, 5), (5, 0), (1,), (1, 1), (3, 4), (4, 3), (1, 200), (200, 1), (2, 3, 4), (3, 4, 3), (1, 3, 4))
TELLING = (-(2**63), -300, -256, -129, -128, -100, -2, -1, 0, 1, 2, 3, 4, 127, 128, 156, 200, 254, 255, 256, 257, 300,
511, 65535, 65536,
           2**31, 2**63 - 1, 2**63, 2**64 - 100, 2**64 - 1)  # fmt: skip


@st.composite
def integer_maps(draw, shapes=SHAPES, dtypes=DTYPES, mostly=(0, 1, 2, 255)):
    """An integer or bool array: mostly good labels, at times a telling wrong value; any memory layout."""
    shape, name = draw(st.sampled_from(shapes)), draw(st.sampled_from(dtypes))
    dtype = np.dtype(name)
    low, high = (0, 1) if name == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    good = [value for value in mostly if low <= value <= high] or [0]
    telling = [value for value in TELLING if low <= value <= high]
    seed = draw(st.integers(0, 2**16))
    array = np.random.default_rng(seed).choice(np.array(good, dtype=dtype), shape)
    array = np.asarray(array, dtype=dtype)
    if array.size and draw(st.booleans()):
        array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(telling))
    return laid_out(array, draw(st.sampled_from(LAYOUTS)))


LAYOUTS = ("plain", "read-only", "reversed", "fortran", "strided", "other byte order")


def laid_out(array, layout):
    """The same values with another memory layout."""
    if layout == "read-only":
        array = array.copy()
        array.setflags(write=False)
    elif layout == "reversed" and array.ndim:
        array = np.ascontiguousarray(array[::-1])[::-1]
    elif layout == "fortran" and array.ndim:
        array = np.asfortranarray(array)
    elif layout == "strided" and array.ndim:
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif layout == "other byte order":
        array = array.astype(array.dtype.newbyteorder("S"))
    return array


@st.composite
def strange_maps(draw, shapes=SHAPES):
    """An array that can be no label map, even where its values look whole."""
    shape, name = draw(st.sampled_from(shapes)), draw(st.sampled_from(STRANGE_DTYPES))
    array = np.ones(shape, dtype="int64")
    if name == "V2":
        return np.zeros(shape, dtype="V2")
    array = array.astype(name)
    if name.startswith("float") and array.size:
        array.flat[0] = draw(st.sampled_from([1.0, 1.5, -1.0, 255.0, 256.0, float("nan"), float("inf")]))
    return array


def whole_numbers(array):
    """The values as a list of Python integers."""
    return [int(value) for value in array.ravel().tolist()]


# --- image files, written byte by byte so that the reader is not tested against its own writer


GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}


def png(samples, kind, depth, *, palette=None, transparency=None, filter_type=0):
    """A PNG of samples (height, width, channels), each below 2 ** depth; row filter 0 (none), 1 (left) or 2 (up)."""
    height, width, channels = samples.shape
    bits = samples.reshape(height, width * channels)
    if depth == 16:
        rows = bits.astype(">u2").view(np.uint8).reshape(height, -1)
    elif depth == 8:
        rows = bits.astype(np.uint8)
    else:
        spread = np.unpackbits(bits.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(spread.reshape(height, -1), axis=-1)
    step = max(1, channels * depth // 8)
    before = {0: np.zeros_like(rows), 1: np.pad(rows, ((0, 0), (step, 0)))[:, : rows.shape[1]],
              2: np.pad(rows, ((1, 0), (0, 0)))[:height]}[filter_type]  # fmt: skip
    filtered = (rows.astype(np.int16) - before).astype(np.uint8)
    data = b"".join(bytes([filter_type]) + row.tobytes() for row in filtered)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", np.asarray(palette, np.uint8).tobytes()))
    if transparency is not None:
        chunks.append((b"tRNS", transparency))
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@st.composite
def png_pictures(draw, height=5, width=7):
    """(bytes, kind, depth, samples, palette) of a random small PNG."""
    kind = draw(st.sampled_from([GREY, GREY, PALETTE, PALETTE, RGB, GREY_ALPHA, RGB_ALPHA]))
    depth = draw(st.sampled_from(DEPTHS[kind]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    samples = rng.integers(0, 2**depth, (height, width, CHANNELS[kind]))
    palette = rng.integers(0, 256, (2**depth, 3)) if kind == PALETTE else None
    transparency = None
    if draw(st.booleans()):
        if kind == PALETTE:
            transparency = bytes(rng.integers(0, 256, draw(st.integers(1, 2**depth))).tolist())
        elif kind in (GREY, RGB):
            transparency = struct.pack(">" + "H" * CHANNELS[kind], *samples[0, 0].tolist())
    filter_type = draw(st.sampled_from([0, 1, 2]))
    data = png(samples, kind, depth, palette=palette, transparency=transparency, filter_type=filter_type)
    return data, kind, depth, samples, palette
