"""Reading videos: the right frames, at the right times, the right way up; damage is reported."""

import gc
import itertools
import warnings
import weakref

import numpy as np
import pytest
import torch

from vldm_mini.datasets import video
from vldm_mini.datasets.video import decoding, frames, loading

from .video_files import (
    CODECS,
    Image,
    av,
    cut_to,
    grey,
    noise,
    overwrite_middle,
    ramp,
    set_display_matrix,
    write,
    write_frames,
    write_sound,
)


@pytest.fixture
def no_warnings():
    """Any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def values(clip_frames):
    """The grey values of frames that were written by `grey`: list of int."""
    return clip_frames.float().mean((1, 2, 3)).round().int().tolist()


# ------------------------------------------------------------------------------- frames as written


@pytest.mark.parametrize("suffix", [*CODECS, ".MP4"])
def test_every_container_gives_the_frames_that_went_in(tmp_path, suffix, no_warnings):
    rate = 25 if suffix == ".mpg" else 10                            # MPEG-1 has no 10 a second
    path = write((tmp_path / "clip.avi").with_suffix(suffix), ramp(), fps=rate)
    read, fps = video.read_video(path)
    assert read.shape == (6, 24, 32, 3) and read.dtype == torch.uint8 and fps == rate
    error = (read.int() - torch.from_numpy(ramp()).int()).abs()
    assert error.max() == 0 if suffix in (".avi", ".mkv") else error.float().mean() < 12


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path, suffix):
    written = np.concatenate([ramp(), ramp()])
    read, fps = video.read_frames(write_frames(tmp_path / "clip", written, suffix))
    assert read.shape == written.shape and fps == 25
    error = (read.int() - torch.from_numpy(written).int()).abs().float().mean()
    assert error < (0.01 if suffix == ".png" else 3)


def test_odd_digits_in_the_names_of_pictures_are_text(tmp_path):
    folder = write_frames(tmp_path / "clip", ramp(2))
    (folder / "frame0.png").rename(folder / "frame0².png")           # "²".isdigit() is true
    assert len(video.read_frames(folder)[0]) == 2


def test_stride_keeps_every_other_frame_and_halves_the_frame_rate(tmp_path):
    read, fps = video.read_video(write(tmp_path / "clip.mkv", ramp()), stride=2)
    assert torch.equal(read, torch.from_numpy(ramp()[::2])) and fps == 5


def test_frames_of_odd_height_and_width_are_read(tmp_path):
    [clip] = video.load(write(tmp_path / "odd.mkv", ramp(3, 17, 23)), size=None)
    assert clip.frames.shape == (3, 17, 23, 3)


def test_a_strip_holds_its_frames_from_left_to_right(tmp_path):
    pictures = [np.full((4, 4, 4), 10 * k, np.uint8) for k in range(5)]
    Image.fromarray(np.concatenate(pictures, axis=1)).save(tmp_path / "strip.png")
    read = video.read_strip(tmp_path / "strip.png")
    assert read.shape == (5, 4, 4, 3) and read[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    Image.fromarray(np.zeros((4, 10, 3), np.uint8)).save(tmp_path / "uneven.png")
    with pytest.raises(ValueError, match="4x10: a strip of square frames has a width that is"):
        video.read_strip(tmp_path / "uneven.png")


# -------------------------------------------------------------------------------------------- size


def test_frames_are_scaled_to_cover_the_size_and_cropped_at_the_centre(tmp_path):
    wide = np.zeros((1, 32, 96, 3), np.uint8)
    wide[:, :, 32:64] = 200                                          # the middle square
    [clip] = video.load(write(tmp_path / "wide.mkv", wide), size=16)
    assert clip.frames.shape == (1, 16, 16, 3)
    assert (clip.frames[:, :, 2:-2] == 200).all() and clip.frames.min() > 180
    [clip] = video.load(tmp_path / "wide.mkv", size=(16, 48))
    assert clip.frames.shape == (1, 16, 48, 3) and clip.frames[0, :, :14].max() < 8


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    [clip] = video.load(write(tmp_path / "stripes.mkv", stripes), size=16)
    inner = clip.frames[:, :, 2:-2].float()
    assert (inner - 127.5).abs().max() < 12, "one-pixel stripes become grey"


@pytest.mark.parametrize("shape, size, allowed", [
    ((48, 64), (32, 32), 0),                 # one half to a sixth: exactly Pillow's filter
    ((30, 20), (45, 60), 0),
    ((111, 77), (64, 64), 0),
    ((640, 480), (64, 64), 3),               # below: blocks are averaged first
    ((1200, 1600), (64, 64), 3),
])
def test_scaling_agrees_with_pillow(shape, size, allowed):
    rows = np.sin(np.arange(shape[0]) / 9)[:, None, None]
    columns = np.cos(np.arange(shape[1]) / 7)[None, :, None]
    pixels = (127 + 60 * (rows + columns) * np.array([1.0, 0.5, -1.0])).astype(np.uint8)
    ImageOps = pytest.importorskip("PIL.ImageOps")
    expected = ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BICUBIC)
    off = frames.fit(pixels, size).int() - torch.from_numpy(np.array(expected)).int()
    assert off.abs().max() <= allowed


def test_large_frames_are_let_go_as_soon_as_they_are_small(tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    upright = decoding.upright

    class Tracked(np.ndarray):
        __hash__ = object.__hash__

    def tracked(pixels, matrix):
        large = upright(pixels, matrix).view(Tracked)
        alive.add(large)
        most.append(len(alive))
        return large

    monkeypatch.setattr(decoding, "upright", tracked)
    read, _ = video.read_video(write(tmp_path / "clip.mkv", noise(40)), size=8)
    assert read.shape == (40, 8, 8, 3) and len(most) == 40 and max(most) <= 2


@pytest.mark.parametrize("options", [{}, {"fps": 5}])
def test_decoded_frames_do_not_wait_for_the_garbage_collector(tmp_path, options):
    path = write(tmp_path / "clip.mkv", noise(40))
    gc.collect()
    gc.disable()
    try:
        video.read_video(path, size=8, **options)
        alive = sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2


# ------------------------------------------------------------------------------------ orientation

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)

# name: (a, b, c, d) of the display matrix, and the picture as it is to be shown. A pixel at (x, y)
# goes to (a x + c y, b x + d y), x to the right and y down: the convention of the mp4 format.
ORIENTATIONS = {
    "as stored": ((1, 0, 0, 1), PICTURE),
    "quarter turn clockwise": ((0, 1, -1, 0), np.rot90(PICTURE, -1)),
    "half turn": ((-1, 0, 0, -1), np.rot90(PICTURE, 2)),
    "quarter turn counter-clockwise": ((0, -1, 1, 0), np.rot90(PICTURE, 1)),
    "mirrored left to right": ((-1, 0, 0, 1), PICTURE[:, ::-1]),
    "mirrored top to bottom": ((1, 0, 0, -1), PICTURE[::-1]),
    "mirrored at the diagonal": ((0, 1, 1, 0), PICTURE.transpose(1, 0, 2)),
    "mirrored at the other diagonal": ((0, -1, -1, 0), np.rot90(PICTURE, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_file_is_turned_and_mirrored_as_its_header_states(tmp_path, name):
    matrix, shown = ORIENTATIONS[name]
    path = write(tmp_path / "clip.mov", PICTURE[None], codec="png")
    set_display_matrix(path, *matrix)
    read, _ = video.read_video(path)
    assert np.array_equal(read[0].numpy(), shown)


def test_the_eight_orientations_are_eight_pictures():
    assert len({(shown.shape, shown.tobytes()) for _, shown in ORIENTATIONS.values()}) == 8


@pytest.mark.parametrize("tag, shown", [
    (3, np.rot90(PICTURE, 2)), (2, PICTURE[:, ::-1]), (6, np.rot90(PICTURE, -1)),
])
def test_a_picture_is_turned_as_its_exif_data_state(tmp_path, tag, shown):
    exif = Image.Exif()
    exif[0x0112] = tag
    (tmp_path / "clip").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "clip" / "0.png", exif=exif)
    read, _ = video.read_frames(tmp_path / "clip")
    assert np.array_equal(read[0].numpy(), shown)


# ---------------------------------------------------------------------------- frame rate and time


def test_the_frame_rate_of_a_browsers_webm_comes_from_its_time_stamps(tmp_path, no_warnings):
    path = write(tmp_path / "clip.webm", ramp(8), times=[k / 30 for k in range(8)])
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 1000, "what the file states is wrong"
    _, fps = video.read_video(path)
    assert fps == pytest.approx(30, rel=0.01)


def test_a_rate_that_agrees_with_the_time_stamps_is_exact(tmp_path, no_warnings):
    """The time stamps of mkv are whole milliseconds: 29 intervals at 30 a second are 0.967 s."""
    _, fps = video.read_video(write(tmp_path / "clip.mkv", grey([0] * 30), fps=30))
    assert fps == 30


def test_a_song_with_a_cover_is_no_video(tmp_path):
    from av.stream import Disposition

    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 24, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value
        frame = av.VideoFrame.from_ndarray(ramp(1)[0], format="rgb24")
        container.mux([*cover.encode(frame), *cover.encode(None)])
        write_sound(container, sound, 1)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(ValueError, match="song.mp4 holds no pictures, it is damaged or sound only"):
        video.read_video(path)


def test_frames_at_a_target_rate_are_those_on_display_at_that_time():
    even = [(k / 30, k) for k in range(12)]
    assert list(frames.at_rate(even, 10)) == [0, 3, 6, 9]
    assert list(frames.at_rate(even, 30)) == list(range(12))
    assert list(frames.at_rate(even, 20)) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert list(frames.at_rate(even[:3], 60)) == [0, 0, 1, 1, 2, 2]
    late = [(5 + time, k) for time, k in even]
    assert list(frames.at_rate(late, 10)) == [0, 3, 6, 9]
    uneven = [(0.0, "a"), (0.1, "b"), (1.0, "c"), (1.1, "d")]
    assert "".join(frames.at_rate(uneven, 5)) == "abbbbcdd"
    assert list(frames.at_rate([(0.0, "alone")], 1)) == ["alone"]
    assert list(frames.at_rate([], 8)) == []


def test_time_stamps_in_whole_milliseconds_do_not_choose_the_frame_before():
    rounded = [(round(1000 * k / 30) / 1000, k) for k in range(300)]
    assert list(frames.at_rate(rounded, 15, tick=0.001)) == list(range(0, 300, 2))
    assert list(frames.at_rate(rounded, 30, tick=0.001)) == list(range(300))


def test_windows_of_clips_of_24_and_60_frames_a_second_span_the_same_time(tmp_path):
    for name, rate, count in (("slow", 24, 36), ("fast", 60, 90)):
        # the grey value is the time in hundredths of a second
        shades = [round(100 * k / rate) for k in range(count)]
        write(tmp_path / f"{name}.mkv", grey(shades), fps=rate)
    with pytest.warns(UserWarning, match="frame rates differ, from 24 in slow.mkv to 60 in fast"):
        loose = video.load(tmp_path, size=None)
    assert [clip.fps for clip in loose] == [60, 24]
    spans = [values(clip.frames)[7] for clip in loose]
    assert spans == [12, 29], "8 frames span 0.12 or 0.29 s"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clips = video.load(tmp_path, size=None, fps=12)
    for clip in clips:
        assert clip.fps == 12 and len(clip.frames) == 18
        assert values(clip.frames) == [round(100 * k / 12) for k in range(18)]


def test_one_second_of_motion_and_six_of_stills_keep_their_times(tmp_path):
    times = [k / 30 for k in range(30)] + [float(k) for k in range(1, 7)]
    path = write(tmp_path / "clip.mkv", grey(range(0, 180, 5)), times=times)
    with pytest.warns(UserWarning, match="not evenly spaced in time in .*clip.mkv: give fps= to"):
        _, fps = video.read_video(path)
    assert fps == pytest.approx(35 / 6, rel=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read, fps = video.read_video(path, fps=10)
    moving, still = values(read)[:10], values(read)[10:60]
    assert fps == 10 and moving == list(range(0, 150, 15))
    assert still == [shade for shade in range(150, 175, 5) for _ in range(10)]
    assert set(values(read)[60:]) == {175}


def test_one_dropped_frame_is_not_worth_a_warning(tmp_path, no_warnings):
    times = [k / 30 for k in range(20) if k != 12]
    _, fps = video.read_video(write(tmp_path / "clip.mkv", grey(range(19)), times=times))
    assert fps == pytest.approx(18 / 19 * 30, rel=0.01)


def test_fewer_frames_than_the_target_rate_are_repeated_with_a_warning(tmp_path):
    path = write(tmp_path / "clip.mkv", grey([0, 50, 100]), fps=10)
    with pytest.warns(UserWarning, match="frames repeat, because fps=20 is more .*clip.mkv"):
        read, fps = video.read_video(path, fps=20)
    assert values(read) == [0, 0, 50, 50, 100, 100] and fps == 20


def test_stride_counts_frames_of_the_target_rate(tmp_path):
    path = write(tmp_path / "clip.mkv", grey(range(0, 120, 4)), fps=30)
    read, fps = video.read_video(path, fps=10, stride=2)
    assert values(read) == list(range(0, 120, 24)) and fps == 5


def test_reading_stops_after_as_many_frames_as_are_wanted(tmp_path, no_warnings):
    path = write(tmp_path / "clip.mkv", grey(range(100)), fps=30)
    assert values(video.read_video(path, max_frames=3)[0]) == [0, 1, 2]
    read, fps = video.read_video(path, fps=15, stride=2, max_frames=3)
    assert values(read) == [0, 4, 8] and fps == 7.5
    assert len(video.read_video(path, max_frames=1000)[0]) == 100
    with pytest.raises(ValueError, match="max_frames is 0: take 1 or more"):
        video.read_video(path, max_frames=0)


def test_pictures_in_a_folder_follow_a_target_rate(tmp_path):
    folder = write_frames(tmp_path / "clip", grey(range(0, 100, 5)))
    read, fps = video.read_frames(folder, fps=5)
    assert values(read) == [0, 25, 50, 75] and fps == 5
    read, fps = video.read_frames(folder, fps=5, source_fps=10)
    assert values(read) == list(range(0, 100, 10)) and fps == 5


# ----------------------------------------------------------------------------------------- damage

MOOV_FIRST = {"movflags": "faststart"}                   # the index of an mp4 before its frames


@pytest.mark.parametrize("name, codec", [
    ("clip.mp4", "mpeg4"), ("clip.mp4", "libx264"), ("clip.mov", "mpeg4"), ("clip.mkv", "ffv1"),
    ("clip.webm", "libvpx"), ("clip.avi", "ffv1"), ("clip.mpg", "mpeg1video"),
])
def test_a_file_that_was_cut_short_is_read_as_far_as_it_goes_with_a_warning(tmp_path, name, codec):
    options = MOOV_FIRST if name.endswith(("mp4", "mov")) else {}
    path = write(tmp_path / name, noise(40), fps=25, codec=codec, container_options=options)
    whole, _ = video.read_video(path)
    with pytest.warns(UserWarning, match=rf"{name} \(it may be cut short.*read \d+ of") as caught:
        read, _ = video.read_video(cut_to(path, 0.6))
    assert 15 < len(read) < 32
    assert torch.equal(read[:15], whole[:15])
    said = str(caught[0].message)
    assert f"read {len(read)} of" in said
    if not name.endswith("mpg"):                         # its length is not written in the file
        assert f"read {len(read)} of 40 frames" in said


@pytest.mark.filterwarnings("ignore:frames are not evenly spaced")       # some are lost
@pytest.mark.parametrize("name, codec", [
    ("clip.mp4", "mpeg4"), ("clip.mp4", "libx264"), ("clip.mpg", "mpeg1video"),
    ("clip.avi", "mpeg4"),
])
def test_overwritten_bytes_in_the_middle_are_reported(tmp_path, name, codec):
    options = MOOV_FIRST if name.endswith("mp4") else {}
    path = write(tmp_path / name, noise(40), fps=25, codec=codec, container_options=options)
    whole, _ = video.read_video(path)
    overwrite_middle(path, 3000)
    with pytest.warns(UserWarning, match=rf"{name} \(.*corrupt data: \d+ packets .*read \d+ of"):
        read, _ = video.read_video(path)
    assert not torch.equal(read, whole) and torch.equal(read[:5], whole[:5])
    with pytest.warns(UserWarning):
        assert torch.equal(video.read_video(path)[0], read), "the same at every reading"


class FailingContainer:
    """An open container whose disk fails after a number of packets."""

    def __init__(self, container, packets):
        self.container, self.packets = container, packets
        self.streams, self.duration = container.streams, container.duration
        self.start_time = container.start_time

    def demux(self):
        yield from itertools.islice(self.container.demux(), self.packets)
        raise av.error.OSError(5, "Input/output error")


def test_frames_before_an_error_of_the_disk_are_read(tmp_path):
    with av.open(str(write(tmp_path / "clip.mkv", ramp(8)))) as container:
        decoder = decoding.Decoder(FailingContainer(container, 5))
        read = [frame.to_ndarray(format="rgb24") for _, frame in decoder.frames()]
        assert np.array_equal(np.stack(read), ramp(8)[:5])
        assert decoder.damage() == "it may be cut short; read 5 of 8 frames"


def test_sound_that_is_longer_than_the_picture_is_no_damage(tmp_path, no_warnings):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("ffv1", rate=10)
        pictures.height, pictures.width, pictures.pix_fmt = 24, 32, "bgr0"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for array in ramp(5):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(pictures.encode(None))
        write_sound(container, sound, 2)
    with av.open(str(path)) as container:
        assert container.duration == 2_000_000
    read, fps = video.read_video(path)
    assert len(read) == 5 and fps == 10


def test_a_file_without_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        write_sound(container, container.add_stream("pcm_s16le", rate=8000), 0.1)
    with pytest.raises(ValueError, match="sound.mkv holds no pictures"):
        video.read_video(tmp_path / "sound.mkv")


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mkv", ramp())

    def forbidden(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", forbidden)
    with pytest.raises(ValueError, match="clip.mkv cannot be read: you lack the permission"):
        video.read_video(path)


def test_all_files_that_cannot_be_read_are_named_at_once_and_nothing_is_read_twice(
    tmp_path, monkeypatch
):
    for name in ("a.mkv", "c.mkv"):
        write(tmp_path / name, ramp())
    (tmp_path / "b.mp4").write_text("no video")
    picture = write_frames(tmp_path / "d", ramp()) / "frame2.png"
    picture.write_bytes(b"no picture")
    opened = []
    read = loading.read

    def counted(path, *args):
        opened.append(path.name)
        return read(path, *args)

    monkeypatch.setattr(loading, "read", counted)
    (tmp_path / "walk").mkdir()
    for name in ("a.mkv", "b.mp4", "c.mkv", "d"):
        (tmp_path / name).rename(tmp_path / "walk" / name)
    message = "2 of 4 videos .* left out .*b.mp4 cannot .*d/frame2.png cannot .*: replace or delete"
    with pytest.warns(UserWarning, match=message) as caught:
        clips = video.load(tmp_path, size=8)
    assert [clip.name for clip in clips] == ["walk/a.mkv", "walk/c.mkv"]
    assert opened == ["a.mkv", "b.mp4", "c.mkv", "d"] and len(caught) == 1


def test_a_folder_in_which_nothing_can_be_read_is_refused_and_every_file_is_named(tmp_path):
    for name in ("a.mp4", "b.mkv", "c.avi"):
        (tmp_path / name).write_text("no video")
    with pytest.raises(ValueError, match="none of the 3 videos .*a.mp4 .*b.mkv .*c.avi .*replace"):
        video.load(tmp_path)


@pytest.mark.parametrize("kind", ["labels", "captions"])
def test_what_can_be_refused_without_decoding_is(tmp_path, monkeypatch, kind):
    write(tmp_path / "a.mkv", ramp())
    if kind == "labels":
        write(tmp_path / "walk" / "b.mkv", ramp())
    else:
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.mkv", "text": "no such clip"}')
    monkeypatch.setattr(loading, "read", None)
    with pytest.raises(ValueError, match="lies in .* itself|no such clip is there"):
        video.load(tmp_path)
