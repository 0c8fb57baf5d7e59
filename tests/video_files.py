"""Video files and folders that tests write, from frames whose values are known."""

import struct
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

CODECS = {".mp4": "mpeg4", ".avi": "ffv1", ".mkv": "ffv1", ".mov": "mpeg4", ".webm": "libvpx",
          ".gif": "gif", ".mpg": "mpeg1video"}
PIXEL_FORMATS = {"ffv1": "bgr0", "gif": "rgb8", "png": "rgb24"}


def ramp(t=6, h=24, w=32):
    """Frame k is grey of value 30 k, with a white left half: uint8 (t h w 3)."""
    frames = np.zeros((t, h, w, 3), np.uint8)
    frames += (30 * np.arange(t, dtype=np.uint8))[:, None, None, None]
    frames[:, :, : w // 2] = 255
    return frames


def grey(values, h=24, w=32):
    """Frames of one grey value each: uint8 (t h w 3)."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), h, w, 3))


def noise(t, h=48, w=48, seed=0):
    """Frames of independent noise, which no codec makes small: uint8 (t h w 3)."""
    return np.random.default_rng(seed).integers(0, 255, (t, h, w, 3), dtype=np.uint8)


def write(path, frames, fps=10, codec=None, times=None, options=None, container_options=None):
    """Write frames (t h w 3) as a video. times: of each frame in seconds, instead of fps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or CODECS[path.suffix.lower()]
    rate = fps if times is None else 1000
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        for k, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[k]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_frames(folder, frames, suffix=".png"):
    """Write frames as the pictures of a folder."""
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{k}{suffix}")
    return folder


def write_sound(container, stream, seconds):
    """Silence of so many seconds, for a stream of pcm_s16le or aac at 8000 Hz."""
    layout = "s16" if stream.codec_context.name.startswith("pcm") else "fltp"
    dtype = np.int16 if layout == "s16" else np.float32
    for k in range(int(seconds * 8000) // 800):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype), format=layout, layout="mono")
        sound.sample_rate, sound.pts = 8000, 800 * k
        container.mux(stream.encode(sound))
    container.mux(stream.encode(None))


def set_display_matrix(path, a, b, c, d):
    """Write a turn or mirroring into an mp4 or mov, as telephones do, into the track's header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def cut_to(path, fraction):
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def overwrite_middle(path, n):
    """Overwrite n bytes in the middle of a file with noise."""
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + n] = np.random.default_rng(0).bytes(n)
    path.write_bytes(data)
    return path
