"""lab.check passes sound temporal layers and finds the mistake of each broken one."""
import pytest
import torch

from vldm_mini import lab
from vldm_mini.temporal import InsertionPoint, TemporalAttention, TemporalConv

from . import broken_layers as broken

PLACE = lambda text: InsertionPoint("lab", "attention", 64, 24, text, heads=2)                                 # noqa: E731
# layer -> the check that must fail, and a word of the reason it must give
MISTAKES = {
    broken.TextAsKeysAndValues: ("frames see one another", "text only"),
    broken.ClampedAlpha: ("gradient", "only a mixing scalar"),
    broken.AllZero: ("gradient", "zero times zero"),
    broken.TokenShift: ("identity at start", "token shift"),
    broken.CausalDirac: ("identity at start", "delay"),
    broken.UnzeroedProjection: ("identity at start", "a fresh layer changes z"),
    broken.NaiveBlend: ("identity at start", "rounding"),
    broken.FrameTable: ("other T", "T = 40"),
    broken.MixedClips: ("clips do not mix", "clip 0 moves"),
    broken.Float32Inside: ("low precision", "float32 out"),
    broken.NotSaved: ("state_dict", "another answer"),
    broken.InPlace: ("runs", "in place"),
}
ALSO = {broken.ClampedAlpha: {"frames see one another"}}        # an alpha pushed past 1 shuts the layer off altogether


@pytest.mark.parametrize("make, text_channels", [(TemporalConv, None), (TemporalAttention, None),
                                                 (TemporalAttention, 12), (broken.Sound, None)])
def test_sound_layers_pass(make, text_channels):
    report = lab.check(make, text_channels=text_channels)
    assert report.ok, str(report)
    assert report.parameters == sum(p.numel() for p in make(PLACE(text_channels)).parameters())


def test_a_layer_that_hears_context_and_regime_is_given_both():
    report = lab.check(TemporalConv, context_channels=5, regimes=2)
    assert report.ok, str(report)


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_each_mistake_is_found_for_its_own_reason(make):
    report = lab.check(make, text_channels=12)
    check, reason = MISTAKES[make]
    assert check in report.failed, str(report)
    assert reason in report[check].seen and report[check].todo
    assert set(report.failed) - {check} <= ALSO.get(make, set()), str(report)


@pytest.mark.parametrize("mix, check", [(broken.NaiveMix, "exact blend"), (broken.TimesZero, "image mode")])
def test_a_broken_mix_is_found(mix, check):
    assert lab.check(broken.Sound, mix).failed == [check]


def test_norms_over_time_are_a_note_and_no_failure():
    report = lab.check(TemporalConv)
    assert report["norms over time"].result == "note" and "norm1" in report["norms over time"].seen
    assert "norms over time" not in lab.check(TemporalAttention).notes


def test_the_report_prints_as_a_table_with_what_to_do():
    text = str(lab.check(broken.UnzeroedProjection))
    assert "identity at start       FAIL" in text and "do:" in text and "zero-initialise" in text
    assert "1 failed: identity at start" in text
    assert max(map(len, str(lab.check(broken.UnzeroedProjection)).splitlines())) <= 120


def test_a_layer_that_cannot_run_ends_in_a_report():
    class Broken(torch.nn.Module):
        def __init__(self, place):
            super().__init__()

        def forward(self, z, clip):
            raise RuntimeError("no such axis")
    report = lab.check(Broken)
    assert report.failed == ["runs"] and "no such axis" in str(report)


def test_checking_leaves_the_readers_random_numbers_alone():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    lab.check(TemporalConv)
    assert torch.equal(torch.rand(3), want)


def test_reach_is_the_kernel_width_of_a_bare_convolution():
    from vldm_mini.temporal import Clip, TimeConv
    conv = TimeConv(4)
    z = torch.randn(2, 4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = lab.reach(lambda z, clip: conv(z), z, Clip(6))
    i = torch.arange(6)
    assert torch.equal(seen, (i[:, None] - i).abs() <= 1)
