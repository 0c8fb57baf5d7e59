"""lab.check passes sound temporal layers and finds the mistake of each broken one."""

import functools

import pytest
import torch

from vldm_mini import lab
from vldm_mini.temporal import Clip, InsertionPoint, TemporalAttention, TemporalConv, TimeConv

from . import broken_layers as broken

# layer -> the check that must fail, and a word of the reason that it must give
MISTAKES = {
    broken.TextAsKeysAndValues: ("frames see one another", "text only"),
    broken.ClampedAlpha: ("gradient", "only a mixing scalar"),
    broken.AllZero: ("gradient", "zero times zero"),
    broken.TokenShift: ("identity at start", "token shift"),
    broken.CausalDirac: ("identity at start", "delay"),
    broken.UnzeroedProjection: ("identity at start", "a fresh layer changes z"),
    broken.NaiveMixInside: ("identity at start", "rounding"),
    broken.FrameTable: ("other T", "T = 40"),
    broken.MixedClips: ("clips do not mix", "clip 0 changes"),
    broken.BatchNormed: ("clips do not mix", "batch: statistics over the batch"),
    broken.Wrapped: ("frames see one another", "wraps around"),
    broken.OneWidth: ("real insertion points", "with attention=: broken_layers.py:"),
    broken.RandomInEvaluation: ("runs", "random numbers in evaluation mode"),
    broken.Float32Inside: ("low precision", "float32 out"),
    broken.NotSaved: ("state_dict", "another result"),
    broken.Overwriting: ("runs", "in place"),
}
# an alpha pushed past 1 shuts the layer off altogether
ALSO = {broken.ClampedAlpha: {"frames see one another"}}


def point(text_channels):
    return InsertionPoint("lab", "attention", 64, 24, text_channels, heads=2)


@pytest.mark.parametrize(
    "make, text_channels, kind",
    [
        (TemporalConv, None, "conv"),
        (TemporalAttention, None, "attention"),
        (TemporalAttention, 12, "attention"),
        (broken.Sound, None, "attention"),
    ],
)
def test_sound_layers_pass(make, text_channels, kind):
    report = lab.check(make, text_channels=text_channels, kind=kind)
    assert report.ok, str(report)
    assert report.parameters == sum(p.numel() for p in make(point(text_channels)).parameters())


def test_context_and_regimes_are_given_and_their_checks_run_only_then():
    report = lab.check(TemporalConv, context_channels=5, regimes=2, kind="conv")
    assert report.ok and report["context"].result == report["regimes"].result == "ok", str(report)
    report = lab.check(TemporalAttention, context_channels=5, regimes=2)
    assert report.ok and {"context", "regimes"} <= set(report.notes)
    assert "context" not in [finding.check for finding in lab.check(TemporalConv).findings]


def test_a_bias_of_the_context_is_found():
    report = lab.check(broken.BiasOfContext, context_channels=5, kind="conv")
    assert report.failed == ["context"] and "zeros" in report["context"].seen


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_each_mistake_is_found_for_its_own_reason(make):
    report = lab.check(make, text_channels=12)
    check, reason = MISTAKES[make]
    assert check in report.failed, str(report)
    assert reason in report[check].seen and report[check].todo
    assert set(report.failed) - {check} <= ALSO.get(make, set()), str(report)


@pytest.mark.parametrize(
    "mix, check", [(broken.NaiveMix, "exact mix"), (broken.TimesZero, "image mode")]
)
def test_a_broken_mix_is_found(mix, check):
    assert lab.check(broken.Sound, mix).failed == [check]


def test_a_mask_that_is_ignored_is_a_note():
    class Blind(broken.Sound):
        def forward(self, z, clip):
            return super().forward(z, Clip(clip.frames))

    assert lab.check(broken.Sound)["mask"].result == "ok"
    assert "mask" in lab.check(Blind).notes


def test_a_class_a_partial_and_a_dict_are_checked_with_their_hyperparameters():
    for make in (
        broken.Scaled,
        functools.partial(broken.Scaled, scale=2.0),
        dict(layer=broken.Scaled, scale=2.0),
    ):
        report = lab.check(make)
        assert report.ok and report.layer == "Scaled", str(report)
    nothing = lab.check(functools.partial(broken.Scaled, scale=0.0))
    assert "frames see one another" in nothing.failed
    with pytest.raises(TypeError, match="give the class Sound, not an instance"):
        lab.check(broken.Sound(point(None)))


def test_norms_over_time_are_a_note_and_no_failure():
    report = lab.check(TemporalConv, kind="conv")
    assert report["norms over time"].result == "note" and "norm1" in report["norms over time"].seen
    assert "norms over time" not in lab.check(TemporalAttention).notes


def test_the_report_prints_as_a_table_with_what_to_do():
    text = str(lab.check(broken.UnzeroedProjection))
    assert "identity at start       FAIL" in text and "do:" in text and "zero-initialise" in text
    assert "1 failed: identity at start" in text
    assert max(map(len, text.splitlines())) <= 112


def test_a_crash_is_reported_with_its_file_and_line():
    class Broken(torch.nn.Module):
        def __init__(self, point):
            super().__init__()

        def forward(self, z, clip):
            return torch.nn.functional.linear(z, torch.zeros(3, 7))  # this line

    report = lab.check(Broken)
    with open(__file__, encoding="utf-8") as file:
        line = next(i for i, text in enumerate(file, 1) if text.endswith("# this line\n"))
    assert report.failed == ["runs"]
    assert report["runs"].seen.startswith(f"test_lab.py:{line}: RuntimeError: ")


def test_checking_leaves_the_readers_random_numbers_alone():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    lab.check(TemporalConv)
    assert torch.equal(torch.rand(3), want)


def test_reach_is_the_kernel_width_of_a_bare_convolution():
    conv = TimeConv(4)
    z = torch.randn(2, 4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = lab.reach(lambda z, clip: conv(z), z, Clip(6))
    i = torch.arange(6)
    assert torch.equal(seen, (i[:, None] - i).abs() <= 1)


def test_reach_says_which_output_depends_on_which_input():
    z = torch.randn(1, 4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    before = lab.reach(lambda z, clip: torch.cat([z[:, :, :1], z[:, :, :-1]], dim=2), z, Clip(5))
    assert [row.nonzero().flatten().tolist() for row in before] == [[0], [0], [1], [2], [3]]
