"""The schedule keeps the variance, the three predictions are one, DDIM samples a distribution that is known exactly."""
import pytest
import torch

from tests.tiny import normal
from vldm_mini.diffusion import (
    PREDICTIONS,
    Schedule,
    add_noise,
    ddim,
    ddim_step,
    ddim_times,
    denoising_loss,
    guided,
    target,
    to_eps,
    to_x0,
)

SCHEDULES = {"linear": Schedule.linear(), "scaled_linear": Schedule.scaled_linear()}
LINEAR = SCHEDULES["linear"]
TIMES = torch.tensor([0, 1, 250, 500, 998, 999])


# -- schedule ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_schedule_preserves_variance(schedule):
    assert torch.allclose(schedule.alpha_tau ** 2 + schedule.sigma_tau ** 2, torch.ones(1000).double(), atol=1e-12)


def test_noised_data_of_unit_variance_have_unit_variance():
    x, eps = normal(6, 50000, seed=1), normal(6, 50000, seed=2)
    assert torch.allclose(add_noise(LINEAR, x, eps, TIMES).var(1), torch.ones(6), atol=0.03)


def test_the_schedules_have_the_published_constants():
    abar = LINEAR.alpha_tau ** 2
    assert float(abar[0]) == pytest.approx(0.99990, abs=1e-8)
    assert float(abar[499]) == pytest.approx(0.07859, abs=5e-6)
    assert float(abar[999]) == pytest.approx(4.04e-5, abs=5e-8)
    assert float(SCHEDULES["scaled_linear"].alpha_tau[-1] ** 2) == pytest.approx(4.66e-3, abs=5e-6)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_log_snr_falls_at_every_step(schedule):
    assert (schedule.log_snr.diff() < 0).all()
    assert schedule.log_snr[0] > 0 > schedule.log_snr[-1]


def test_all_frames_of_a_clip_get_the_noise_level_of_their_clip():
    x, eps = torch.ones(2, 3, 1, 4, 4), torch.zeros(2, 3, 1, 4, 4)
    z = add_noise(LINEAR, x, eps, torch.tensor([100, 900]))
    assert torch.allclose(z[0], LINEAR.alpha_tau[100].float()) and torch.allclose(z[1], LINEAR.alpha_tau[900].float())


@pytest.mark.parametrize("tau", [-1, 1000])
def test_a_time_outside_the_schedule_is_refused(tau):
    with pytest.raises(ValueError, match=r"tau must lie in 0\.\.999"):
        add_noise(LINEAR, torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([tau]))


# -- predictions ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_prediction_gives_back_the_clean_sample_and_the_noise(schedule, prediction):
    x, eps = normal(6, 3, 4).double(), normal(6, 3, 4, seed=1).double()
    z, y = add_noise(schedule, x, eps, TIMES), target(schedule, x, eps, TIMES, prediction)
    assert torch.allclose(to_x0(schedule, z, y, TIMES, prediction), x, atol=1e-9)
    assert torch.allclose(to_eps(schedule, z, y, TIMES, prediction), eps, atol=1e-9)


def test_velocity_is_noise_at_no_noise_and_minus_the_data_at_full_noise():
    schedule = Schedule(torch.tensor([1., 0.6, 0.]).double(), torch.tensor([0., 0.8, 1.]).double())
    x, eps = torch.full((3, 1), 5.), torch.full((3, 1), 10.)
    v = target(schedule, x, eps, torch.tensor([0, 1, 2]), "v")
    assert v.flatten().tolist() == pytest.approx([10, 0.6 * 10 - 0.8 * 5, -5])


@pytest.mark.parametrize("use", [target, to_x0, to_eps])
def test_an_unknown_prediction_is_refused_by_name(use):
    with pytest.raises(ValueError, match="eps, v, x0, not 'score'"):
        use(LINEAR, torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), "score")


# -- loss -------------------------------------------------------------------------------------------------------------

def knows(point, prediction):
    """The exact denoiser of a data set of one point: the noise is what z has beyond it."""
    def denoise(z, tau):
        alpha_tau, sigma_tau = LINEAR.at(tau, z)
        return target(LINEAR, point.expand_as(z), (z - alpha_tau * point) / sigma_tau, tau, prediction)
    return denoise


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_data_set_of_one_point_has_loss_zero_with_the_exact_denoiser(prediction):
    point, eps = normal(1, 3, 4).double(), normal(6, 3, 4, seed=1).double()
    loss = denoising_loss(LINEAR, knows(point, prediction), point.expand(6, 3, 4), TIMES, eps, prediction)
    assert loss.shape == (6,) and (loss < 1e-9).all()
    wrong = denoising_loss(LINEAR, knows(point + 0.1, prediction), point.expand(6, 3, 4), TIMES, eps, prediction)
    assert (wrong > 1e-9).all()


def test_the_loss_of_a_sample_is_its_own_mean_squared_error():
    x, eps = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    loss = denoising_loss(LINEAR, lambda z, tau: torch.zeros_like(z), x, torch.tensor([10, 900]), eps, "eps")
    assert torch.allclose(loss, eps.square().mean((1, 2)))


# -- sampling ---------------------------------------------------------------------------------------------------------

MEAN, STD = 1.5, 0.3


def gaussian(z, tau):
    """The exact v of data from N(MEAN, STD^2)."""
    alpha_tau, sigma_tau = LINEAR.at(tau, z)
    # E[x | z] = m + s^2 alpha (z - alpha m) / (alpha^2 s^2 + sigma^2)
    x0 = MEAN + STD ** 2 * alpha_tau * (z - alpha_tau * MEAN) / (alpha_tau ** 2 * STD ** 2 + sigma_tau ** 2)
    return target(LINEAR, x0, (z - alpha_tau * x0) / sigma_tau, tau, "v")


def test_ddim_without_noise_maps_each_quantile_of_noise_to_that_quantile_of_the_data():
    z = torch.tensor([[-2.], [-1.], [0.], [1.], [2.]]).double()
    x = ddim(LINEAR, gaussian, z, ddim_times(300), "v", eta=0.0)
    assert torch.allclose(x, MEAN + STD * z, atol=0.03)


@pytest.mark.parametrize("eta, steps", [(0.0, 200), (1.0, 1000)])
def test_ddim_with_the_exact_score_of_a_gaussian_lands_on_its_mean_and_variance(eta, steps):
    z = normal(4000, 1).double()
    x = ddim(LINEAR, gaussian, z, ddim_times(steps), "v", eta, torch.Generator().manual_seed(1))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x.std()) == pytest.approx(STD, abs=0.015)


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_second_order_is_nearer_to_the_answer_than_twice_as_many_steps_of_first_order(steps):
    z = torch.linspace(-2, 2, 41).double()[:, None]

    def off(steps, order, power=1.5):
        x = ddim(LINEAR, gaussian, z, ddim_times(steps, power=power), "v", order=order)
        return float((x - (MEAN + STD * z)).abs().max())
    assert off(steps, 2) < off(2 * steps, 1) < off(steps, 1) < off(steps, 1, power=1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_one_data_point_is_found_from_any_noise_in_any_number_of_steps(steps, eta):
    point = normal(1, 3, 4).double()
    x = ddim(LINEAR, knows(point, "v"), normal(5, 3, 4, seed=1).double(), ddim_times(steps), "v", eta,
             torch.Generator().manual_seed(0))
    assert torch.allclose(x, point.expand_as(x), atol=1e-6)                # the last step is clean: no noise is left


def test_with_a_generator_each_a_sample_does_not_depend_on_how_many_are_made():
    make = lambda n: ddim(LINEAR, gaussian, normal(3, 2)[:n], ddim_times(5), "v", 1.0,                  # noqa: E731
                          [torch.Generator().manual_seed(seed) for seed in range(n)])
    assert torch.allclose(make(3)[:2], make(2)) and not torch.allclose(make(3)[0], make(3)[1])


def test_only_eta_draws_noise_and_the_generator_decides_which():
    sample = lambda eta, seed: ddim(LINEAR, gaussian, normal(3, 1), ddim_times(5), "v", eta,           # noqa: E731
                                    torch.Generator().manual_seed(seed))
    assert torch.equal(sample(0.0, 1), sample(0.0, 2))
    assert torch.equal(sample(1.0, 1), sample(1.0, 1)) and not torch.equal(sample(1.0, 1), sample(1.0, 2))


def test_times_start_at_full_noise_fall_and_come_in_the_number_asked_for():
    for steps in (*range(1, 60), *range(490, 510), 666, 667, 751, 997, 998, 999, 1000):
        for power in (1, 1.5, 3):
            times = ddim_times(steps, power=power)
            assert len(times) == steps and times[0] == 999 and times[-1] >= 0
            assert all(a > b for a, b in zip(times, times[1:]))
    assert ddim_times(4) == [999, 749, 499, 249]


def test_the_last_step_answers_with_the_clean_sample():
    z, y = normal(2, 3), normal(2, 3, seed=1)
    assert torch.equal(ddim_step(LINEAR, z, y, 40, -1, "v"), to_x0(LINEAR, z, y, torch.tensor([40, 40]), "v"))


def test_a_step_to_the_same_time_changes_nothing():
    z, y = normal(2, 3).double(), normal(2, 3, seed=1).double()
    assert torch.allclose(ddim_step(LINEAR, z, y, 400, 400, "v"), z, atol=1e-9)


def test_callback_and_progress_see_every_time_once():
    seen, bar = [], []
    ddim(LINEAR, gaussian, normal(2, 1), [999, 600, 20], callback=lambda tau, z: seen.append((tau, tuple(z.shape))),
         progress=lambda times: bar.extend(times) or times)
    assert seen == [(999, (2, 1)), (600, (2, 1)), (20, (2, 1))] and bar == [999, 600, 20]


@pytest.mark.parametrize("times", [[], [10, 20], [500, 500]])
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="strictly falling"):
        ddim(LINEAR, gaussian, normal(1, 1), times)


@pytest.mark.parametrize("order, eta", [(3, 0.0), (0, 0.0), (2, 0.5)])
def test_an_order_that_cannot_be_is_refused(order, eta):
    with pytest.raises(ValueError, match="order is 1, or 2 without new noise"):
        ddim(LINEAR, gaussian, normal(1, 1), [999, 20], eta=eta, order=order)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_cannot_be_is_refused(steps):
    with pytest.raises(ValueError, match=rf"steps must lie in 1\.\.1000, got {steps}"):
        ddim_times(steps)


# -- guidance ---------------------------------------------------------------------------------------------------------

def test_guidance_scale_0_ignores_the_condition_1_obeys_it_and_2_goes_as_far_again():
    cond, null = (lambda z, tau: z + 3), (lambda z, tau: z + 1)
    z, tau = normal(2, 3), torch.tensor([5, 5])
    answer = lambda scale: guided(cond, null, scale)(z, tau) - z                                        # noqa: E731
    assert [float(answer(scale).mean()) for scale in (0, 1, 2)] == pytest.approx([1, 3, 5], abs=1e-6)
    assert torch.equal(guided(cond, null, 1)(z, tau), cond(z, tau))
    assert torch.equal(guided(cond, null, 0)(z, tau), null(z, tau))


def test_guidance_at_scale_1_does_not_pay_for_the_null_forward():
    def never(z, tau):
        raise AssertionError("called")
    assert guided(lambda z, tau: z, never, 1)(normal(1, 1), torch.tensor([0])).shape == (1, 1)
