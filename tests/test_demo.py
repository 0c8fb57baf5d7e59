"""The demo, with a stand-in for the shipped weights: one noise through two models, one page that needs nothing else."""

import re
from types import SimpleNamespace

import pytest
import torch

from vldm_mini.teaching import demo

WORDS = (("action", ("wave", "jump", "bend")), ("person", tuple(range(9))))


class Fake:
    """Films whose frames are independent at alpha = 1 and move otherwise; keeps what it was asked."""

    def __init__(self):
        self.config = SimpleNamespace(label_names=WORDS, frames=4, fps=8.0, steps=2)
        self.asked = []

    def labels(self, action, person):
        return torch.tensor([[action, person]])

    def generate(self, labels, frames, alpha=None, seed=0, steps=None):
        self.asked.append(dict(labels=labels, frames=frames, alpha=alpha, seed=seed))
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
    image, video, long = made[0].asked
    assert image["alpha"] == 1 and video["alpha"] is None and long["alpha"] is None
    assert torch.equal(image["labels"], video["labels"]) and image["seed"] == video["seed"] == 7
    assert len(image["labels"]) == 3 * 2 and long["frames"] == 16 and len(long["labels"]) == 1


def test_the_page_asks_the_network_for_nothing(made):
    text = made[2]["page"].read_text()
    assert "[[" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\((?!data:)|@import|https?://""", text)


def test_every_picture_of_the_page_has_an_alt_text(made):
    text = made[2]["page"].read_text()
    assert all('alt="' in tag and 'alt=""' not in tag for tag in re.findall(r"<img[^>]*>", text))
    films = re.findall(r'<div class="film"[^>]*>', text)
    assert len(films) == 2 + 2 * 6 + 1  # the pair on top, six cards, the long film
    assert all('role="img"' in tag and 'aria-label="' in tag for tag in films)


def test_combinations_that_were_never_filmed_are_marked(made):
    cards = re.findall(r"<h3>(.*?)</h3>", made[2]["page"].read_text())
    assert {c.split("<")[0] for c in cards if "never filmed" in c} == {"person 0, bend"}  # pair (0, 2) of the stand-in


def test_movie_strip_and_page_lie_in_the_folder_and_nothing_half_written(made):
    assert {"index.html", "films.webp", "films.mp4", "strip.png"} == {p.name for p in made[1].iterdir()}


def test_the_table_counts_frames_and_seconds_and_memory(made, tmp_path, capsys):
    demo.run(tmp_path, model=Fake())
    text = capsys.readouterr().out
    assert re.search(r"all of it +64 +\d", text)  # 6 films of 4 frames twice, and one of 16
    assert "peak memory" in text and "index.html" in text


def test_a_file_in_the_way_is_told_before_any_work(tmp_path):
    (tmp_path / "out").write_text("mine")
    model = Fake()
    with pytest.raises(ValueError, match="is a file"):
        demo.run(tmp_path / "out", model=model)
    assert model.asked == [] and (tmp_path / "out").read_text() == "mine"
