"""Decoding one video file with PyAV, with an account of the times of its frames and of damage.

Frames are brought to their size one by one while they are decoded, so that a long video in a high
resolution needs only the memory of its small frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .fetching import need
from .frames import Size, at_rate, fit, stack, upright

VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif", ".m4v", ".mpg", ".mpeg")
DEFAULT_FPS = 25.0              # where a file does not say: pictures in a folder, a single frame


@dataclass(frozen=True)
class Reading:
    """What was read from one file.

    frames: uint8 (t h w 3). fps: of `frames`. source_fps: of the file, before any choice of frames.
    damage: what is wrong with the file, in words; empty if it is whole. uneven: whether its frames
    are far from evenly spaced in time.
    """

    frames: Tensor
    fps: float
    source_fps: float
    damage: str = ""
    uneven: bool = False


def decode(
    path: Path, size: Size, fps: float | None, stride: int, max_frames: int | None = None
) -> Reading:
    """One video file -> Reading. See `reading.read_video` for the arguments and errors."""
    av = need("av", "reading videos")
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}: check the path")
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(f"{path} is no video by its name: videos end in {', '.join(VIDEOS)}")
    try:
        with av.open(str(path)) as container:
            decoder = Decoder(container)
            frames = list(islice(_convert(decoder, path, size, fps, stride), max_frames))
            damage, source_fps = decoder.damage(), decoder.fps()
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: you lack the permission; change the file's "
                         "permissions") from error
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error.strerror}): it is damaged or "
                         "no video; replace or delete it") from error
    if not frames:
        raise ValueError(f"{path} holds no pictures, it is damaged or sound only: replace or "
                         "delete it")
    uneven = decoder.uneven()
    return Reading(stack(frames), (fps or source_fps) / stride, source_fps, damage, uneven)


def _convert(
    decoder: Decoder, path: Path, size: Size, fps: float | None, stride: int
) -> Iterator[Tensor]:
    """The frames to keep, each converted as soon as it is decoded: uint8 (h w 3)."""
    if fps is None:
        chosen = (frame for _, frame in decoder.frames())
    else:
        chosen = at_rate(decoder.frames(), fps, decoder.tick)
    matrix = shape = None
    for frame in islice(chosen, 0, None, stride):
        if shape is None:
            # of the first frame only: PyAV keeps every frame whose side data were read until the
            # next garbage collection, 500 MB of a large video
            matrix = _display_matrix(frame)
        # MINI: pixels are taken as square, whatever aspect ratio the file states for them
        converted = fit(upright(frame.to_ndarray(format="rgb24"), matrix), size)
        if shape not in (None, converted.shape):
            raise ValueError(f"the frames of {path} differ in size, {shape[0]}x{shape[1]} and then "
                             f"{converted.shape[0]}x{converted.shape[1]}: read them with a size, "
                             "or convert the file to one size")
        shape = converted.shape
        yield converted


def _display_matrix(frame: Any) -> list[int] | None:
    """The nine numbers by which the frame is to be turned or mirrored, if the file has them."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(data, np.int32).tolist()
    return None


class Decoder:
    """The pictures of one open container. Read `frames` before anything else.

    tick: the resolution of the file's time stamps, in seconds. times: of the frames so far.
    """

    def __init__(self, container: Any) -> None:
        from av.stream import Disposition

        self.container = container
        # a song's cover is a stream of one picture, and no video
        streams = [stream for stream in container.streams.video
                   if Disposition.attached_pic not in stream.disposition]
        self.stream = streams[0] if streams else None
        self.tick = 0.0
        self.times: list[float] = []
        self._lost = 0                   # packets that could not be decoded
        self._suspect = 0                # frames that are corrupt, or follow one that is
        self._since_damage = False       # damage, and no key frame since
        self._breaks_off = False         # the last packet, or the last frame, is not whole
        self._reached = 0.0              # end of the last packet, seconds after the start
        self._complete = False           # the file was read to its end
        self._stated_rates = [DEFAULT_FPS]
        if self.stream is not None:
            self.stream.thread_type = "AUTO"
            self.tick = float(self.stream.time_base)
            # what the file states, as far as it is plausible: the webm of a browser states 1000
            rates = (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate)
            plausible = [float(rate) for rate in rates if rate and 0 < rate <= 240]
            self._stated_rates = plausible or self._stated_rates

    def frames(self) -> Iterator[tuple[float, Any]]:
        """(time in seconds, av.VideoFrame) in the order of display, as far as can be decoded."""
        if self.stream is None:
            return
        for packet in self._packets():
            for frame in self._decode(packet):
                self._note(frame)
                yield self.times[-1], frame
        self._complete = True

    def _packets(self) -> Iterator[Any]:
        """The packets that hold pictures, then None, which drains the decoder."""
        from av import FFmpegError

        start = (self.container.start_time or 0) / 1e6
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except FFmpegError:
                self._breaks_off = True
                break
            if packet.size == 0:                         # marks the end of a stream
                continue
            self._breaks_off = packet.is_corrupt
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                end = float((stamp + (packet.duration or 0)) * packet.time_base)
                self._reached = max(self._reached, end - start)
            if packet.stream.index == self.stream.index:
                yield packet
        yield None

    def _decode(self, packet: Any) -> list:
        from av import FFmpegError

        try:
            return self.stream.codec_context.decode(packet)
        except FFmpegError:
            self._lost += 1
            self._since_damage = True
            return []

    def _note(self, frame: Any) -> None:
        """Keep the time of a frame, and whether its pixels can be trusted."""
        time = None if frame.pts is None else frame.pts * self.tick
        if self.times and (time is None or time <= self.times[-1]):
            time = self.times[-1] + 1 / self._stated_rates[0]
        self.times.append(time or 0.0)
        if frame.key_frame:
            self._since_damage = False
        if frame.is_corrupt:
            self._since_damage = True
        self._suspect += self._since_damage
        self._last_is_corrupt = frame.is_corrupt

    def fps(self) -> float:
        """Frames per second: from the times of the first and the last frame.

        A rate that the file states counts where it agrees with them to the resolution of the time
        stamps, and where there is one frame only.
        """
        intervals = len(self.times) - 1
        if intervals < 1:
            return self._stated_rates[0]
        span = self.times[-1] - self.times[0]
        for rate in self._stated_rates:
            if abs(intervals / rate - span) <= self.tick + 1e-6:
                return rate
        return intervals / span

    def uneven(self) -> bool:
        """Whether some frame is more than one and a half intervals away from even spacing.

        A dropped frame, or one whose time stamp is off by an interval (as in mpg), is not uneven.
        """
        even = np.linspace(self.times[0], self.times[-1], len(self.times))
        return bool(np.abs(self.times - even).max() > 1.5 / self.fps())

    def damage(self) -> str:
        """What is wrong with the file, as far as it was read, in words; empty if nothing is."""
        if not self.times:
            return ""
        seconds = len(self.times) / self.fps()
        expected = max((self.container.duration or 0) / 1e6, seconds)
        # sound may be longer than the pictures: what counts is where the last packet of all ends
        ends_early = max(self._reached, seconds) < 0.9 * expected
        found = []
        if self._complete and (ends_early or self._breaks_off or self._last_is_corrupt):
            found.append("it may be cut short")
        if self._lost or self._suspect:
            found.append(f"corrupt data: {self._lost} packets cannot be decoded, {self._suspect} "
                         "frames are corrupt or follow one that is")
        if found:
            frames = self.stream.frames or round(expected * self.fps())
            found.append(f"read {len(self.times)} of {max(frames, len(self.times))} frames")
        return "; ".join(found)
