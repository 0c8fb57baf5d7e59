"""Frames to latents and back; the temporal decoder; the losses of the critic and their weight."""
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.tiny import AUTOENCODER, normal, shaken
from vldm_mini.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Gaussian,
    PatchCritic,
    VideoDecoder,
    adaptive_weight,
    hinge_critic_loss,
    hinge_decoder_loss,
)
from vldm_mini.temporal import TimeConv, insert


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return shaken(Autoencoder(AutoencoderConfig((16, 24), scale=1.7, shift=0.4))).eval()


# -- the Gaussian ---------------------------------------------------------------------------------

def test_the_divergence_is_that_computed_by_hand():
    mean, variance = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 4.0])
    moments = torch.cat([mean, variance.log()])[None, :, None, None]
    # 1/2 (1 + 1 - 1 - 0) + 1/2 (0 + 4 - 1 - log 4)
    assert Gaussian(moments).kl().tolist() == pytest.approx([0.5 + 0.5 * (3 - math.log(4))])
    assert Gaussian(torch.zeros(2, 4, 3, 3)).kl().tolist() == [0, 0], "of the standard normal"


def test_the_divergence_agrees_with_that_of_torch():
    moments = normal(3, 8, 2, 2)
    mean, log_variance = moments.chunk(2, 1)
    own, standard = Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)
    want = kl_divergence(own, standard).sum((1, 2, 3))
    assert torch.allclose(Gaussian(moments).kl(), want, atol=1e-4)


def test_a_log_variance_beyond_reason_is_clamped():
    assert Gaussian(torch.full((1, 2, 1, 1), 1e4)).log_variance.item() == 20
    assert Gaussian(torch.full((1, 2, 1, 1), -1e4)).log_variance.item() == -30


def test_samples_have_the_mean_and_deviation_that_they_should():
    mean = torch.full((1, 1, 100, 100), 2.0)
    moments = torch.cat([mean, torch.full_like(mean, math.log(0.25))], 1)
    z = Gaussian(moments).sample(torch.Generator().manual_seed(0))
    assert float(z.mean()) == pytest.approx(2, abs=0.02)
    assert float(z.std()) == pytest.approx(0.5, abs=0.02)


# -- encoder and decoder --------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("config", [AUTOENCODER, AutoencoderConfig((16,), patch=2),
                                    AutoencoderConfig((16, 16, 24), 3)])
def test_f_is_the_number_of_pixels_of_a_side_for_one_latent(config):
    model = Autoencoder(config)
    z = model.encode(normal(2, 3, 16, 24))
    f = model.factor
    assert f == 2 ** len(config.channels)
    assert z.shape == (2, config.latent_channels, 16 // f, 24 // f)
    assert model.decode(z).shape == (2, 3, 16, 24)


@torch.no_grad()
def test_frames_are_encoded_one_by_one_so_their_order_does_not_matter(model):
    x, order = normal(4, 3, 16, 16), torch.tensor([2, 0, 3, 1])
    z = model.encode(x)
    assert torch.allclose(model.encode(x[order]), z[order], atol=1e-6)
    assert torch.allclose(model.encode(x[1:2]), z[1:2], atol=1e-5)
    assert torch.allclose(model.decode(z[order]), model.decode(z)[order], atol=1e-6)
    assert not torch.allclose(z[0], z[1], atol=0.1)


@torch.no_grad()
def test_latents_are_shifted_and_scaled_and_the_decoder_takes_that_back(model):
    x = normal(2, 3, 16, 16)
    mean = model.posterior(x).mean
    z = model.encode(x)
    assert torch.allclose(z, (mean - 0.4) * 1.7)
    assert torch.allclose(model.decode(z), model.decoder(mean), atol=1e-5)


@torch.no_grad()
def test_encoding_samples_with_a_generator_and_takes_the_mean_without_one(model):
    x = normal(2, 3, 16, 16)

    def draw(seed):
        return torch.Generator().manual_seed(seed)
    assert torch.equal(model.encode(x), model.encode(x))
    assert torch.equal(model.encode(x, draw(1)), model.encode(x, draw(1)))
    assert not torch.equal(model.encode(x, draw(1)), model.encode(x, draw(2)))


@pytest.mark.parametrize("shape", [(2, 3, 18, 16), (2, 3, 16, 6), (2, 1, 16, 16),
                                   (2, 4, 3, 16, 16), (3, 16, 16)])
def test_frames_of_a_wrong_shape_are_refused_with_the_shape_that_fits(model, shape):
    with pytest.raises(ValueError, match=r"\(b, 3, h, w\) with h and w divisible by 4, got \("):
        model.encode(normal(*shape))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4), (2, 5, 4, 4, 4)])
def test_latents_of_a_wrong_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"takes latents \(b, 4, h, w\), got \("):
        model.decode(normal(*shape))


# -- the temporal decoder -------------------------------------------------------------------------

@pytest.mark.parametrize("space", [1, 3])
def test_an_untrained_temporal_decoder_is_the_plain_one_bit_for_bit(model, space):
    z, layers = normal(2, 5, 4, 8, 8), insert(model.decoder, attention=None, space=space)
    with torch.no_grad():
        assert torch.equal(VideoDecoder(model, layers)(z), VideoDecoder(model)(z))
        shaken(layers, 0.2)
        assert not torch.allclose(VideoDecoder(model, layers)(z), VideoDecoder(model)(z), atol=1e-3)
        plain = VideoDecoder(model)(z)[0]
        assert torch.allclose(model.decode(z[0]), plain, atol=1e-5), "without a clip as before"
    layers.remove()


@pytest.mark.parametrize("space, seen", [(1, 1), (3, 9)])
def test_convolutions_over_time_are_as_wide_in_space_as_asked_for(space, seen):
    z = normal(1, 4, 3, 5, 5).requires_grad_()
    TimeConv(4, space)(z)[0, :, 1, 2, 2].sum().backward()
    assert (z.grad.abs().sum(1)[0] > 0).sum((1, 2)).tolist() == [seen] * 3


@torch.no_grad()
@pytest.mark.parametrize("frames, overlap", [(1, 0), (3, 0), (4, 3), (8, 4), (20, 2)])
def test_chunks_are_the_frames_of_the_whole_in_order(model, frames, overlap):
    z, decoder = normal(2, 11, 4, 4, 4), VideoDecoder(model)
    whole, parts = decoder(z), list(decoder.chunks(z, frames, overlap))
    assert [part.shape[1] for part in parts[:-1]] == [frames] * (len(parts) - 1)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert not torch.allclose(whole[:, 1:], whole[:, :-1], atol=0.1), "neighbouring frames differ"


@torch.no_grad()
def test_a_chunk_of_the_temporal_decoder_is_decoded_with_its_neighbours(model):
    layers = shaken(insert(model.decoder, attention=None), 0.1)
    z, decoder = normal(1, 11, 4, 4, 4), VideoDecoder(model, layers)
    parts = list(decoder.chunks(z, frames=4, overlap=3))
    assert [part.shape[1] for part in parts] == [4, 4, 3]
    for part, seen, kept in zip(parts, (slice(0, 7), slice(1, 11), slice(5, 11)),
                                (slice(0, 4), slice(3, 7), slice(3, 6))):
        assert torch.equal(part, decoder(z[:, seen])[:, kept])
    assert torch.equal(torch.cat(list(decoder.chunks(z, frames=11)), dim=1), decoder(z))
    with pytest.raises(ValueError, match="at least one"):
        next(decoder.chunks(z, frames=0))
    layers.remove()


def test_the_critic_of_clips_depends_on_nine_frames(model):
    critic, x = PatchCritic(8, dims=3), normal(1, 3, 21, 32, 32).requires_grad_()
    scores = critic(x)
    assert scores.shape == (1, 1, 21, 3, 3)
    for part in critic:                  # group norm pools over all frames: leave it out
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = lambda z: z
    critic(x)[0, 0, 10].sum().backward()
    seen = x.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert seen == list(range(6, 15))


# -- the critic -----------------------------------------------------------------------------------

def test_hinge_losses_are_those_computed_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    expected = 0.5 * ((0 + 1) / 2 + (0 + 1.5) / 2)
    assert float(hinge_critic_loss(real, fake)) == pytest.approx(expected)
    assert float(hinge_decoder_loss(fake)) == pytest.approx(0.75)


def test_the_critic_scores_patches_and_learns_to_separate_real_from_decoded():
    torch.manual_seed(0)
    critic = PatchCritic(8)
    real, fake = normal(4, 3, 32, 32), normal(4, 3, 32, 32, seed=1) * 0.3
    assert critic(real).shape == (4, 1, 3, 3)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    before = [p.clone() for p in critic.parameters()]
    for _ in range(15):
        optimizer.zero_grad()
        hinge_critic_loss(critic(real), critic(fake)).backward()
        optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(critic.parameters(), before))
    real, fake = normal(4, 3, 32, 32, seed=2), normal(4, 3, 32, 32, seed=3) * 0.3
    assert critic(real).mean() > critic(fake).mean() + 0.5


def test_the_adaptive_weight_is_that_computed_by_hand():
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = 2 * last.sum(), 0.5 * last[0]    # gradients (2, 2), (0.5, 0)
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert float(weight) == pytest.approx(math.sqrt(8) / (0.5 + 1e-4)) and not weight.requires_grad
    assert float(adaptive_weight(reconstruction, 0 * adversarial, last, most=7)) == 7


def test_with_the_adaptive_weight_both_losses_have_the_same_gradient_norm_on_the_last_layer(model):
    critic, x = PatchCritic(8), normal(2, 3, 32, 32)
    x_hat = model.decode(model.encode(x))
    reconstruction, adversarial = (x - x_hat).abs().mean(), hinge_decoder_loss(critic(x_hat))
    last = model.decoder.last_layer
    assert last.shape[0] == 12                # 3 colours of 2 x 2 pixels
    weight = adaptive_weight(reconstruction, adversarial, last)

    def norm(loss):
        return float(torch.autograd.grad(loss, last, retain_graph=True)[0].norm())
    assert norm(weight * adversarial) == pytest.approx(norm(reconstruction), rel=1e-3)
