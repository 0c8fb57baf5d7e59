"""Temporal layers turn an image model into a video model and leave the image model exactly as it
was.

Where a fresh layer is compared with the image model, the backbone's own zero-initialised ends are
random: a network
that answers 0 would pass every test.
"""

import pytest
import torch
from torch import nn

from tests.tiny import AUTOENCODER, copies, normal, same, shaken, tiny_unet
from vldm_mini.autoencoder import Decoder
from vldm_mini.diffusion import Schedule, denoising_loss
from vldm_mini.temporal import (
    Clip,
    InsertionPoint,
    TemporalConv,
    TemporalLayers,
    TemporalMix,
    VideoModel,
    band,
    insert,
    insertion_points,
    temporal_parameters,
)

TAU, LABELS = torch.tensor([100, 700]), torch.tensor([[1, 2], [3, 8]])


class Case:
    """A backbone with random weights, clips z (2 t c h w) for it, and what it is called with."""

    def __init__(self, kind):
        torch.manual_seed(0)
        self.backbone = tiny_unet() if kind == "unet" else shaken(Decoder(AUTOENCODER)).eval()
        self.tau, self.cond = (TAU, dict(labels=LABELS)) if kind == "unet" else (None, {})

    def clips(self, t=4, seed=0):
        return normal(2, t, 4, 4, 4, seed=seed)

    def model(self, **options):
        torch.manual_seed(0)
        return VideoModel(self.backbone, insert(self.backbone, **options)).eval()

    @torch.no_grad()
    def call(self, model, z, **more):
        return model(z, self.tau, **self.cond, **more)

    @torch.no_grad()
    def frames(self, z):
        """The bare image model on the frames of z, all in one batch."""
        args = () if self.tau is None else (self.tau.repeat_interleave(z.shape[1]),)
        cond = {k: x.repeat_interleave(z.shape[1], 0) for k, x in self.cond.items()}
        return self.backbone(z.flatten(0, 1), *args, **cond).unflatten(0, z.shape[:2])


@pytest.fixture(params=["unet", "decoder"])
def case(request):
    return Case(request.param)


@pytest.fixture
def unet():
    return Case("unet")


def trained(model, steps=4):
    """A few real steps of eq. (2) on phi alone."""
    optimizer = torch.optim.AdamW(temporal_parameters(model.layers), 1e-2)
    x, eps = normal(2, 4, 4, 4, 4, seed=3), normal(2, 4, 4, 4, 4, seed=4)
    for _ in range(steps):
        optimizer.zero_grad()
        denoising_loss(
            Schedule.linear(), lambda z, tau: model(z, tau, labels=LABELS), x, TAU, eps
        ).mean().backward()
        optimizer.step()
    return model


# -- nothing changes ---------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(per="channel"),
        dict(per=4),
        dict(alpha=0.62),
        dict(conv=None),
        dict(ff_in=False, ff_mult=1),
        dict(attention=None),
    ],
    ids=str,
)
def test_fresh_temporal_layers_change_nothing_at_all(case, options):
    if options == dict(conv=None) and case.tau is None:
        return  # our decoder has no attention to follow
    z = case.clips()
    image = case.frames(z)
    model = case.model(**options)
    assert torch.equal(case.call(model, z), image) and image.std() > 1e-3
    shaken(model.layers)
    assert not torch.allclose(case.call(model, z), image)  # and the layers are really there


def test_alpha_1_is_exactly_the_image_model_whatever_the_temporal_weights(case):
    z = case.clips()
    image, model = case.frames(z), case.model()
    shaken(model.layers, size=1.0)
    assert not torch.equal(case.call(model, z), image)
    model.layers.set_alpha(1.0)
    assert torch.equal(case.call(model, z), image)
    model.layers.set_alpha(None)
    assert not torch.equal(case.call(model, z), image)


def test_after_training_alpha_1_is_the_image_model_and_the_spatial_weights_are_unchanged(
    unet,
):
    z, before = unet.clips(), copies(unet.backbone)
    image = unet.frames(z)
    model = trained(unet.model())
    assert not torch.equal(unet.call(model, z), image)
    model.layers.set_alpha(1.0)
    assert torch.equal(unet.call(model, z), image)
    assert same(copies(unet.backbone), before)


@torch.no_grad()
def test_the_mix_is_exact_where_the_plain_mix_of_the_paper_is_not():
    """alpha z + (1 - alpha) z is not z in float32 for several in a hundred numbers; z + (1 -
    alpha) (z - z) is."""

    class Same(nn.Module):
        def forward(self, z, clip):
            return z

    z, point = normal(1, 8, 4, 32, 32), InsertionPoint("", "conv", 8)
    mix = TemporalMix(Same(), point, alpha=0.62)
    assert torch.equal(mix(z, Clip(4)), z)
    naive = mix.alpha * z + (1 - mix.alpha) * z
    assert 0.02 < (naive != z).float().mean() < 0.5
    # and where both are not exact, they are the same formula
    mix.layer = TemporalConv(InsertionPoint("", "conv", 8, groups=4))
    shaken(mix.layer, 0.5)
    assert torch.allclose(
        mix(z, Clip(4)), mix.alpha * z + (1 - mix.alpha) * mix.layer(z, Clip(4)), atol=1e-5
    )


@torch.no_grad()
def test_the_wrapper_by_itself_skips_its_layer_in_image_mode():
    mix, z = TemporalMix(nn.Identity(), InsertionPoint("", "conv", 8)), normal(1, 8, 4, 2, 2)
    mix.layer.forward = lambda z, clip: z * float("nan")
    assert torch.equal(mix(z, Clip(4, image=True)), z) and mix(z, Clip(4)).isnan().all()


def test_image_mode_skips_the_layers_even_broken_ones(case):
    z = case.clips()
    image, model = case.frames(z), case.model()
    with torch.no_grad():
        for p in model.layers.parameters():
            p.fill_(float("nan"))
    assert case.call(model, z).isnan().any()
    assert torch.equal(case.call(model, z, image=True), image)


def test_outside_a_video_model_and_after_remove_the_backbone_is_the_image_model(case):
    z = case.clips()
    image, model = case.frames(z), case.model()
    shaken(model.layers)
    assert torch.equal(case.frames(z), image)  # called alone, layers still hanging on it
    with pytest.raises(RuntimeError):
        case.call(model, normal(2, 4, 4, 4, 4).double())  # a call that fails half-way
    assert torch.equal(case.frames(z), image)
    model.layers.remove()
    assert torch.equal(case.call(model, z), image)


def test_the_backbone_keeps_its_keys_and_its_modules(case):
    keys, modules = list(case.backbone.state_dict()), [id(m) for m in case.backbone.modules()]
    model = case.model()
    assert (
        list(case.backbone.state_dict()) == keys
        and [id(m) for m in case.backbone.modules()] == modules
    )
    assert all(k.startswith(("backbone.", "layers.")) for k in model.state_dict())


def test_temporal_parameters_are_all_of_phi_and_none_of_theta(case):
    model = case.model()
    phi, theta = (
        {id(p) for p in temporal_parameters(model.layers)},
        {id(p) for p in case.backbone.parameters()},
    )
    assert phi and not phi & theta and phi | theta == {id(p) for p in model.parameters()}


def test_one_temporal_layer_follows_each_residual_block_and_each_spatial_attention(unet):
    found = insertion_points(unet.backbone)
    layers = insert(unet.backbone)
    assert [point.kind for _, point in found].count("conv") == 2 + 2 + 4 and len(found) == 8 + 4
    assert list(layers.alphas()) == [point.name.replace(".", "-") for _, point in found]
    assert all(alpha == pytest.approx(0.5) for alpha in layers.alphas().values())


# -- frames see one another, clips do not ---------------------------------------------


def changed_frames(case, model, t=5, k=2, **more):
    """Which frames of the answer change when frame k of the clips does -> list of bool."""
    z, other = case.clips(t), case.clips(t)
    other[:, k] += 1
    a, b = case.call(model, z, **more), case.call(model, other, **more)
    return [not torch.equal(a[:, i], b[:, i]) for i in range(t)]


@pytest.mark.parametrize("options", [{}, dict(conv=None), dict(attention=None)], ids=str)
def test_a_changed_frame_changes_the_others_and_in_image_mode_it_does_not(unet, options):
    model = unet.model(**options)
    shaken(model.layers, 0.3)
    assert changed_frames(unet, model) == [True] * 5
    assert changed_frames(unet, model, image=True) == [False, False, True, False, False]


def test_in_the_decoder_too_a_changed_frame_changes_the_others():
    case = Case("decoder")
    model = case.model()
    shaken(model.layers, 0.3)
    assert changed_frames(case, model) == [True] * 5
    assert changed_frames(case, model, image=True) == [False, False, True, False, False]


def test_a_clip_does_not_depend_on_the_other_clip_of_its_batch(case):
    model = case.model()
    shaken(model.layers, 0.3)
    z, other = case.clips(), case.clips()
    other[1] = normal(4, 4, 4, 4, seed=9)
    a, b = case.call(model, z), case.call(model, other)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@torch.no_grad()
def test_a_batch_of_clips_is_a_loop_over_clips(unet):
    model, z = unet.model(), unet.clips()
    shaken(model.layers, 0.3)
    alone = torch.cat(
        [model(z[i : i + 1], TAU[i : i + 1], labels=LABELS[i : i + 1]) for i in range(2)]
    )
    assert torch.allclose(unet.call(model, z), alone, atol=1e-4)


@pytest.mark.parametrize("t", [1, 3, 16, 40])
def test_any_number_of_frames_passes(case, t):
    model, z = case.model(), case.clips(t)
    assert torch.equal(case.call(model, z), case.frames(z))
    shaken(model.layers)
    y = case.call(model, z)
    assert y.shape[:2] == (2, t) and y.isfinite().all() and not torch.equal(y, case.frames(z))


def test_the_order_of_frames_matters_through_attention_alone(unet):
    """Attention without positions would answer a shuffled clip with the shuffled answer."""
    model, order = unet.model(conv=None), torch.tensor([3, 0, 2, 1])
    shaken(model.layers, 0.3)
    z = unet.clips()
    assert not torch.allclose(
        unet.call(model, z[:, order]), unet.call(model, z)[:, order], atol=1e-3
    )
    at_once = unet.call(model, z[:, order], positions=order)  # given where the frames belong
    assert torch.allclose(at_once, unet.call(model, z)[:, order], atol=1e-4)


def test_positions_are_0_1_2_unless_given(unet):
    model, z = unet.model(), unet.clips()
    shaken(model.layers, 0.3)
    assert torch.equal(unet.call(model, z), unet.call(model, z, positions=torch.arange(4)))
    assert not torch.equal(
        unet.call(model, z), unet.call(model, z, positions=torch.arange(4) * 500)
    )


def test_a_mask_hides_frames_in_attention(unet):
    """Two halves that may not see one another; and a band: through 4 layers influence goes 4
    frames far, no further."""
    model = unet.model(conv=None)
    shaken(model.layers, 0.3)
    half = torch.arange(6) < 3
    assert changed_frames(unet, model, 6, 1, mask=half[:, None] == half) == [True] * 3 + [False] * 3
    i = torch.arange(12)
    reached = changed_frames(unet, model, 12, 0, mask=(i[:, None] - i).abs() <= 1)
    assert reached == [True] * 5 + [False] * 7 and len(model.layers.mixes) == 4


@torch.no_grad()
def test_a_regime_adds_its_own_embedding_to_every_frame_and_position_of_its_clip():
    layer = TemporalConv(InsertionPoint("", "conv", 8, groups=4, regimes=2))
    shaken(layer, 0.3)
    layer.conv1.weight.zero_()  # what is left is a bias, then the regime
    layer.conv1.bias.zero_()
    z, row = normal(2, 8, 4, 3, 3), layer.regime.weight[torch.tensor([1, 0])]
    y = row[:, :, None, None, None].expand(2, 8, 4, 3, 3)
    want = z + layer.conv2(nn.functional.silu(layer.norm2(y)))
    got = layer(z, Clip(4, regime=torch.tensor([1, 0])))
    assert torch.allclose(got, want, atol=1e-6)
    assert not torch.allclose(got, layer(z, Clip(4, regime=torch.tensor([0, 1]))), atol=1e-3)


def test_the_band_reaches_as_far_as_it_says():
    assert band(4, 1).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, True],
        [False, False, True, True],
    ]
    assert band(8, 7).all() and not band(9, 7)[0, 8] and band(9, 7)[0, 7]


# -- everything learns ---------------------------------------------


@pytest.mark.parametrize("per", ["scalar", "channel", 4])
def test_every_temporal_weight_gets_a_gradient_within_two_steps_and_alpha_moves(unet, per):
    model, seen = unet.model(per=per, text_channels=12), set()
    optimizer = torch.optim.AdamW(temporal_parameters(model.layers), 1e-2)
    before, text = model.layers.alphas(), normal(2, 5, 12, seed=7)
    for _ in range(2):
        optimizer.zero_grad()
        y = model(unet.clips(), TAU, text=text, **unet.cond)
        (y - normal(*y.shape, seed=5)).square().mean().backward()
        seen |= {
            name
            for name, p in model.layers.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        optimizer.step()
    assert sorted(seen) == sorted(name for name, _ in model.layers.named_parameters())
    assert all(
        alpha != before[name] and 0 < alpha < 1 for name, alpha in model.layers.alphas().items()
    )


@pytest.mark.parametrize("alpha", [0, 1, 1.5])
def test_an_alpha_from_which_nothing_would_learn_is_refused(unet, alpha):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        insert(unet.backbone, alpha=alpha)


def test_alpha_can_be_had_per_scalar_channel_or_frame(unet):
    shapes = lambda per: {
        tuple(mix.alpha.shape) for mix in insert(unet.backbone, per=per).mixes.values()
    }
    assert (
        shapes("scalar") == {()}
        and shapes("channel") == {(16, 1, 1, 1), (32, 1, 1, 1)}
        and shapes(4) == {(4, 1, 1)}
    )


def test_one_alpha_a_frame_mixes_each_frame_by_its_own(unet):
    model, z = unet.model(per=4, attention=None), unet.clips()
    shaken(model.layers, 0.3)
    with torch.no_grad():
        for mix in model.layers.mixes.values():
            mix.mix[:] = torch.tensor([60.0, 0.0, 0.0, 60.0])[:, None, None]  # alpha 1 at both ends
    y, image = unet.call(model, z), unet.frames(z)
    assert torch.equal(y[:, [0, 3]], image[:, [0, 3]]) and not torch.allclose(
        y[:, 1:3], image[:, 1:3]
    )
    with pytest.raises(ValueError, match="one alpha a frame for 4 frames, and the clip has 6"):
        unet.call(model, unet.clips(6))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_fixed_alpha_lies_between_0_and_1(unet, alpha):
    with pytest.raises(ValueError, match=r"alpha lies in \[0, 1\]"):
        insert(unet.backbone).set_alpha(alpha)


# -- text ---------------------------------------------


def test_text_is_read_and_frames_still_see_one_another(unet):
    """Attention to the text in place of attention to the frames would leave the frames blind to
    one another."""
    model, z, text = unet.model(conv=None, text_channels=12), unet.clips(), normal(2, 5, 12, seed=1)
    assert torch.equal(unet.call(model, z, text=text), unet.frames(z))
    shaken(model.layers, 0.3)
    assert not torch.allclose(
        unet.call(model, z, text=text), unet.call(model, z, text=text + 1), atol=1e-4
    )
    assert changed_frames(unet, model, text=text) == [True] * 5


def test_each_clip_reads_its_own_text(unet):
    model, z, text, other = (
        unet.model(text_channels=12),
        unet.clips(),
        normal(2, 5, 12),
        normal(2, 5, 12),
    )
    shaken(model.layers, 0.3)
    other[1] = 3.0
    a, b = unet.call(model, z, text=text), unet.call(model, z, text=other)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


def test_layers_that_read_a_text_ask_for_it(unet):
    with pytest.raises(ValueError, match=r"give text=\(b, l, d\)"):
        unet.call(unet.model(text_channels=12), unet.clips())


# -- a reader's own layer ---------------------------------------------


class OwnShift(nn.Module):
    """What a reader may write: a learned share of the frame before."""

    def __init__(self, point):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(point.channels, 1, 1, 1))
        self.register_buffer("count", torch.tensor([70001]))

    def forward(self, z, clip):
        return z + self.share * z.roll(1, dims=2)


def test_an_own_layer_goes_in_with_one_word_and_its_source_is_saved_beside_its_weights(
    unet, tmp_path
):
    model, z = unet.model(attention=OwnShift), unet.clips()
    assert torch.equal(unet.call(model, z), unet.frames(z))
    shaken(model.layers, 0.3)
    y = unet.call(model, z)
    model.layers.save_pretrained(tmp_path, card="# mine\n")
    source = (tmp_path / "OwnShift.py.txt").read_text()
    assert "class OwnShift(nn.Module):" in source and "import torch\n" in source
    assert (tmp_path / "README.md").read_text() == "# mine\n"
    model.layers.remove()
    again = TemporalLayers.from_pretrained(tmp_path, unet.backbone, attention=OwnShift)
    assert torch.allclose(unet.call(VideoModel(unet.backbone, again), z), y, atol=0.02)
    assert all(int(x) == 70001 for k, x in again.state_dict().items() if k.endswith("count"))


def test_an_own_layer_is_loaded_with_the_class_given_and_no_other(unet, tmp_path):
    insert(unet.backbone, attention=OwnShift).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"attention=OwnShift, .*give it.*OwnShift\.py\.txt"):
        TemporalLayers.from_pretrained(tmp_path, unet.backbone)


# -- saved and loaded, and the door ---------------------------------------------


def test_saved_layers_come_back_with_their_settings_and_exact_alphas(unet, tmp_path):
    model, z = unet.model(alpha=0.3, text_channels=12, ff_mult=1, ff_in=False), unet.clips()
    shaken(model.layers)
    text, alphas = normal(2, 5, 12), model.layers.alphas()
    y = unet.call(model, z, text=text)
    model.layers.save_pretrained(tmp_path)
    model.layers.remove()
    again = TemporalLayers.from_pretrained(tmp_path, unet.backbone)
    assert again.alphas() == alphas and not again.training
    assert torch.allclose(unet.call(VideoModel(unet.backbone, again), z, text=text), y, atol=0.02)


def test_layers_made_without_a_kind_come_back_without_it(unet, tmp_path):
    insert(unet.backbone, conv=None).save_pretrained(tmp_path)
    assert len(TemporalLayers.from_pretrained(tmp_path, unet.backbone).mixes) == 4


def test_layers_of_another_size_are_refused_by_name(unet, tmp_path):
    insert(unet.backbone).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another size: mixes.* use the --size"):
        TemporalLayers.from_pretrained(tmp_path, tiny_unet(channels=(32, 64)))


def test_a_folder_without_layers_is_named(unet, tmp_path):
    with pytest.raises(FileNotFoundError, match="no temporal layers at .*nowhere"):
        TemporalLayers.from_pretrained(tmp_path / "nowhere", unet.backbone)


def test_a_video_model_takes_clips_only(unet):
    with pytest.raises(ValueError, match=r"takes clips \(b, t, c, h, w\), got \(2, 4, 8, 8\)"):
        unet.model()(normal(2, 4, 8, 8), TAU)


def test_a_backbone_without_spatial_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no spatial layer"):
        insert(nn.Linear(2, 2))
