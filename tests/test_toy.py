"""The toy worlds: every closed form against autograd, numerical integration, Monte Carlo or a
hand-computed case."""

import math

import pytest
import torch

from vldm_mini import temporal
from vldm_mini.datasets import toy
from vldm_mini.diffusion import Schedule, add_noise, ddim, ddim_times, target, to_eps, to_x0
from vldm_mini.unet import UNet, UNetConfig

SCHEDULE = Schedule.linear()
TAUS = (0, 20, 300, 900, 999)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(tau):
    return float(SCHEDULE.alpha_tau[tau]), float(SCHEDULE.sigma_tau[tau])


@pytest.fixture
def world():
    """Two unlike, correlated modes in three dimensions."""
    a = torch.randn(2, 3, 3, generator=rng(1), dtype=torch.float64)
    return toy.GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.randn(2, 3, generator=rng(2)), a @ a.mT / 3
    )


def points(world, n=64, seed=3):
    return world.sample(n, rng(seed), dtype=torch.float64)


# -- one mixture ---------------------------------------------------------------------------------


def test_density_sums_to_one_and_its_log_is_that_of_torch(world):
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]
    assert torch.trapezoid(
        toy.two_modes().log_density(grid).exp(), grid[:, 0]
    ).item() == pytest.approx(1, abs=1e-9)
    normal = torch.distributions.MultivariateNormal(world.means, world.covs)
    x = points(world)
    expected = (normal.log_prob(x[:, None]) + world.weights.log()).logsumexp(1)
    assert torch.allclose(world.log_density(x), expected)


def test_score_is_the_gradient_of_the_log_density(world):
    for tau in TAUS:
        noised = world.noised(*levels(tau))
        x = points(noised).requires_grad_()
        (gradient,) = torch.autograd.grad(noised.log_density(x).sum(), x)
        assert torch.allclose(noised.score(x.detach()), gradient, atol=1e-9)


def test_samples_have_the_closed_form_moments_and_mode_shares(world):
    x = points(world, 60_000)
    mean, cov = world.moments()
    assert (x.mean(0) - mean).abs().max() < 0.03 and (x.T.cov() - cov).abs().max() < 0.06
    assert torch.allclose(world.responsibilities(x).mean(0), world.weights, atol=0.01)
    assert torch.equal(world.sample(5, rng()), world.sample(5, rng()))


def test_noised_is_the_distribution_of_noised_samples(world):
    alpha_tau, sigma_tau = levels(300)
    z = alpha_tau * points(world, 60_000) + sigma_tau * torch.randn(
        60_000, 3, generator=rng(5), dtype=torch.float64
    )
    mean, cov = world.noised(alpha_tau, sigma_tau).moments()
    assert (z.mean(0) - mean).abs().max() < 0.02 and (z.T.cov() - cov).abs().max() < 0.04


def test_posterior_mean_is_tweedie(world):
    for tau in TAUS:
        alpha_tau, sigma_tau = levels(tau)
        noised = world.noised(alpha_tau, sigma_tau)
        z = points(noised)
        tweedie = (z + sigma_tau**2 * noised.score(z)) / alpha_tau
        assert torch.allclose(world.posterior_mean(z, alpha_tau, sigma_tau), tweedie, atol=1e-6)


def test_posterior_mean_is_bayes_integrated_numerically():
    line, (alpha_tau, sigma_tau) = toy.two_modes(weight=0.3), levels(300)
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    z = torch.tensor([-1.1, 0.05, 0.8], dtype=torch.float64)
    posterior = line.log_density(x[:, None]).exp() * torch.exp(
        -0.5 * ((z[:, None] - alpha_tau * x) / sigma_tau) ** 2
    )
    expected = torch.trapezoid(posterior * x, x) / torch.trapezoid(posterior, x)
    assert torch.allclose(
        line.posterior_mean(z[:, None], alpha_tau, sigma_tau)[:, 0], expected, atol=1e-8
    )


def test_a_data_set_of_points_is_denoised_by_a_softmax_average():
    data = torch.randn(5, 2, generator=rng(1), dtype=torch.float64)
    z, (alpha_tau, sigma_tau) = (
        torch.randn(9, 2, generator=rng(2), dtype=torch.float64),
        levels(300),
    )
    world = toy.GaussianMixture(torch.ones(5), data, torch.zeros(5, 2, 2))
    share = (-0.5 * torch.cdist(z, alpha_tau * data).square() / sigma_tau**2).softmax(1)
    assert torch.allclose(world.posterior_mean(z, alpha_tau, sigma_tau), share @ data)
    with pytest.raises(ValueError, match="noised"):
        world.score(z)


def test_perfect_predictions_agree_with_one_another_and_minimise_the_loss(world):
    tau = torch.full((4000,), 300)
    x, eps = (
        world.sample(4000, rng(1), torch.float64),
        torch.randn(4000, 3, generator=rng(2), dtype=torch.float64),
    )
    z = add_noise(SCHEDULE, x, eps, tau)
    best = {p: world.predict(z, *levels(300), p) for p in ("eps", "v", "x0")}
    for prediction, y in best.items():
        assert torch.allclose(to_x0(SCHEDULE, z, y, tau, prediction), best["x0"])
        assert torch.allclose(to_eps(SCHEDULE, z, y, tau, prediction), best["eps"])
    loss = (best["eps"] - eps).square().mean()
    assert (
        loss < (1.05 * best["eps"] - eps).square().mean()
        and loss < (best["eps"] + 0.05 - eps).square().mean()
    )
    with pytest.raises(ValueError, match="prediction"):
        world.predict(z, *levels(300), "noise")


def test_marginal_and_condition_divide_the_joint_density(world):
    x = points(world, 1)[0]
    for given, rest in (([1], [0, 2]), ([0, 2], [1]), ([2, 0], [1])):
        joint = world.log_density(x[None])
        parts = world.marginal(given).log_density(x[given][None])
        parts = parts + world.condition(given, x[given]).log_density(x[rest][None])
        assert torch.allclose(joint, parts)


def test_standardised_has_mean_0_and_covariance_1(world):
    for some in (world.standardised(), toy.pinwheel()):
        mean, cov = some.moments()
        assert mean.abs().max() < 1e-9 and (cov - torch.eye(some.d)).abs().max() < 1e-9


def test_frechet_distance_by_hand_and_against_scipy(world):
    one = lambda mean, std: toy.GaussianMixture([1.0], [[mean]], [[[std**2]]])
    assert toy.frechet(one(0.0, 1.0), one(3.0, 2.0)) == pytest.approx(
        9 + 1
    )  # (m - m')^2 + (s - s')^2
    assert toy.frechet(world, world) == pytest.approx(0, abs=1e-9)
    assert toy.frechet(world, world.gaussian()) == pytest.approx(0, abs=1e-9)
    scipy = pytest.importorskip("scipy.linalg")
    other = world.noised(*levels(300))
    (m, a), (n, b) = world.moments(), other.moments()
    root = torch.as_tensor(scipy.sqrtm((a @ b).numpy()).real)
    assert toy.frechet(world, other) == pytest.approx(
        float((m - n).square().sum() + (a + b - 2 * root).trace())
    )


def test_ddim_with_the_perfect_network_lands_on_the_moments(world):
    z = torch.randn(4000, 3, generator=rng(), dtype=torch.float64)
    world = world.standardised()  # mean 0 and covariance I
    x = ddim(SCHEDULE, toy.denoiser(world, SCHEDULE), z, ddim_times(100))
    assert x.mean(0).abs().max() < 0.05 and (x.T.cov() - torch.eye(3)).abs().max() < 0.1
    one_step = ddim(
        SCHEDULE, toy.denoiser(world, SCHEDULE), z, [999]
    )  # a single step finds only the mean
    assert one_step.var(0).max() < 0.1


def test_the_perfect_network_takes_a_batch_of_several_tau(world):
    z, tau = points(world, 4), torch.tensor([5, 700, 5, 999])
    denoise = toy.denoiser(world, SCHEDULE)
    alone = torch.cat([denoise(z[i : i + 1], tau[i : i + 1]) for i in range(4)])
    assert torch.allclose(denoise(z, tau), alone)


@pytest.mark.parametrize(
    "parts, message",
    [
        (([1.0], [[0.0, 0.0]], [[[1.0]]]), "weights"),
        (([-1.0], [[0.0]], [[[1.0]]]), "negative"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "covariance"),
    ],
)
def test_what_is_no_mixture_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        toy.GaussianMixture(*map(torch.tensor, parts))


# -- the video world -----------------------------------------------------------------------------


def test_each_frame_alone_is_distributed_like_the_image_world():
    modes = toy.two_modes(weight=0.3)
    for clips in (toy.video_world(modes, 8), toy.video_world(toy.two_modes(), 5, jump=0.2)):
        frame = clips.marginal([3])
        expected = modes if len(clips.weights) == 2 else toy.two_modes()
        x = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
        assert torch.allclose(frame.log_density(x), expected.log_density(x), atol=1e-9)


def test_covariance_over_frames_is_that_of_modes_plus_process():
    _, cov = toy.video_world(toy.two_modes(distance=2, std=0.25), 8, length=3).moments()
    apart = torch.arange(8, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((apart[:, None] - apart) / 3) ** 2)
    assert torch.allclose(cov, 1 + 0.25**2 * kernel, atol=1e-6)  # variance of +-1 is 1


def test_channels_of_a_frame_keep_their_covariance():
    modes = toy.pinwheel()
    clips = toy.video_world(modes, 4)
    assert clips.d == 8 and toy.coordinates([0, 3], 2) == [0, 1, 6, 7]
    frame = clips.marginal(toy.coordinates([2], 2))
    assert torch.allclose(frame.means, modes.means) and torch.allclose(frame.covs, modes.covs)
    assert toy.as_clips(clips.sample(5, rng()), 2).shape == (5, 4, 2, 1, 1)


def test_context_frames_name_the_mode_and_the_frames_between_are_the_gaussian_process():
    clips, seen = toy.video_world(toy.two_modes(), 5, length=2), torch.tensor([0.9, 1.2])
    between = clips.condition([0, 4], seen)
    assert between.weights[1] > 1 - 1e-6
    t = torch.arange(5, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((t[:, None] - t) / 2) ** 2)
    weights = torch.linalg.solve(kernel[[0, 4]][:, [0, 4]], kernel[[0, 4]][:, [1, 2, 3]])
    assert torch.allclose(between.means[1], 1 + (seen.double() - 1) @ weights, atol=1e-4)


def test_a_finer_grid_of_times_holds_the_coarse_one():
    coarse = toy.video_world(toy.two_modes(), 4)
    fine = toy.video_world(toy.two_modes(), [i / 4 for i in range(13)]).marginal([0, 4, 8, 12])
    assert torch.allclose(coarse.covs, fine.covs) and torch.allclose(coarse.means, fine.means)


def test_clips_jump_between_modes_as_often_as_asked():
    clips = toy.video_world(toy.two_modes(std=0.05), 6, jump=0.2)
    assert len(clips.weights) == 2**6 and clips.weights.sum().item() == pytest.approx(1)
    upper = clips.sample(8000, rng()) > 0
    assert (upper[:, 1:] != upper[:, :-1]).float().mean().item() == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="fewer frames"):
        toy.video_world(toy.two_modes(), 16, jump=0.2)
    with pytest.raises(ValueError, match="equal weight"):
        toy.video_world(toy.two_modes(weight=0.3), 4, jump=0.2)


def test_score_of_a_clip_is_the_gradient_at_every_noise_level():
    clips = toy.video_world(toy.two_modes(), 8)
    for tau in TAUS:
        noised = clips.noised(*levels(tau))
        x = points(noised, 16).requires_grad_()
        (gradient,) = torch.autograd.grad(noised.log_density(x).sum(), x)
        assert (noised.score(x.detach()) - gradient).norm() < 1e-6 * gradient.norm()


def test_at_one_pixel_the_centre_of_a_convolution_is_all_of_it():
    torch.manual_seed(0)
    net = UNet(
        UNetConfig(
            in_channels=1, out_channels=1, channels=(34,), attention=(True,), emb_channels=16
        )
    )
    torch.nn.init.normal_(net.conv_out.weight)
    z, tau, names = torch.randn(6, 1, 1, 1), torch.arange(6) * 100, list(net.state_dict())
    before = net(z, tau)
    assert (
        torch.allclose(toy.one_pixel(net)(z, tau), before, atol=1e-5)
        and list(net.state_dict()) == names
    )


def test_temporal_layers_on_frames_of_one_pixel_change_nothing_when_fresh_and_at_alpha_1():
    torch.manual_seed(0)
    for swap in (toy.one_pixel, lambda net: net):
        net = swap(
            UNet(
                UNetConfig(
                    in_channels=1,
                    out_channels=1,
                    channels=(34,),
                    attention=(True,),
                    emb_channels=16,
                )
            )
        )
        torch.nn.init.normal_(net.conv_out.weight)
        z, tau = torch.randn(6, 8, 1, 1, 1), torch.full((6,), 500)
        image = net(z.flatten(0, 1), tau.repeat_interleave(8)).unflatten(0, (6, 8))
        layers = temporal.insert(net)
        video = temporal.VideoModel(net, layers)
        assert torch.equal(video(z, tau), image)
        for weight in layers.parameters():
            torch.nn.init.normal_(weight)
        assert not torch.allclose(video(z, tau), image)
        layers.set_alpha(1.0)
        assert torch.equal(video(z, tau), image)


# -- learning ------------------------------------------------------------------------------------


def test_an_untrained_network_is_the_single_gaussian_and_training_leaves_it_behind():
    world, tau = toy.pinwheel(), 300
    noised = world.noised(*levels(tau))
    z = noised.sample(2000, rng(7))
    truth, gaussian = noised.score(z), world.gaussian().noised(*levels(tau)).score(z)
    untrained, _ = toy.fit_score(world, SCHEDULE, rng(), steps=0)
    assert torch.allclose(toy.learned_score(untrained, SCHEDULE, z, tau), gaussian, atol=1e-4)
    trained, losses = toy.fit_score(
        world, SCHEDULE, rng(), steps=150, batch=256, data=512, width=32
    )
    error = toy.relative_error(toy.learned_score(trained, SCHEDULE, z, tau), truth)
    assert len(losses) == 150 and error < 0.5 * toy.relative_error(gaussian, truth)


def test_the_averaged_target_has_the_mean_of_the_plain_one_and_less_noise():
    world, tau = toy.pinwheel(), torch.full((4000,), 100)
    x = world.sample(4000, rng(1), torch.float64)
    z = add_noise(SCHEDULE, x, torch.randn(4000, 2, generator=rng(2), dtype=torch.float64), tau)
    best = world.predict(z, *levels(100), "v")
    plain, mean = (
        target(SCHEDULE, x, to_eps(SCHEDULE, z, x, tau, "x0"), tau),
        toy._mean_target(SCHEDULE, x, z, tau),
    )
    assert (mean - best).mean(0).abs().max() < 0.03
    assert (mean - best).square().mean() < 0.1 * (plain - best).square().mean()


def test_training_is_a_function_of_its_generator():
    first, again = (
        toy.fit_score(toy.pinwheel(), SCHEDULE, rng(4), steps=3, batch=16, width=16)[0]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not math.isnan(float(next(first.parameters()).sum()))
