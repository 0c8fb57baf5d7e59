"""The image backbone: labels that can be left out, sizes that fit, blocks that start by adding
nothing."""

import pytest
import torch
from torch import nn

from tests.tiny import UNET, normal, shaken, tiny_unet
from vldm_mini.blocks import (
    Attention,
    Downsample,
    FeedForward,
    ResBlock,
    SpatialAttention,
    Upsample,
    sinusoidal_embedding,
)
from vldm_mini.training.sizes import SIZES
from vldm_mini.unet import UNet, UNetConfig, add_input_channels
from vldm_mini.weights import parameter_table

TAU = torch.tensor([10, 900])
LABELS = torch.tensor([[1, 2], [3, 8]])


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@torch.no_grad()
def test_the_null_label_is_exactly_no_label(unet):
    z = normal(2, 4, 8, 8)
    assert torch.equal(unet(z, TAU, unet.null_labels(2)), unet(z, TAU))
    assert torch.equal(unet(z, TAU, torch.tensor([[4, 9], [4, 9]])), unet(z, TAU))
    assert not torch.equal(unet(z, TAU, LABELS), unet(z, TAU))


@torch.no_grad()
def test_each_label_can_be_given_alone(unet):
    z = normal(1, 4, 8, 8)
    ask = lambda *labels: unet(z, torch.tensor([500]), torch.tensor([labels]))
    answers = [ask(1, 2), ask(1, 9), ask(4, 2), ask(4, 9)]
    assert all(not torch.equal(a, b) for i, a in enumerate(answers) for b in answers[:i])


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 2), (8, 8), (6, 16)])
def test_any_size_divisible_by_its_factor_passes_and_keeps_its_shape(unet, size):
    assert unet(normal(2, 4, *size), TAU, LABELS).shape == (2, 4, *size)


@pytest.mark.parametrize(
    "shape", [(2, 4, 7, 8), (2, 4, 8, 9), (2, 3, 8, 8), (2, 5, 4, 8, 8), (4, 8, 8)]
)
def test_a_wrong_shape_is_refused_with_the_shape_that_fits(unet, shape):
    with pytest.raises(
        ValueError,
        match=r"takes \(b, 4, h, w\) with h and w divisible by 2, got \(" + str(shape[0]),
    ):
        unet(normal(*shape), TAU)


@pytest.mark.parametrize("labels", [LABELS[:1], LABELS[:, :1], LABELS[0]])
def test_labels_of_a_wrong_shape_are_refused(unet, labels):
    with pytest.raises(ValueError, match=r"labels must be \(2, 2\)"):
        unet(normal(2, 4, 8, 8), TAU, labels)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_neighbour_in_the_batch(unet):
    z, other = normal(2, 4, 8, 8), normal(2, 4, 8, 8)
    other[1] = 7.0
    assert torch.equal(unet(z, TAU, LABELS)[0], unet(other, TAU, LABELS)[0])
    assert not torch.equal(unet(z, TAU, LABELS)[1], unet(other, TAU, LABELS)[1])


@torch.no_grad()
def test_one_tau_for_all_is_that_tau_for_each(unet):
    z = normal(2, 4, 8, 8)
    assert torch.equal(unet(z, torch.tensor(300)), unet(z, torch.tensor([300, 300])))
    assert not torch.equal(unet(z, torch.tensor(300)), unet(z, torch.tensor(301)))


@torch.no_grad()
def test_a_fresh_network_outputs_zero():
    assert not UNet(UNET)(normal(2, 4, 8, 8), TAU, LABELS).any()


def test_training_teaches_it_what_a_label_means():
    """The answer to learn is +1 for label 0 and -1 for label 1, and nothing but the label
    differs."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**{**vars(UNET), "labels": (2,)}))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    tau, labels = torch.full((8,), 500), torch.arange(8)[:, None] % 2
    want = (1 - 2 * labels.float())[..., None, None].expand(8, 4, 4, 4)
    # other frames at every step: were all alike, both labels would pull at the untrained
    # end with one force, and cancel
    for step in range(30):
        loss = (model(normal(8, 4, 4, 4, seed=step), tau, labels) - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = model(normal(1, 4, 4, 4, seed=99).expand(2, 4, 4, 4), tau[:2], labels[:2]).mean(
            (1, 2, 3)
        )
    assert loss < 0.3 and said[0] > 0.6 and said[1] < -0.6


def test_every_weight_gets_a_gradient_once_no_end_is_zero():
    model = tiny_unet()
    model(normal(2, 4, 8, 8), TAU, LABELS).square().mean().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7
    ] == []


@pytest.mark.parametrize("size", SIZES)
def test_no_norm_swallows_the_embedding_of_tau(size):
    """With one channel a group, group norm takes away any number added to a whole channel: tau
    would do nothing."""
    with torch.device("meta"):
        model = UNet(SIZES[size].unet)
    norms = [block.norm2 for block in model.modules() if isinstance(block, ResBlock)]
    assert norms and all(norm.num_channels > norm.num_groups for norm in norms)


def test_the_parameter_table_adds_up(unet):
    lines = parameter_table(unet).splitlines()
    counts = [int(line.split()[-1].replace(",", "")) for line in lines]
    assert counts[-1] == sum(counts[:-1]) == sum(p.numel() for p in unet.parameters())
    parts = ["time_embed", "label_embed", "conv_in", "down", "mid", "up", "norm_out", "conv_out"]
    assert [line.split()[0] for line in lines] == [*parts, "total"]


# -- blocks ---------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "block, x",
    [(ResBlock(16, 16), normal(2, 16, 4, 4)), (SpatialAttention(16, 2), normal(2, 16, 4, 4))],
    ids=["residual", "attention"],
)
def test_a_fresh_block_adds_nothing_and_a_trained_one_something(block, x):
    assert torch.equal(block(x), x)
    assert not torch.allclose(shaken(block)(x), x)


@torch.no_grad()
def test_attention_sees_every_token_and_a_mask_hides_some():
    attention, x, changed = shaken(Attention(8, 2)), normal(1, 5, 8), normal(1, 5, 8)
    changed[:, 4] += 1
    assert not torch.equal(attention(x)[:, 0], attention(changed)[:, 0])
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:4, 4] = False
    assert torch.equal(attention(x, mask=mask)[:, :4], attention(changed, mask=mask)[:, :4])


@torch.no_grad()
def test_attention_is_softmax_of_q_k_over_the_root_of_the_width_times_v():
    attention, x = shaken(Attention(8, 1), 0.5), normal(1, 5, 8)
    q, k, v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    want = attention.to_out((q @ k.mT / 8**0.5).softmax(-1) @ v)
    assert torch.allclose(attention(x), want, atol=1e-5)


def test_heads_must_share_the_channels_evenly():
    with pytest.raises(ValueError, match="10 channels cannot be shared by 4 heads"):
        Attention(10, 4)


def test_the_embedding_of_a_number_is_cosines_then_sines_of_falling_frequency():
    emb = sinusoidal_embedding(torch.tensor([0, 2]), 4)
    assert emb[0].tolist() == [1, 1, 0, 0]
    angle = torch.tensor([2.0, 2.0 / 100])  # frequencies 1 and 10000^(-1/2)
    assert torch.allclose(emb[1], torch.cat([angle.cos(), angle.sin()]))
    with pytest.raises(ValueError, match="dim must be even, got 5"):
        sinusoidal_embedding(torch.tensor([0]), 5)


@torch.no_grad()
def test_resolutions_halve_and_double():
    x = normal(1, 8, 6, 4)
    assert Downsample(8, 12)(x).shape == (1, 12, 3, 2) and Upsample(8, 4)(x).shape == (1, 4, 12, 8)


@torch.no_grad()
def test_feed_forward_treats_each_token_alone():
    layer, x = shaken(FeedForward(8)), normal(1, 5, 8)
    assert isinstance(layer.down, nn.Linear) and torch.allclose(
        layer(x)[:, 2:3], layer(x[:, 2:3]), atol=1e-6
    )


# -- a picture beside z ---------------------------------------------


@torch.no_grad()
def test_added_input_channels_change_nothing_until_they_are_trained():
    plain = tiny_unet()
    wide, z, tau, picture = (
        add_input_channels(plain, 3),
        normal(2, 4, 8, 8),
        torch.tensor([100, 700]),
        normal(2, 3, 8, 8, seed=1),
    )
    assert torch.equal(wide(z, tau), wide(z, tau, concat=picture))
    assert torch.allclose(wide(z, tau, concat=picture), plain(z, tau), atol=1e-5)
    with torch.enable_grad():
        wide(z, tau, concat=picture).square().mean().backward()
    assert wide.conv_in.weight.grad[:, 4:].abs().min() > 0
    shaken(wide)
    assert not torch.allclose(wide(z, tau), wide(z, tau, concat=picture))
    assert torch.equal(wide(z, tau), wide(z, tau, concat=torch.zeros_like(picture)))


@pytest.mark.parametrize(
    "channels, given", [(3, (2, 3, 8, 4)), (3, (2, 2, 8, 8)), (0, (2, 3, 8, 8))]
)
def test_another_picture_than_the_network_takes_is_refused(channels, given):
    with pytest.raises(ValueError, match=r"concat must be \(2, ., 8, 8\), got"):
        tiny_unet(concat_channels=channels)(
            normal(2, 4, 8, 8), torch.tensor([5, 5]), concat=normal(*given)
        )


def test_the_gradient_is_that_of_finite_differences():
    """It flows through every skip connection, and not through the main path alone."""
    unet = tiny_unet().double()
    z, direction = normal(1, 4, 4, 4).double().requires_grad_(), normal(1, 4, 4, 4).double()
    weight = unet.conv_in.weight
    loss = lambda: (unet(z, TAU[:1], LABELS[:1]) * direction).sum()
    for x in (z, weight):
        by_autograd = torch.autograd.grad(loss(), x)[0]
        step = 1e-4 * normal(*x.shape).double()
        with torch.no_grad():
            x += step
            above = loss()
            x -= 2 * step
            difference = above - loss()
            x += step
        assert float(difference) == pytest.approx(2 * float((by_autograd * step).sum()), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype, error", [(torch.float64, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)
def test_other_number_formats_are_close_to_float32(unet, dtype, error):
    z = normal(2, 4, 8, 8)
    wanted = unet(z, TAU, LABELS)
    found = tiny_unet().to(dtype)(z.to(dtype), TAU, LABELS)
    assert found.dtype == dtype
    assert float((found.float() - wanted).norm() / wanted.norm()) < error
