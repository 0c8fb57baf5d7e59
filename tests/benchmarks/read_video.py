"""How much memory and time does it take to read a long video in a high resolution?

1,016 frames of 1200x1200 (H.264, written here) are read into 64x64, in a process of its own.
peak_memory_mb: peak resident memory above what the process held after its imports.
frames_per_second: by the clock; process_seconds: of all threads. decoded_only: frames a second
without converting and scaling them, which no reader can exceed. frames_mb: the frames that are
returned. Baseline: all frames at full size would take full_size_mb.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

FRAMES, SIDE, SIZE = 1016, 1200, 64


def write_clip(path: Path, frames: int, side: int) -> None:
    """A smooth colour texture that moves: frames of side x side, H.264 at 30 a second."""
    import av

    y, x = np.mgrid[:side, :side] / 40
    waves = [np.sin(x + y / 3), np.sin(y - x / 2), np.sin(x / 5) * np.cos(y)]
    texture = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "threads": "2"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height = stream.width = side
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 30)
        for k in range(frames):
            moved = np.roll(texture, (3 * k, 5 * k), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process now, and at its peak, MB.

    Not by `getrusage` on Linux: its peak is inherited from the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return peak, peak
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def read_once(path: str, size: int) -> dict:
    """Read one video in this process, which should be fresh: its memory and time."""
    import av
    from PIL import Image  # noqa: F401  (what reading imports is not counted)

    from vldm_mini.datasets import video

    (before, _), start, process = memory_mb(), time.perf_counter(), time.process_time()
    frames, _ = video.read_video(path, size=size)
    seconds, process = time.perf_counter() - start, time.process_time() - process
    memory = memory_mb()[1] - before
    start = time.perf_counter()
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        decoded = sum(1 for _ in container.decode(video=0))
    alone = time.perf_counter() - start
    return {
        "peak_memory_mb": round(memory, 1),
        "frames_per_second": round(len(frames) / seconds, 1),
        "process_seconds": round(process, 2),
        "decoded_only": round(decoded / alone, 1),
        "frames_mb": round(frames.numel() / 2**20, 1),
    }


def run(frames: int = FRAMES, side: int = SIDE, size: int = SIZE) -> dict:
    """All figures; the arguments are for tests."""
    code = ("import sys, json, torch; from tests.benchmarks.read_video import read_once; "
            "torch.set_num_threads(1); "
            "print(json.dumps(read_once(sys.argv[1], int(sys.argv[2]))))")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, frames, side)
        done = subprocess.run([sys.executable, "-c", code, str(path), str(size)], check=True,
                              capture_output=True, text=True)
    full = frames * side * side * 3 / 2**20
    return {**json.loads(done.stdout.splitlines()[-1]), "full_size_mb": round(full, 1),
            "n": frames, "size": [side, size]}
