"""The classifiers of `actions`: what they are trained on, and what they can and cannot see."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.clips import circling_clip, noise, seeded
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_classifier_training as training
from vldm_mini.evaluation import action_classifiers, baselines
from vldm_mini.evaluation.action_classifiers import ActionClassifiers, ActionClassifiersConfig

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "checkpoints" / "actions" / "classifiers"
SMALL = ActionClassifiersConfig(size=8, channels=(8, 8))


# -- what the classifiers are trained on
# ------------------------------------------------------------

def test_the_last_third_is_held_out_and_one_window_at_least():
    assert action_classifiers.classifier_split(146) == 146 - 49
    assert action_classifiers.classifier_split(51) == 51 - 22
    clips = [circling_clip(0, 0, t=51), circling_clip(1, 1, t=90)]
    videos, actions, persons = action_classifiers.held_out_windows(clips, step=1)
    assert videos.shape == (1 + 9, 8, 3, 64, 64)
    assert actions.tolist() == [0] + [1] * 9 and persons.tolist() == [0] + [1] * 9
    assert torch.equal(videos[1], video.to_float(clips[1].frames[60:60 + 22:3]))


def test_training_never_sees_a_held_out_frame():
    clip = circling_clip(0, 0)
    clip.frames[action_classifiers.classifier_split(60):] = 255
    (part,) = training.training_parts([clip], SMALL)
    assert len(part.frames) == action_classifiers.classifier_split(60)
    assert part.frames.mean() < 0


def test_windows_are_those_of_the_video_module():
    frames = torch.arange(30)
    windows = action_classifiers.windows(frames, 8, 3)
    assert torch.equal(windows[4], video.window(frames, 4, 8, 3))
    assert len(windows) == 30 - video.span(8, 3) + 1


def test_a_shuffle_is_neither_the_order_nor_its_reverse():
    generator = seeded()
    for _ in range(50):
        assert baselines.shuffled_order(3, generator).tolist() not in ([0, 1, 2], [2, 1, 0])


def test_a_disordered_window_is_never_a_window_in_order():
    frames = torch.arange(30.).view(30, 1, 1, 1)
    window, generator = frames[:24:3], seeded()
    for _ in range(200):
        steps = training.disorder(frames, window, generator).flatten().diff()
        assert not (steps == 3).all() and not (steps == -3).all()


def test_a_window_in_order_is_cut_from_its_part_at_an_allowed_stride():
    part = training.TrainingPart(torch.arange(60.).view(60, 1, 1, 1), action=2, person=1)
    strides, generator = set(), seeded()
    for _ in range(60):
        same, window = training.sample_in_order([part], ActionClassifiersConfig(), generator)
        steps = window.flatten().diff()
        assert same is part and len(window) == 8 and (steps == steps[0]).all()
        strides.add(int(steps[0]))
    assert strides == {2, 3, -2, -3}, "forwards and backwards"


def test_a_batch_holds_the_labels_of_its_own_windows():
    """Frames of one colour a part: the windows show which part each row comes from."""
    parts = [training.TrainingPart(torch.full((40, 8, 8, 3), k / 10), action=k, person=3 + k)
             for k in range(3)]
    batch = training.sample_batch(parts, SMALL, 6, seeded(1), seeded(2))
    assert batch.in_order.shape == batch.disordered.shape == (6, 3, 8, 8, 8)
    assert batch.videos.shape[0] == len(batch.actions) == 12 and len(batch.persons) == 6
    assert set(batch.actions.tolist()) <= {0, 1, 2} and set(batch.persons.tolist()) <= {3, 4, 5}
    assert batch.persons.unique().numel() > 1


def test_the_loss_is_the_sum_of_three_cross_entropies():
    classifiers = ActionClassifiers(SMALL)
    parts = [training.TrainingPart(noise(40, 8, 8, 3, seed=k), k, k) for k in range(3)]
    batch = training.sample_batch(parts, SMALL, 2, seeded(1), seeded(2))
    change = classifiers.change
    order = torch.sigmoid(classifiers.order(change(torch.cat([batch.in_order, batch.disordered]))))
    action = classifiers.action(change(batch.videos)).softmax(1)
    person = classifiers.person(batch.in_order).softmax(1)
    by_hand = (-action[range(4), batch.actions].log().mean()
               - person[range(2), batch.persons].log().mean()
               - (order[:2].log().sum() + (1 - order[2:]).log().sum()) / 4)
    assert torch.allclose(training.classifier_loss(classifiers, batch), by_hand, atol=1e-5)


def test_baselines_by_hand():
    videos = torch.arange(8.).view(1, 8, 1, 1, 1)
    found = baselines.baselines(videos, seeded())
    found = {name: video.flatten().tolist() for name, video in found.items()}
    assert found["freeze"] == [0] * 8 and found["backwards"] == list(range(7, -1, -1))
    assert sorted(found["shuffled"]) == list(range(8)) != found["shuffled"]
    assert found["stutter"] == sorted(found["stutter"]) and len(set(found["stutter"])) < 8


def test_blurring_in_time_mixes_a_quarter_of_each_neighbour():
    found = baselines.blurred_in_time(torch.tensor([0.0, 4.0, 0.0]).view(1, 3, 1, 1, 1))
    assert found.flatten().tolist() == [1, 2, 1]


# -- the classifiers
# ---------------------------------------------------------------------------------

def test_action_and_order_depend_on_nothing_in_a_frozen_video():
    classifiers, videos = ActionClassifiers(SMALL), noise(5, 1, 3, 16, 16).expand(5, 8, 3, 16, 16)
    action, person, order = classifiers(videos)
    assert (action == action[0]).all() and (order == order[0]).all()
    assert not torch.allclose(person[0], person[1])


def test_the_person_does_not_depend_on_the_order_of_frames():
    classifiers, videos = ActionClassifiers(SMALL), noise(2, 8, 3, 16, 16)
    other = videos[:, baselines.shuffled_order(8, seeded())]
    assert torch.allclose(classifiers(videos)[1], classifiers(other)[1], atol=1e-5)
    assert not torch.allclose(classifiers(videos)[2], classifiers(other)[2], atol=1e-5)


def test_videos_are_classified_one_by_one_at_any_size_and_length():
    classifiers, videos = ActionClassifiers(SMALL).eval(), noise(3, 11, 3, 24, 24)
    together = classifiers(videos)
    for all_logits, alone in zip(together, classifiers(videos[1:2])):
        assert torch.allclose(all_logits[1:2], alone, atol=1e-5)


def test_wrong_shapes_end_in_one_sentence():
    for videos in (noise(8, 3, 16, 16), noise(1, 8, 1, 16, 16), noise(1, 1, 3, 16, 16)):
        with pytest.raises(ValueError, match="the classifiers take videos"):
            ActionClassifiers(SMALL)(videos)


def test_the_same_seed_gives_the_same_classifiers_and_leaves_the_global_seed_alone():
    clips = [circling_clip(a, p) for a in range(2) for p in range(2)]
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def fit(seed):
        return training.fit_classifiers(clips, seed=seed, steps=2, batch=2, config=SMALL)
    first, second, other = fit(3), fit(3), fit(4)
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in first.state_dict().items():
        assert torch.equal(p, second.state_dict()[name])
    assert not torch.equal(first.action[0].weight, other.action[0].weight)


def test_training_leaves_weights_a_card_and_a_record(tmp_path):
    clips = [circling_clip(a, p) for a in range(4) for p in range(2)]
    table = training.train_classifiers(tmp_path, clips=clips, steps=2)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "record.json"}
    assert json.loads((tmp_path / "record.json").read_text())["table"] == table
    assert f"| {table['real']['n']} |" in (tmp_path / "README.md").read_text()
    assert ActionClassifiers.from_pretrained(tmp_path).config == ActionClassifiersConfig()


def test_the_report_counts_what_was_requested():
    prediction = action_classifiers.ActionPrediction(
        action=torch.tensor([0, 1, 2, 3]), person=torch.tensor([0, 0, 5, 5]),
        order=torch.tensor([0.9, 0.9, 0.1, 0.5]))
    classifiers = SimpleNamespace(classify=lambda videos: prediction)
    report = action_classifiers.classifier_report(
        classifiers, torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 5, 5, 5]))
    by_action = report.pop("by_action")
    assert report == {"action": 3, "person": 3, "both": 2, "in_order": 2, "n": 4}
    assert by_action == [[1, 2], [1, 1], [1, 1]]


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers are not shipped here")
def test_shipped_classifiers_are_small_and_their_card_prints_what_their_record_says():
    classifiers = ActionClassifiers.from_pretrained(SHIPPED)
    assert (SHIPPED / "model.safetensors").stat().st_size < 1e6
    table = json.loads((SHIPPED / "record.json").read_text())["table"]
    card = (SHIPPED / "README.md").read_text()
    for name, row in table.items():
        line = f"| {name} | {row['action']} | {row['person']} | {row['in_order']} | {row['n']} |"
        assert line in card
    assert classifiers.config == ActionClassifiersConfig()


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers are not shipped here")
def test_shipped_classifiers_recognise_real_videos_and_tell_baselines_apart(real_data):
    classifiers = ActionClassifiers.from_pretrained(SHIPPED)
    clips = [clip for clip in video.actions(real_data) if not clip.mirror]
    table = action_classifiers.classifier_table(classifiers, clips, step=4)

    def share(row, what):
        return table[row][what] / table[row]["n"]
    assert share("real", "action") >= 0.9 and share("real", "person") >= 0.95
    assert share("real", "in_order") >= 0.85
    assert share("freeze", "action") < 0.5 and share("freeze", "in_order") == 0
    assert share("shuffled", "in_order") < 0.15 and share("stutter", "in_order") < 0.25
