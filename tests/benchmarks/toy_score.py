"""How close does a small network come to the closed-form score of the 2-D toy?

relative_error_worst: sqrt(E|s - s*|^2 / E|s*|^2) with x from p_tau, the worst over tau in 20, 100, 300, 600, 900 and
over three seeds; under 5 % is asked for. Beside it two baselines that learnt nothing: the network before training, and
the score of the single Gaussian with the world's mean and covariance. Needs no data; CPU.
"""
import time

import torch

from vldm_mini.datasets import toy
from vldm_mini.diffusion import Schedule

TAUS = (20, 100, 300, 600, 900)
SEEDS = (0, 1, 2)
POINTS = 20_000


def errors(score, world, schedule):
    """{tau: relative error of score(x, tau)} with x from p_tau, the same points for every score."""
    generator, found = torch.Generator().manual_seed(1234), {}
    for tau in TAUS:
        noised = world.noised(schedule.alpha_tau[tau], schedule.sigma_tau[tau])
        x = noised.sample(POINTS, generator)
        found[tau] = round(toy.relative_error(score(x, tau), noised.score(x)), 4)
    return found


def of_network(net, schedule):
    return lambda x, tau: toy.learned_score(net, schedule, x, tau)


def run(steps=3000, seeds=SEEDS):
    """All figures; arguments are for tests."""
    world, schedule, seconds, learned, untrained = toy.pinwheel(), Schedule.linear(), [], {}, {}
    for seed in seeds:
        start = time.process_time()
        net, _ = toy.fit_score(world, schedule, torch.Generator().manual_seed(seed), steps)
        seconds.append(round(time.process_time() - start, 1))
        learned[seed] = errors(of_network(net, schedule), world, schedule)
        fresh, _ = toy.fit_score(world, schedule, torch.Generator().manual_seed(seed), steps=0)
        untrained[seed] = errors(of_network(fresh, schedule), world, schedule)
    one = world.gaussian()
    single = lambda x, tau: one.noised(schedule.alpha_tau[tau], schedule.sigma_tau[tau]).score(x)            # noqa: E731
    gaussian = errors(single, world, schedule)
    worst = {seed: max(found.values()) for seed, found in learned.items()}
    return {"relative_error_worst": max(worst.values()), "per_seed": worst, "learned": learned,
            "baselines": {"untrained": untrained, "one Gaussian of the same moments": gaussian},
            "opponents_worst": {"untrained": max(max(e.values()) for e in untrained.values()),
                                "one Gaussian of the same moments": max(gaussian.values())},
            "points": POINTS, "steps": steps, "training_cpu_seconds": seconds}
