"""Schedules, prediction types, DDIM against distributions known exactly, guidance, randomness."""

import copy
import math
import multiprocessing
import pickle
from dataclasses import asdict

import pytest
import torch

from tests.tiny import normal
from vldm_mini.diffusion import (
    PREDICTIONS,
    Schedule,
    ScheduleConfig,
    add_noise,
    chained_guidance,
    check_prediction,
    ddim,
    ddim_step,
    ddim_times,
    denoising_error,
    denoising_loss,
    guided,
    rng,
    target,
    to_eps,
    to_x0,
)

SCHEDULES = {"linear": Schedule.linear(), "scaled_linear": Schedule.scaled_linear()}
LINEAR = SCHEDULES["linear"]
ZERO_SNR = LINEAR.zero_terminal_snr()
TIMES = torch.tensor([0, 1, 250, 500, 998, 999])


# -- schedule ---------------------------------------------


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), ZERO_SNR], ids=[*SCHEDULES, "zero_snr"])
def test_the_schedule_preserves_variance(schedule):
    total = schedule.alpha_tau**2 + schedule.sigma_tau**2
    assert torch.allclose(total, torch.ones(1000).double(), atol=1e-12)


def test_noisy_data_of_unit_variance_have_unit_variance():
    x, eps = normal(6, 50000, seed=1), normal(6, 50000, seed=2)
    assert torch.allclose(add_noise(LINEAR, x, eps, TIMES).var(1), torch.ones(6), atol=0.03)


def test_the_schedules_have_the_published_constants():
    alpha_squared = LINEAR.alpha_tau**2
    assert float(alpha_squared[0]) == pytest.approx(0.99990, abs=1e-8)
    assert float(alpha_squared[499]) == pytest.approx(0.07859, abs=5e-6)
    assert float(alpha_squared[999]) == pytest.approx(4.04e-5, abs=5e-8)
    last = SCHEDULES["scaled_linear"].alpha_tau[-1]
    assert float(last**2) == pytest.approx(4.66e-3, abs=5e-6)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_log_snr_decreases_at_every_step(schedule):
    assert (schedule.log_snr.diff() < 0).all()
    assert schedule.log_snr[0] > 0 > schedule.log_snr[-1]


def test_log_snr_is_the_log_of_the_ratio_of_squares():
    schedule = Schedule(torch.tensor([0.8, 0.6]).double(), torch.tensor([0.6, 0.8]).double())
    expected = [math.log(0.64 / 0.36), math.log(0.36 / 0.64)]
    assert schedule.log_snr.tolist() == pytest.approx(expected)


def test_noising_is_alpha_times_data_plus_sigma_times_noise():
    schedule = Schedule(torch.tensor([1.0, 0.8]).double(), torch.tensor([0.0, 0.6]).double())
    z = add_noise(
        schedule, torch.tensor([[5.0], [5.0]]), torch.tensor([[10.0], [10.0]]), torch.tensor([0, 1])
    )
    assert z.flatten().tolist() == pytest.approx([5.0, 0.8 * 5 + 0.6 * 10])


def test_all_frames_of_a_clip_have_the_noise_level_of_their_clip():
    x, eps = torch.ones(2, 3, 1, 4, 4), torch.zeros(2, 3, 1, 4, 4)
    z = add_noise(LINEAR, x, eps, torch.tensor([100, 900]))
    assert torch.allclose(z[0], LINEAR.alpha_tau[100].float())
    assert torch.allclose(z[1], LINEAR.alpha_tau[900].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_alpha_and_sigma_have_the_dtype_and_the_axes_of_what_they_multiply(dtype):
    alpha_tau, sigma_tau = LINEAR.at(torch.tensor([3, 700]), torch.zeros(2, 4, 5, dtype=dtype))
    assert alpha_tau.shape == sigma_tau.shape == (2, 1, 1)
    assert alpha_tau.dtype == sigma_tau.dtype == dtype
    assert torch.equal(alpha_tau.flatten(), LINEAR.alpha_tau[[3, 700]].to(dtype))
    assert torch.equal(sigma_tau.flatten(), LINEAR.sigma_tau[[3, 700]].to(dtype))


def test_one_integer_stands_for_the_whole_batch():
    assert LINEAR.at(700, torch.zeros(2, 4))[0].shape == (1, 1)
    assert LINEAR.at(700, torch.zeros(2, 4))[1] == LINEAR.sigma_tau[700].float()


@pytest.mark.parametrize("tau", [-1, 1000])
def test_a_time_outside_the_schedule_is_an_error(tau):
    for times in (tau, torch.tensor([tau]), torch.tensor([5, tau])):
        with pytest.raises(ValueError, match=r"tau must lie in 0\.\.999"):
            add_noise(LINEAR, torch.zeros(2, 2), torch.zeros(2, 2), times)


def test_tables_of_unlike_length_are_an_error():
    with pytest.raises(ValueError, match=r"vectors of one length, got shapes \(3,\) and \(2,\)"):
        Schedule(torch.ones(3), torch.ones(2))


def test_a_schedule_is_a_value_that_is_equal_to_its_copies():
    LINEAR.at(5, torch.zeros(1))  # its table is cached now
    for other in (Schedule.linear(), copy.deepcopy(LINEAR), pickle.loads(pickle.dumps(LINEAR))):
        assert other == LINEAR and hash(other) == hash(LINEAR) and other is not LINEAR
        assert torch.equal(other.at(5, torch.zeros(1))[0], LINEAR.at(5, torch.zeros(1))[0])
    assert LINEAR != SCHEDULES["scaled_linear"] and LINEAR != Schedule.linear(999)
    assert LINEAR != ZERO_SNR and LINEAR != "linear"


def test_tables_cached_on_a_device_do_not_travel_with_a_pickle():
    schedule = Schedule.linear()
    size = len(pickle.dumps(schedule))
    schedule.at(5, torch.zeros(1))
    assert len(pickle.dumps(schedule)) == size


def _last_alpha(schedule):
    return float(schedule.alpha_tau[-1])


def test_a_schedule_reaches_a_spawned_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_last_alpha, (LINEAR,)) == _last_alpha(LINEAR)


def test_a_schedule_can_be_built_while_modules_are_built_on_the_meta_device():
    with torch.device("meta"):
        assert ScheduleConfig().build() == LINEAR


# -- settings of a schedule ---------------------------------------------


def test_a_config_builds_the_schedule_that_it_names():
    assert ScheduleConfig().build() == LINEAR
    assert ScheduleConfig("scaled_linear").build() == SCHEDULES["scaled_linear"]
    assert ScheduleConfig(num_steps=50).build() == Schedule.linear(50)
    custom = ScheduleConfig("scaled_linear", 500, 1e-3, 1e-2)
    assert custom.build() == Schedule.scaled_linear(500, 1e-3, 1e-2)
    assert ScheduleConfig(zero_terminal_snr=True).build() == ZERO_SNR
    assert ScheduleConfig(**asdict(custom)) == custom


@pytest.mark.parametrize(
    "settings", [dict(kind="cosine"), dict(num_steps=1), dict(beta_end=1.0), dict(beta_start=0.0)]
)
def test_settings_that_give_no_schedule_are_an_error(settings):
    with pytest.raises(ValueError, match="linear or scaled_linear, not 'cosine'|two steps and"):
        ScheduleConfig(**settings)


# -- zero terminal SNR ---------------------------------------------


def test_zero_terminal_snr_moves_the_last_step_to_pure_noise_and_keeps_the_first():
    assert float(ZERO_SNR.alpha_tau[-1]) == 0 and float(ZERO_SNR.sigma_tau[-1]) == 1
    assert torch.allclose(ZERO_SNR.alpha_tau[0], LINEAR.alpha_tau[0], rtol=1e-12)
    # alpha'_tau = (alpha_tau - alpha_T) alpha_0 / (alpha_0 - alpha_T), by hand
    by_hand = Schedule(torch.tensor([0.9, 0.5, 0.3]).double(), torch.zeros(3).double())
    expected = [0.9, 0.2 * 0.9 / 0.6, 0.0]
    assert by_hand.zero_terminal_snr().alpha_tau.tolist() == pytest.approx(expected)


def test_zero_terminal_snr_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=2e-2, rescale_betas_zero_snr=True
    )
    assert torch.allclose(ZERO_SNR.alpha_tau**2, theirs.alphas_cumprod.double(), atol=2e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_a_data_set_of_one_point_is_found_from_pure_noise(prediction, order):
    point = normal(1, 3, 4).double()
    x = ddim(
        ZERO_SNR,
        knows(point, prediction, ZERO_SNR),
        normal(5, 3, 4, seed=1).double(),
        ddim_times(7),
        prediction,
        order=order,
    )
    assert torch.allclose(x, point.expand_as(x), atol=1e-6)


def test_eps_prediction_with_zero_terminal_snr_is_an_error_before_any_evaluation():
    def never(z, tau):
        raise AssertionError("evaluated")

    z, tau = normal(2, 3), torch.tensor([5, 999])
    with pytest.raises(ValueError, match="'eps' cannot be used with .*zero terminal SNR"):
        ddim(ZERO_SNR, never, z, [999, 20], "eps")
    with pytest.raises(ValueError, match="use 'v' or 'x0'"):
        denoising_loss(ZERO_SNR, never, z, tau, z, "eps")
    for prediction in ("v", "x0"):
        check_prediction(ZERO_SNR, prediction)


# -- predictions ---------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_prediction_gives_back_the_clean_sample_and_the_noise(schedule, prediction):
    x, eps = normal(6, 3, 4).double(), normal(6, 3, 4, seed=1).double()
    z, y = add_noise(schedule, x, eps, TIMES), target(schedule, x, eps, TIMES, prediction)
    assert torch.allclose(to_x0(schedule, z, y, TIMES, prediction), x, atol=1e-9)
    assert torch.allclose(to_eps(schedule, z, y, TIMES, prediction), eps, atol=1e-9)


def test_velocity_is_noise_at_no_noise_and_minus_the_data_at_full_noise():
    schedule = Schedule(
        torch.tensor([1.0, 0.6, 0.0]).double(), torch.tensor([0.0, 0.8, 1.0]).double()
    )
    x, eps = torch.full((3, 1), 5.0), torch.full((3, 1), 10.0)
    v = target(schedule, x, eps, torch.tensor([0, 1, 2]), "v")
    assert v.flatten().tolist() == pytest.approx([10, 0.6 * 10 - 0.8 * 5, -5])


@pytest.mark.parametrize("use", [target, to_x0, to_eps])
def test_an_unknown_prediction_is_an_error_that_names_it(use):
    with pytest.raises(ValueError, match="eps, v, x0, not 'score'"):
        use(LINEAR, torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), "score")


# -- loss ---------------------------------------------


def knows(point, prediction, schedule=LINEAR):
    """The exact denoiser of a data set of one point: the noise is what z has beyond it."""

    def denoise(z, tau):
        alpha_tau, sigma_tau = schedule.at(tau, z)
        eps = (z - alpha_tau * point) / sigma_tau
        return target(schedule, point.expand_as(z), eps, tau, prediction)

    return denoise


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_data_set_of_one_point_has_loss_zero_with_the_exact_denoiser(prediction):
    point, eps = normal(1, 3, 4).double(), normal(6, 3, 4, seed=1).double()
    x = point.expand(6, 3, 4)
    loss = denoising_loss(LINEAR, knows(point, prediction), x, TIMES, eps, prediction)
    assert loss.shape == (6,) and (loss < 1e-20).all()
    wrong = denoising_loss(LINEAR, knows(point + 0.1, prediction), x, TIMES, eps, prediction)
    assert (wrong > 1e-9).all()


def test_the_loss_of_a_sample_is_its_own_mean_squared_error():
    x, eps = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    zero = lambda z, tau: torch.zeros_like(z)
    loss = denoising_loss(LINEAR, zero, x, torch.tensor([10, 900]), eps, "eps")
    assert torch.allclose(loss, eps.square().mean((1, 2)))


@pytest.mark.parametrize(
    "dtype, wanted", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_the_error_is_target_minus_prediction_in_float32_or_better(dtype, wanted):
    x, eps = normal(2, 3).to(wanted), normal(2, 3, seed=1).to(wanted)
    constant = lambda z, tau: torch.full_like(z, 0.5, dtype=dtype)
    error = denoising_error(LINEAR, constant, x, torch.tensor([10, 900]), eps, "x0")
    assert error.dtype == wanted and torch.equal(error, x - 0.5)


# -- sampling ---------------------------------------------

MEAN, STD = 1.5, 0.3


def gaussian(z, tau):
    """The exact v of data from N(MEAN, STD^2)."""
    alpha_tau, sigma_tau = LINEAR.at(tau, z)
    # E[x | z] = m + s^2 alpha (z - alpha m) / (alpha^2 s^2 + sigma^2)
    variance = alpha_tau**2 * STD**2 + sigma_tau**2
    x0 = MEAN + STD**2 * alpha_tau * (z - alpha_tau * MEAN) / variance
    return target(LINEAR, x0, (z - alpha_tau * x0) / sigma_tau, tau, "v")


def test_ddim_without_noise_maps_each_quantile_of_noise_to_that_quantile_of_the_data():
    z = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]]).double()
    x = ddim(LINEAR, gaussian, z, ddim_times(300), "v", eta=0.0)
    assert torch.allclose(x, MEAN + STD * z, atol=0.03)


@pytest.mark.parametrize("eta, steps", [(0.0, 200), (1.0, 1000)])
def test_ddim_with_the_exact_score_of_a_gaussian_has_its_mean_and_variance(eta, steps):
    z = normal(4000, 1).double()
    generator = torch.Generator().manual_seed(1)
    x = ddim(LINEAR, gaussian, z, ddim_times(steps), "v", eta, generator)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x.std()) == pytest.approx(STD, abs=0.015)


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_second_order_has_a_smaller_error_than_twice_as_many_steps_of_first_order(steps):
    z = torch.linspace(-2, 2, 41).double()[:, None]

    def error(steps, order, power=1.5):
        x = ddim(LINEAR, gaussian, z, ddim_times(steps, power=power), "v", order=order)
        return float((x - (MEAN + STD * z)).abs().max())

    assert error(steps, 2) < error(2 * steps, 1) < error(steps, 1) < error(steps, 1, power=1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_one_data_point_is_found_from_any_noise_in_any_number_of_steps(steps, eta):
    point = normal(1, 3, 4).double()
    x = ddim(
        LINEAR,
        knows(point, "v"),
        normal(5, 3, 4, seed=1).double(),
        ddim_times(steps),
        "v",
        eta,
        torch.Generator().manual_seed(0),
    )
    assert torch.allclose(x, point.expand_as(x), atol=1e-6)  # the last step adds no noise


@pytest.mark.parametrize("eta", [0.25, 0.5])
@pytest.mark.parametrize("prediction, theirs", [("v", "v_prediction"), ("eps", "epsilon")])
def test_a_step_with_some_new_noise_is_that_of_diffusers(prediction, theirs, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=2e-2,
        prediction_type=theirs,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    z, y = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    for tau in (999, 499, 199):
        noise = normal(2, 4, 8, 8, seed=2)
        want = scheduler.step(y, tau, z, eta=eta, variance_noise=noise).prev_sample
        generator = torch.Generator().manual_seed(2)
        got = ddim_step(LINEAR, z, y, tau, tau - 100, prediction, eta, generator)
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_step_with_half_of_the_new_noise_by_hand():
    schedule = Schedule(torch.tensor([0.8, 0.6]).double(), torch.tensor([0.6, 0.8]).double())
    z, x0 = torch.tensor([[1.0]]).double(), torch.tensor([[0.5]]).double()
    eps = (1.0 - 0.6 * 0.5) / 0.8
    n = torch.randn(1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sigma_ddim = 0.5 * (0.6 / 0.8) * (1 - 0.36 / 0.64) ** 0.5
    want = 0.8 * 0.5 + (0.36 - sigma_ddim**2) ** 0.5 * eps + sigma_ddim * float(n)
    generator = torch.Generator().manual_seed(3)
    got = ddim_step(schedule, z, x0, 1, 0, "x0", eta=0.5, generator=generator)
    assert float(got) == pytest.approx(want, abs=1e-6)


def test_the_second_order_step_by_hand():
    alpha_tau = torch.tensor([0.95, 0.8, 0.6, 0.3]).double()
    schedule = Schedule(alpha_tau, (1 - alpha_tau**2).sqrt())
    x0 = {3: 1.0, 2: 2.0, 0: 4.0}  # the predictions at each time
    denoise = lambda z, tau: torch.full_like(z, x0[int(tau)])
    seen = {}
    z = ddim(
        schedule,
        denoise,
        torch.tensor([[0.7]]).double(),
        [3, 2, 0],
        "x0",
        order=2,
        callback=lambda tau, z: seen.update({tau: float(z)}),
    )
    length = [math.log(a) - math.log(math.sqrt(1 - a * a)) for a in (0.95, 0.8, 0.6, 0.3)]
    ratio = (length[0] - length[2]) / (length[2] - length[3])
    extrapolated = 2.0 + ratio / 2 * (2.0 - 1.0)
    eps = (seen[2] - 0.6 * extrapolated) / 0.8
    assert seen[0] == pytest.approx(0.95 * extrapolated + math.sqrt(1 - 0.95**2) * eps)
    assert float(z) == 4.0, "the last step returns x0 as predicted"


def test_with_one_generator_a_sample_the_size_of_the_batch_does_not_matter():
    def sample(n):
        generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
        return ddim(LINEAR, gaussian, normal(3, 2)[:n], ddim_times(5), "v", 1.0, generators)

    assert torch.allclose(sample(3)[:2], sample(2))
    assert not torch.allclose(sample(3)[0], sample(3)[1])


def test_only_eta_adds_noise_and_the_generator_decides_which():
    def sample(eta, seed):
        generator = torch.Generator().manual_seed(seed)
        return ddim(LINEAR, gaussian, normal(3, 1), ddim_times(5), "v", eta, generator)

    assert torch.equal(sample(0.0, 1), sample(0.0, 2))
    assert torch.equal(sample(1.0, 1), sample(1.0, 1))
    assert not torch.equal(sample(1.0, 1), sample(1.0, 2))


def test_times_start_at_full_noise_decrease_and_have_the_number_of_steps():
    for steps in (*range(1, 60), *range(490, 510), 666, 667, 751, 997, 998, 999, 1000):
        for power in (1, 1.5, 3):
            times = ddim_times(steps, power=power)
            assert len(times) == steps and times[0] == 999 and times[-1] >= 0
            assert all(a > b for a, b in zip(times, times[1:]))
    assert ddim_times(4) == [999, 749, 499, 249]
    assert ddim_times(4, power=2) == [999, 561, 249, 61]
    assert ddim_times(2, num_steps=50) == [49, 24]


def test_the_last_step_returns_the_clean_sample():
    z, y = normal(2, 3), normal(2, 3, seed=1)
    clean = to_x0(LINEAR, z, y, torch.tensor([40, 40]), "v")
    assert torch.equal(ddim_step(LINEAR, z, y, 40, -1, "v"), clean)


def test_a_step_to_the_same_time_changes_nothing():
    z, y = normal(2, 3).double(), normal(2, 3, seed=1).double()
    assert torch.allclose(ddim_step(LINEAR, z, y, 400, 400, "v"), z, atol=1e-9)


def test_callback_and_progress_receive_every_time_once():
    seen, bar = [], []
    ddim(
        LINEAR,
        gaussian,
        normal(2, 1),
        [999, 600, 20],
        callback=lambda tau, z: seen.append((tau, tuple(z.shape))),
        progress=lambda times: bar.extend(times) or times,
    )
    assert seen == [(999, (2, 1)), (600, (2, 1)), (20, (2, 1))] and bar == [999, 600, 20]


@pytest.mark.parametrize("times", [[], [10, 20], [500, 500]])
def test_times_that_do_not_fall_are_an_error(times):
    with pytest.raises(ValueError, match="strictly falling"):
        ddim(LINEAR, gaussian, normal(1, 1), times)


@pytest.mark.parametrize("order, eta", [(3, 0.0), (0, 0.0), (2, 0.5)])
def test_an_impossible_order_is_an_error(order, eta):
    with pytest.raises(ValueError, match="order is 1, or 2 without new noise"):
        ddim(LINEAR, gaussian, normal(1, 1), [999, 20], eta=eta, order=order)


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_an_error(steps):
    with pytest.raises(ValueError, match=rf"steps must lie in 1\.\.1000, got {steps}"):
        ddim_times(steps)


# -- guidance ---------------------------------------------


def test_guidance_scale_0_ignores_the_condition_and_2_goes_twice_as_far_as_1():
    cond, null = (lambda z, tau: z + 3), (lambda z, tau: z + 1)
    z, tau = normal(2, 3), torch.tensor([5, 5])
    shifts = [float((guided(cond, null, scale)(z, tau) - z).mean()) for scale in (0, 1, 2)]
    assert shifts == pytest.approx([1, 3, 5], abs=1e-6)
    assert torch.equal(guided(cond, null, 1)(z, tau), cond(z, tau))
    assert torch.equal(guided(cond, null, 0)(z, tau), null(z, tau))


def test_each_step_of_a_chain_has_its_own_scale():
    chain = [lambda z, tau, k=k: torch.full_like(z, k) for k in (1.0, 10.0, 100.0)]
    y = chained_guidance(chain, [2.0, 0.5])(normal(1, 1), torch.tensor([5]))
    assert float(y) == pytest.approx(1 + 2 * (10 - 1) + 0.5 * (100 - 10))


def test_a_denoiser_of_total_weight_zero_is_not_evaluated():
    def never(z, tau):
        raise AssertionError("evaluated")

    z, tau, identity = normal(1, 1), torch.tensor([0]), lambda z, tau: z
    assert guided(identity, never, 1)(z, tau).shape == (1, 1)
    assert guided(never, identity, 0)(z, tau).shape == (1, 1)
    chained_guidance([identity, identity, never], [2, 0])(z, tau)


# -- randomness ---------------------------------------------


def test_the_generator_of_a_sample_depends_on_seed_step_and_sample():
    first = lambda *key: float(torch.randn((), generator=rng(*key)))
    assert first(1, 2, 3) == first(1, 2, 3)
    keys = [(seed, step, sample) for seed in range(3) for step in range(3) for sample in range(3)]
    assert len({first(*key) for key in keys}) == len(keys)


def test_neighbouring_samples_are_independent_and_standard_normal():
    x = torch.stack([torch.randn(64, generator=rng(0, step, 0)) for step in range(400)])
    assert x.mean().abs() < 0.03 and (x.std() - 1).abs() < 0.02
    assert x.mean(0).abs().max() < 0.25, "over steps each entry averages to zero"
    assert (x[1:] * x[:-1]).mean().abs() < 0.03
