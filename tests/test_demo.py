"""The demo, with a stand-in for the shipped weights: one noise, two models, one page."""

import re
from types import SimpleNamespace

import pytest
import torch

from vldm_mini.teaching import demo

LABEL_NAMES = (("action", ("wave", "jump", "bend")), ("person", tuple(range(9))))


class Fake:
    """Videos with independent frames at alpha = 1, moving ones otherwise; records its calls."""

    def __init__(self):
        self.config = SimpleNamespace(label_names=LABEL_NAMES, frames=4, fps=8.0, steps=2)
        self.requests = []

    def labels(self, action, person):
        return torch.tensor([[action, person]])

    def generate(self, labels, frames, alpha=None, seed=0, steps=None):
        request = {"labels": labels, "frames": frames, "alpha": alpha, "seed": seed}
        self.requests.append(request)
        g = torch.Generator().manual_seed(seed)
        shape = (len(labels), frames, 3, 16, 16)
        if alpha == 1:
            return torch.rand(shape, generator=g) * 2 - 1
        return torch.linspace(-1, 1, frames).view(1, -1, 1, 1, 1).expand(shape)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model, out = Fake(), tmp_path_factory.mktemp("demo") / "out"
    return model, out, demo.run(out, seed=7, model=model)


def test_both_models_get_the_same_request_and_the_same_seed(made):
    image, video, long = made[0].requests
    assert image["alpha"] == 1 and video["alpha"] is None and long["alpha"] is None
    assert torch.equal(image["labels"], video["labels"]) and image["seed"] == video["seed"] == 7
    assert len(image["labels"]) == 3 * 2 and long["frames"] == 16 and len(long["labels"]) == 1


def test_the_page_loads_nothing_from_elsewhere(made):
    text = made[2]["page"].read_text()
    assert "[[" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\((?!data:)|@import|https?://""", text)


def test_every_picture_of_the_page_has_an_alt_text(made):
    text = made[2]["page"].read_text()
    images = re.findall(r"<img[^>]*>", text)
    assert all('alt="' in tag and 'alt=""' not in tag for tag in images)
    videos = re.findall(r'<div class="video"[^>]*>', text)
    assert len(videos) == 2 + 2 * 6 + 1  # the pair on top, six cards, the long video
    assert all('role="img"' in tag and 'aria-label="' in tag for tag in videos)


def test_combinations_that_were_held_out_are_marked(made):
    cards = re.findall(r"<h3>(.*?)</h3>", made[2]["page"].read_text())
    marked = {card.split("<")[0] for card in cards if "held out" in card}
    assert marked == {"person 0, bend"}  # pair (0, 2) of the stand-in


def test_movie_strip_and_page_lie_in_the_folder_and_nothing_half_written(made):
    names = {path.name for path in made[1].iterdir()}
    assert names == {"index.html", "videos.webp", "videos.mp4", "strip.png"}


def test_the_table_counts_frames_and_seconds_and_memory(made, tmp_path, capsys):
    demo.run(tmp_path, model=Fake())
    text = capsys.readouterr().out
    assert re.search(r"all of it +64 +\d", text)  # 6 videos of 4 frames twice, and one of 16
    assert "peak memory" in text and "index.html" in text


def test_a_file_in_the_way_is_reported_before_any_work(tmp_path):
    (tmp_path / "out").write_text("mine")
    model = Fake()
    with pytest.raises(ValueError, match="is a file"):
        demo.run(tmp_path / "out", model=model)
    assert model.requests == [] and (tmp_path / "out").read_text() == "mine"
