"""Bounding boxes as a picture for the backbone, and the image LDM that is conditioned on them."""
import json
from dataclasses import asdict

import pytest
import torch

from tests.tiny import AUTOENCODER, TargetModel, shaken, tiny_unet
from vldm_mini.autoencoder import Autoencoder
from vldm_mini.boxes import BOX_CHANNELS, BoxImageLDM, box_map
from vldm_mini.diffusion import Schedule
from vldm_mini.pipeline import PipelineConfig
from vldm_mini.weights import write_text

LABEL_NAMES = (("light", ("day", "night")), ("cars", ("0", "1", "2")))
CONFIG = PipelineConfig(LABEL_NAMES, pixels=16, frames=4, steps=2)


# -- the picture of boxes -------------------------------------------------------------------------

def test_a_box_map_says_how_much_of_a_cell_is_in_a_box_and_where_in_the_box():
    given, cover, right, down = box_map([(0.25, 0.25, 0.75, 1.0)], 4, 4)
    assert (given == 1).all()
    expected = torch.tensor([[0., 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
    assert torch.equal(cover, expected)
    assert torch.equal(right[2], torch.tensor([0, -0.5, 0.5, 0]))
    assert torch.allclose(down[:, 1], torch.tensor([0, -2 / 3, 0, 2 / 3]), atol=1e-6)
    # half a cell on the left, a quarter in the corner
    assert box_map([(0.375, 0.375, 1, 1)], 4, 4)[1, 1].tolist() == [0, 0.25, 0.5, 0.5]
    assert torch.equal(box_map([], 4, 4)[1:], torch.zeros(3, 4, 4))


def test_a_box_map_has_rows_for_height_and_columns_for_width():
    cover = box_map([(0.0, 0.0, 0.125, 1.0)], 4, 8)[1]
    assert cover.shape == (4, 8) and (cover[:, 0] == 1).all() and (cover[:, 1:] == 0).all()


def test_a_near_box_covers_a_far_one_and_adjacent_boxes_differ_from_one_large_box():
    far, near = (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0)
    both, alone = box_map([far, near], 8, 8), box_map([near], 8, 8)
    assert torch.equal(both[:, 4:, 4:], alone[:, 4:, 4:]) and (both[1] == 1).all()
    assert torch.equal(both[2:, :4], box_map([far], 8, 8)[2:, :4])
    side_by_side = box_map([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], 8, 8)
    assert torch.equal(side_by_side[1], box_map([(0, 0, 1, 1)], 8, 8)[1])
    assert not torch.equal(side_by_side[2], box_map([(0, 0, 1, 1)], 8, 8)[2])


@pytest.mark.parametrize("box", [(0.5, 0, 0.4, 1), (-0.1, 0, 0.5, 1), (0, 0, 1, 1.5),
                                 (0, 0.5, 1, 0.5)])
def test_a_box_outside_the_picture_or_empty_is_refused(box):
    with pytest.raises(ValueError, match="a box is x0 y0 x1 y1 with 0 <= x0 < x1 <= 1"):
        box_map([box], 8, 8)


# -- the model ------------------------------------------------------------------------------------

class TargetTheta(TargetModel):
    """A TargetModel with the interface of a UNet that is conditioned on boxes."""

    def __init__(self, target):
        super().__init__(Schedule.linear(), target)
        self.config = tiny_unet().config
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def null_labels(self, b, device=None):
        return torch.tensor([[2, 3]]).expand(b, -1)

    def forward(self, z, tau, labels, concat=None):
        return super().forward(z, tau, labels=labels, concat=concat)


def model_of(target):
    return BoxImageLDM(shaken(Autoencoder(AUTOENCODER), 0.05), TargetTheta(target), CONFIG)


def test_boxes_and_labels_condition_one_prediction_and_neither_the_other():
    model = model_of(lambda labels, concat: 1.0 if concat is None else 3.0)
    labels, boxes = model.labels(light="night", cars=1).repeat(2, 1), [[(0, 0, 0.5, 1)], []]
    z = model.latents(labels, boxes=boxes, guidance=2.0)
    assert z.shape == (2, 1, 4, 4, 4) and torch.allclose(z, torch.tensor(5.0), atol=1e-3)
    (first, second), maps = model.theta.calls[:2], [box_map(some, 4, 4) for some in boxes]
    with_boxes, without = sorted((first, second), key=lambda call: call["concat"] is None)
    assert torch.equal(with_boxes["concat"], torch.stack(maps))
    assert torch.equal(with_boxes["labels"], labels)
    assert without["labels"].tolist() == [[2, 3]] * 2
    model.theta.calls.clear()
    z = model.latents(labels, boxes=boxes, guidance=1.0)
    assert torch.allclose(z, torch.tensor(3.0), atol=1e-3)
    assert len(model.theta.calls) == CONFIG.steps, "without guidance at half the cost"


def test_the_number_of_box_lists_must_be_the_number_of_pictures():
    model = model_of(lambda **_: 0.0)
    with pytest.raises(ValueError, match="1 lists for 2 pictures"):
        model.generate(model.labels().repeat(2, 1), boxes=[[]])


def test_latents_that_are_not_finite_name_the_stage():
    model = model_of(lambda **_: float("inf"))
    with pytest.raises(FloatingPointError, match="the stage 'boxes'"):
        model.generate(model.labels())


def test_a_box_model_is_saved_and_loaded_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    theta = tiny_unet(concat_channels=BOX_CHANNELS, labels=(2, 3))
    shaken(Autoencoder(AUTOENCODER), 0.05).save_pretrained(tmp_path / "a" / "autoencoder")
    theta.save_pretrained(tmp_path / "a" / "boxes")
    write_text(tmp_path / "a" / "config.json", json.dumps(asdict(CONFIG)))
    model = BoxImageLDM.from_pretrained(tmp_path / "a", "cpu")
    model.save_pretrained(tmp_path / "b")
    again = BoxImageLDM.from_pretrained(tmp_path / "b", "cpu")
    labels, boxes = model.labels(light="day"), [[(0.25, 0.25, 0.75, 1)]]
    frame = model.generate(labels, boxes=boxes, seed=3)
    assert frame.shape == (1, 1, 3, 16, 16)
    assert torch.equal(again.generate(labels, boxes=boxes, seed=3), frame)
    assert not torch.allclose(model.generate(labels, boxes=[[]], seed=3), frame, atol=1e-3)
    assert model.to(dtype=torch.float64).generate(labels, boxes=boxes, seed=3).shape == frame.shape
