"""Pictures of video: what goes in, what comes out, and what is said when it cannot."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vldm_mini.teaching import pictures


def bar(t=6, h=16, w=16, speed=2):
    """A white bar that moves `speed` pixels a frame over black: (t 3 h w) in [-1, 1]."""
    x = torch.full((t, 3, h, w), -1.0)
    for i in range(t):
        x[i, :, :, (i * speed) % w] = 1.0
    return x


def test_every_accepted_layout_gives_the_same_pixels():
    x = bar()
    byte = ((x + 1) * 127.5).round().to(torch.uint8)
    last = byte.movedim(1, -1)  # t h w 3
    for other in (x.numpy(), x.bfloat16(), x[None], byte, last, last.numpy(), x[:, :1]):
        assert np.array_equal(pictures.pixels(other), pictures.pixels(x))
    assert pictures.pixels([x, x]).shape == (2, 6, 16, 16, 3)


def test_three_rows_of_uint8_pixels_are_not_taken_for_channels():
    assert pictures.pixels(torch.zeros(5, 3, 8, 3, dtype=torch.uint8)).shape == (1, 5, 8, 3, 3)
    assert pictures.pixels(torch.zeros(5, 1, 8, 3, dtype=torch.uint8)).shape == (1, 5, 1, 8, 3)


def test_values_outside_of_the_range_are_clamped():
    assert np.array_equal(pictures.pixels(bar() * 3), pictures.pixels(bar()))


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.zeros(3, 16, 16), "expected frames as"),
        (torch.zeros(0, 3, 16, 16), "none of them empty"),
        (torch.zeros(4, 2, 16, 16), "1 or 3 channels"),
        (torch.zeros(4, 16, 16, 3), "1 or 3 channels"),
        (torch.full((4, 3, 16, 16), float("nan")), "NaN"),
        (torch.full((4, 3, 16, 16), 255.0), "uint8 for 0..255"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.int64), "int64"),
        ([torch.zeros(4, 3, 16, 16), torch.zeros(5, 3, 16, 16)], "one shape"),
    ],
)
def test_wrong_frames_are_reported_in_a_sentence(frames, message):
    with pytest.raises(ValueError, match=message):
        pictures.movie(frames)


def test_the_slice_of_a_moving_bar_is_a_slanted_line_and_of_a_still_one_upright():
    moving, still = (pictures.slice(bar(speed=s), row=3).image for s in (2, 0))
    t, thick = 6, round(16 / 6)

    def columns(image):
        return [int(image[i * thick, :, 0].argmax()) for i in range(t)]

    assert columns(moving) == [0, 2, 4, 6, 8, 10]
    assert columns(still) == [0] * 6


def test_the_slice_takes_the_row_that_moves():
    x = torch.full((6, 3, 16, 16), -1.0)
    x[::2, :, 11] = 1.0
    assert pictures.moving_row(x) == 11
    assert "row 11" in pictures.slice(x).alt
    with pytest.raises(ValueError, match="row 99"):
        pictures.slice(x, row=99)


def test_a_strip_has_one_column_a_frame_and_one_row_a_clip():
    x = torch.stack([bar(), bar()])
    image = pictures.strip(x).image
    assert image.shape == (2 * 16 + pictures.GAP, 6 * 16 + 5 * pictures.GAP, 3)
    assert np.array_equal(image[:16, :16], pictures.pixels(x)[0, 0])


def test_a_movie_plays_its_loops_and_stops_and_carries_its_alt_text():
    m = pictures.movie(bar(), fps=10, loop=3, alt='a "bar" moves')
    webp = Image.open(io.BytesIO(m.encode("webp")))
    assert (webp.n_frames, webp.info["loop"]) == (6, 3)
    webp.load()
    assert webp.info["duration"] == 100
    text = m._repr_html_()
    assert 'alt="a &quot;bar&quot; moves"' in text and "pixelated" in text and 'width="64"' in text
    assert Image.open(io.BytesIO(m._repr_png_()[0])).size == (6 * 16 + 5 * pictures.GAP, 16)


def test_the_text_form_never_changes():
    one, other = pictures.movie(bar(), alt="bar"), pictures.movie(-bar(), alt="bar")
    assert repr(one) == repr(other) == "Movie(6 frames of 16x16, 8 fps: bar)"
    assert "0x" not in repr(pictures.strip(bar())) + repr(pictures.beside(pictures.slice(bar())))


@pytest.mark.parametrize("suffix", ["webp", "gif", "mp4", "png"])
def test_a_movie_is_saved_by_its_suffix_with_nothing_beside_it(tmp_path, suffix):
    path = pictures.movie(bar(h=15, w=17), scale=1).save(tmp_path / f"video.{suffix}")
    assert path.stat().st_size > 100
    assert [p.name for p in tmp_path.iterdir()] == [f"video.{suffix}"]


def test_the_mp4_holds_the_frames_in_order(tmp_path):
    import av

    x = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 32, 32)
    pictures.movie(x, scale=2, loop=2).save(tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        means = [f.to_ndarray(format="rgb24").mean() for f in container.decode(video=0)]
    assert len(means) == 12
    assert np.allclose(means, [0, 51, 102, 153, 204, 255] * 2, atol=6)


def test_the_gif_counts_its_loops_as_showings(tmp_path):
    for loop in (1, 3):
        path = pictures.movie(bar(), loop=loop).save(tmp_path / "video.gif")
        assert Image.open(path).info.get("loop", 0) == loop - 1


def test_what_cannot_be_saved_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    m = pictures.movie(bar())
    with pytest.raises(ValueError, match="video.avi"):
        m.save(tmp_path / "video.avi")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vldm_mini.weights.os.replace", full)
    with pytest.raises(OSError, match="could not be written .*No space left"):
        m.save(tmp_path / "video.webp")
    assert list(tmp_path.iterdir()) == []


def test_the_scrubber_carries_everything_and_falls_back_to_strips():
    videos = [bar(speed=s) for s in range(7)]
    s = pictures.scrubber(videos, [f"speed {i}" for i in range(7)], slices=True, alt="a bar")
    page = s._repr_html_()
    assert page.count("data:image/webp") == 7 + 1 and page.count("data:image/png") == 7
    assert "http" not in page.replace("http://www.w3.org", "")
    still = page.split("<script>")[0]
    assert "<img" in still and "speed 6" in still
    assert s._fallback().shape[0] == 5 * 16 + 4 * pictures.GAP  # five of the seven
    assert page == pictures.scrubber(videos, s.labels, slices=True, alt="a bar")._repr_html_()


def test_the_scrubber_takes_pictures_and_figures_and_closes_them():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures = [plt.figure(figsize=(2, 1)) for _ in range(3)]
    assert pictures.scrubber(figures, "abc").items[0].shape == (1, 80, 160, 3)
    assert plt.get_fignums() == before
    assert pictures.scrubber(list(bar()), range(6)).items[0].shape == (1, 16, 16, 3)
    assert pictures.scrubber([pictures.strip(bar())], ["strip"]).items[0].shape[0] == 1


def test_labels_end_no_script():
    page = pictures.scrubber([bar()], ["</script><b>"])._repr_html_()
    assert page.count("</script>") == 1


@pytest.mark.parametrize(
    "things, labels, options, message",
    [
        ([], [], {}, "one label per setting"),
        ([bar()], ["a", "b"], {}, "one label per setting"),
        ([bar(), bar(t=5)], ["a", "b"], {}, "one shape"),
        ([bar()], ["a"], {"start": 1}, "start=1"),
    ],
)
def test_a_scrubber_that_cannot_be_built_is_reported(things, labels, options, message):
    with pytest.raises(ValueError, match=message):
        pictures.scrubber(things, labels, **options)


def test_beside_puts_a_label_over_each():
    things = pictures.movie(bar()), pictures.slice(bar())
    page = pictures.beside(*things, labels=["video", "x < t"])._repr_html_()
    assert page.count("<img") == 2 and "x &lt; t" in page
    with pytest.raises(ValueError, match="1 pictures need 1 labels"):
        pictures.beside(pictures.movie(bar()), labels=["a", "b"])


def test_alphas_are_plotted_one_point_a_layer():
    ax = pictures.alphas(
        {"down": torch.tensor(0.4), "mid": torch.tensor([0.2, 0.6])}, before=[0.5, 0.5]
    )
    assert list(ax.lines[0].get_xdata()) == pytest.approx([0.4, 0.4])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["down", "mid"]


def test_losses_are_plotted_from_the_rows_of_a_record():
    high_tau = [None, None, 1.0, 1.0]
    rows = [
        {"step": 10 * i, "losses": {"image": 1.0 + i}, "levels": [3.0, high_tau[i]]}
        for i in range(4)
    ]
    line = pictures.losses(rows, smooth=2).lines[0]
    assert list(line.get_xdata()) == [10, 20, 30] and list(line.get_ydata()) == [1.5, 2.5, 3.5]
    low, high = pictures.losses(rows, levels=True).lines
    assert len(low.get_xdata()) == 4 and list(high.get_xdata()) == [20, 30]
    assert list(pictures.losses([{"step": 5, "loss": 2.0}]).lines[0].get_xdata()) == [5]


def test_a_record_without_losses_is_reported():
    with pytest.raises(ValueError, match="train for a few steps"):
        pictures.losses([])
    with pytest.raises(ValueError, match="train for a few steps"):
        pictures.losses([{"step": 1, "loss": 1.0}], levels=True)


# --------------------------------------------------------------------------------------------------
# Boxes, marked with the mouse


def test_boxes_are_read_from_lines_of_four_numbers_far_ones_first():
    boxes = pictures.read_boxes("0.5 0.4 0.7 0.9\n0.1, 0.4, 0.2, 0.5\n")
    assert boxes == [(0.1, 0.4, 0.2, 0.5), (0.5, 0.4, 0.7, 0.9)]
    assert pictures.read_boxes("  ") == []


@pytest.mark.parametrize(
    "line", ["0.5 0.4 0.7", "a b c d", "0.7 0.4 0.5 0.9", "0.5 0.4 0.7 1.2", "nan 0 1 1"]
)
def test_a_line_that_is_no_box_is_named(line):
    with pytest.raises(ValueError, match="line 2, .* is no box: give four numbers"):
        pictures.read_boxes("0.5 0.4 0.7 0.9\n" + line)


def test_a_canvas_and_its_text_field_share_a_name_and_begin_with_the_boxes_given(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda *things: seen.extend(things))
    field = pictures.draw_boxes(torch.zeros(3, 8, 16), [(0.5, 0.4, 0.7, 0.9)], scale=2)
    page = seen[0].data
    assert seen[1] is field and pictures.read_boxes(field.value) == [(0.5, 0.4, 0.7, 0.9)]
    (key,) = field._dom_classes
    assert f'id="{key}" width="32" height="16"' in page
    assert f".{key} textarea" in page and "{{" not in page


def test_a_video_is_written_part_by_part_and_plays_meanwhile(tmp_path):
    import av

    path, seen = tmp_path / "video.mp4", []

    def parts():
        for k in range(6):
            if k == 5:
                with av.open(str(path)) as so_far:
                    seen.append(sum(1 for _ in so_far.decode(video=0)))
            yield torch.full((8, 3, 16, 30), k / 5)

    pictures.save_growing(path, parts(), fps=2, scale=1)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 48 and frames[0].shape == (16, 30, 3)
    assert 0 < seen[0] < 48, "what is there already can be watched"
    levels = [int(frame.mean()) for frame in frames[::8]]
    assert levels == sorted(levels) and levels[-1] - levels[0] > 80
    with pytest.raises(ValueError, match="an .mp4"):
        pictures.save_growing(tmp_path / "video.webp", [], fps=2)
