"""Relative error of a small network against the closed-form score of the 2-D toy.

relative_error_worst: sqrt(E|s - s*|^2 / E|s*|^2) with x from p_tau, the worst over tau in 20,
100, 300, 600, 900 and over three seeds; it should be under 5 %. Baselines that have learnt
nothing: the network before training, and the score of the single Gaussian with the world's mean
and covariance. No data; CPU.
"""
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vldm_mini.datasets import toy
from vldm_mini.diffusion import Schedule

TAUS = (20, 100, 300, 600, 900)
SEEDS = (0, 1, 2)
POINTS = 20_000
Score = Callable[[Tensor, int], Tensor]


def errors(score: Score, world: toy.GaussianMixture, schedule: Schedule) -> dict[int, float]:
    """{tau: relative error of score(x, tau)} with x from p_tau, the same points for every score."""
    generator, found = torch.Generator().manual_seed(1234), {}
    for tau in TAUS:
        noised = world.noised(schedule.alpha_tau[tau], schedule.sigma_tau[tau])
        x = noised.sample(POINTS, generator)
        found[tau] = round(toy.relative_error(score(x, tau), noised.score(x)), 4)
    return found


def run(steps: int = 3000, seeds: tuple[int, ...] = SEEDS) -> dict:
    """All figures; arguments are for tests."""
    world, schedule = toy.pinwheel(), Schedule.linear()
    seconds, learned, untrained = [], {}, {}

    def of_network(net: nn.Module) -> dict[int, float]:
        return errors(lambda x, tau: toy.learned_score(net, schedule, x, tau), world, schedule)

    def of_gaussian(x: Tensor, tau: int) -> Tensor:
        return gaussian.noised(schedule.alpha_tau[tau], schedule.sigma_tau[tau]).score(x)
    for seed in seeds:
        start = time.process_time()
        net, _ = toy.fit_score(world, schedule, torch.Generator().manual_seed(seed), steps)
        seconds.append(round(time.process_time() - start, 1))
        learned[seed] = of_network(net)
        fresh, _ = toy.fit_score(world, schedule, torch.Generator().manual_seed(seed), steps=0)
        untrained[seed] = of_network(fresh)
    gaussian = world.gaussian()
    single = errors(of_gaussian, world, schedule)
    worst = {seed: max(found.values()) for seed, found in learned.items()}
    untrained_worst = max(max(found.values()) for found in untrained.values())
    return {"relative_error_worst": max(worst.values()), "per_seed": worst, "learned": learned,
            "baselines": {"untrained": untrained, "one Gaussian of the same moments": single},
            "baselines_worst": {"untrained": untrained_worst,
                                "one Gaussian of the same moments": max(single.values())},
            "points": POINTS, "steps": steps, "training_cpu_seconds": seconds}
