"""The training loop: random numbers that depend on (seed, step, sample) alone, and a run that survives being killed."""
import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.tiny import copies, normal, same, tiny_unet
from vldm_mini import training, weights
from vldm_mini.temporal import VideoModel, insert
from vldm_mini.training import EMA, LEVELS, Objective, Record, Settings, learning_rate, levels, rng, train
from vldm_mini.training.recipes import SIZES, Latents, diffusion_loss
from vldm_mini.unet import UNet

SETTINGS = Settings(steps=20, batch=4, lr=1e-2, warmup=3, ema=0.9, precision="fp32", save_every_s=0)


def sums():
    """The layer that `fit` trains, the same at every call."""
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def fit(folder, settings=SETTINGS, corrupt=None, model=None, **more):
    """Train a linear layer to sum three numbers. corrupt(step, loss) may change the loss. -> (layer, record)."""
    model = model or sums()

    def loss(step, samples):
        draw = [rng(settings.seed, step, sample) for sample in samples]
        x = torch.stack([torch.randn(3, generator=g) for g in draw])
        tau = torch.cat([torch.randint(1000, (1,), generator=g) for g in draw])
        each = (model(x)[:, 0] - x.sum(1)).square()
        mean = corrupt(step, each.mean()) if corrupt else each.mean()
        return mean, dict(tau=tau, loss=each.detach(), shown=float(step))
    return model, train(folder, settings, [Objective("linear", model, loss)], progress=False, **more)


def state(folder):
    return weights.load_state(folder / "state.pt")


# -- randomness -------------------------------------------------------------------------------------------------------

def test_random_numbers_are_a_function_of_seed_step_and_sample():
    draw = lambda *key: torch.rand(2, generator=rng(*key), dtype=torch.float64)                         # noqa: E731
    keys = [(seed, step, sample) for seed in range(3) for step in range(12) for sample in range(8)]
    first = {key: draw(*key) for key in keys}
    assert all(torch.equal(draw(*key), first[key]) for key in reversed(keys))       # whatever was drawn before
    values = torch.stack(list(first.values()))
    assert len(set(values[:, 0].tolist())) == len(keys)                             # neighbours differ
    assert float(values.mean()) == pytest.approx(0.5, abs=0.05)                     # and are no staircase
    assert abs(float(torch.corrcoef(torch.stack([values[:-1, 0], values[1:, 0]]))[0, 1])) < 0.2


def test_large_seeds_and_steps_are_fine():
    assert rng(2 ** 62, 10 ** 7, 10 ** 6).initial_seed() != rng(2 ** 62, 10 ** 7, 10 ** 6 + 1).initial_seed()


# -- EMA and the learning rate ----------------------------------------------------------------------------------------

def test_the_first_ema_step_copies_and_the_second_keeps_two_elevenths():
    model = nn.Linear(2, 1)
    ema = EMA(model, 0.999)
    set_to = lambda value: [nn.init.constant_(p, value) for p in model.parameters()]                    # noqa: E731
    set_to(5.0)
    ema.update(model)
    assert all((shadow == 5).all() for shadow in ema.shadow.values())
    set_to(16.0)
    ema.update(model)                                                               # (1 + 1) / (10 + 1) of the old
    assert all(torch.allclose(shadow, torch.tensor(5 * 2 / 11 + 16 * 9 / 11)) for shadow in ema.shadow.values())


def test_a_long_ema_decays_as_set():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.9)
    ema.count = 10 ** 6
    before = ema.shadow["weight"].clone()
    nn.init.constant_(model.weight, 3.0)
    ema.update(model)
    assert torch.allclose(ema.shadow["weight"], 0.9 * before + 0.1 * 3)
    ema.copy_to(model)
    assert torch.equal(model.weight, ema.shadow["weight"])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_takes_the_steps_of_torch(shape):
    """torch's works in bf16, hence the tolerance; ours in float32."""
    start, grads = normal(*shape, seed=0), [normal(*shape, seed=seed) for seed in (1, 2, 3)]
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    both = (training.Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01,
                                                            adjust_lr_fn="match_rms_adamw"))
    for grad in grads:
        for p, optimizer in zip((ours, theirs), both):
            p.grad = grad.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.05 * (ours - start).norm()


def test_a_muon_step_has_singular_values_near_one_whatever_the_gradients_are():
    x = normal(40, 24, seed=0) * torch.logspace(-1, 1, 24)                        # a hundred to one
    assert torch.linalg.svdvals(x).max() / torch.linalg.svdvals(x).min() > 50
    values = torch.linalg.svdvals(training.orthogonal(x))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_gets_the_matrices_of_hidden_layers_and_adamw_the_rest():
    model = nn.Sequential(nn.Conv2d(2, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 3), nn.Embedding(5, 32))
    one, two = training.optimizers(Objective("it", model, None, muon=True))
    names = {id(p): name for name, p in model.named_parameters()}
    held = [[names[id(p)] for p in optimizer.param_groups[0]["params"]] for optimizer in (one, two)]
    assert held[1] == ["0.weight", "1.weight"] and isinstance(two, training.Muon)
    assert sorted(sum(held, [])) == sorted(names.values())
    assert len(training.optimizers(Objective("it", model, None))) == 1


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_cosine_to_zero():
    settings = Settings(steps=100, batch=1, lr=2.0, warmup=10)
    rates = [learning_rate(settings, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[50] == pytest.approx(1.0) and rates[25] == pytest.approx(1 + math.cos(math.pi / 4))
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(a > b for a, b in zip(rates[9:], rates[10:]))
    assert learning_rate(replace(settings, warmup=0), 0) == 2.0


# -- the loop ---------------------------------------------------------------------------------------------------------

def test_training_learns_and_ends_in_the_ema_weights(tmp_path):
    model, record = fit(tmp_path, replace(SETTINGS, steps=100, lr=0.1, save_every_s=60))
    assert record.rows[-1]["losses"]["linear"] < 0.01 * record.rows[0]["losses"]["linear"]
    end = state(tmp_path)
    assert same(copies(model), end["ema"]["shadow"]) and not same(copies(model), end["modules"][0])


def test_the_gradient_is_clipped(tmp_path):
    model, _ = fit(tmp_path, replace(SETTINGS, steps=1), corrupt=lambda step, loss: 1e4 * loss)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert float(norm) == pytest.approx(SETTINGS.clip_norm, rel=1e-3)


def test_a_player_that_sits_out_does_not_move_and_its_loss_is_shown_once_it_plays(tmp_path):
    torch.manual_seed(0)
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    model = nn.ModuleList([first, frozen])
    before, seen = copies(model), []

    def late(step, samples):
        seen.append(second.weight.item())
        return (second.weight.square().sum(), {}) if step >= 10 else None
    record = train(tmp_path, SETTINGS, [Objective("first", model, lambda step, samples: (first.weight.square().sum(), {})),
                                        Objective("late", second, late)], progress=False)
    assert len(set(seen[:11])) == 1 and len(set(seen[10:])) == 10
    assert [row["step"] for row in record.rows if "late" in row["losses"]] == list(range(11, 21))
    assert same(copies(frozen), {k[2:]: x for k, x in before.items() if k.startswith("1.")})


def test_a_smaller_player_scale_makes_smaller_steps(tmp_path):
    def moved(scale):
        torch.manual_seed(0)
        model = nn.Linear(1, 1, bias=False)
        before = model.weight.item()
        train(tmp_path / str(scale), replace(SETTINGS, steps=1), progress=False,
              objectives=[Objective("one", model, lambda step, samples: (model.weight.sum(), {}), lr_scale=scale)])
        return before - model.weight.item()
    assert 0 < moved(0.5) < 0.6 * moved(1.0)


def test_bf16_is_used_where_it_is_asked_for_and_the_weights_stay_in_float32(tmp_path):
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 4), []

    def loss(step, samples):
        y = model(normal(2, 4))
        seen.append(y.dtype)
        return y.float().square().mean(), {}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        train(tmp_path / precision, replace(SETTINGS, steps=3, precision=precision), [Objective("net", model, loss)],
              progress=False)
        assert set(seen) == {dtype}
    assert model.weight.dtype == torch.float32 and model.weight.isfinite().all()


# -- the flight recorder ----------------------------------------------------------------------------------------------

def test_the_record_tells_what_was_set_where_it_ran_and_how_it_went(tmp_path):
    _, record = fit(tmp_path, watch=lambda: dict(alpha={"down": 0.5}))
    assert Record.load(tmp_path) == record
    assert record.settings == dict(vars(SETTINGS)) and record.where["torch"] == torch.__version__
    assert {"commit", "python", "device", "threads", "processor"} <= record.where.keys()
    assert [row["step"] for row in record.rows] == list(range(1, 21))
    assert all(row["alpha"] == {"down": 0.5} and len(row["levels"]) == LEVELS for row in record.rows)
    assert all(a["minutes"] <= b["minutes"] for a, b in zip(record.rows, record.rows[1:]))
    assert sorted(record.rows[0]["losses"]) == ["linear", "shown"]


def test_a_row_of_a_long_run_is_the_mean_of_its_steps(tmp_path):
    _, record = fit(tmp_path, replace(SETTINGS, steps=600, batch=1, save_every_s=60))
    assert len(record.rows) == 200 and record.rows[0]["losses"]["shown"] == 1       # steps 0, 1 and 2
    assert sum(level is not None for level in record.rows[0]["levels"]) <= 3


def test_the_loss_is_kept_for_each_level_of_noise():
    got = levels(torch.tensor([0, 99, 100, 999]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert got == [2.0, 5.0, *[None] * 7, 7.0]


def test_the_longest_record_of_the_largest_recipe_is_under_1_mb(tmp_path):
    with torch.device("meta"):
        names = insert(UNet(SIZES["m"].unet)).mixes.keys()
    row = dict(step=100000, minutes=1234.56, losses=dict(temporal=0.12345), levels=[0.12345] * LEVELS,
               alpha=dict.fromkeys(names, 0.1234))
    strips = [f"strip_{i:06d}.webp" for i in range(12)]
    Record(vars(SETTINGS), training.provenance(), [row] * 399, strips).save(tmp_path)
    assert (tmp_path / "record.json").stat().st_size < 1e6


def test_a_folder_without_a_record_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record.json in"):
        Record.load(tmp_path)


def test_strips_are_drawn_from_the_ema_weights_and_leave_the_training_weights_alone(tmp_path):
    from PIL import Image
    drawn, model = [], sums()

    def strip():
        drawn.append(copies(model))
        return Image.new("RGB", (2, 2))
    _, record = fit(tmp_path / "drawn", model=model, strip=strip, num_strips=4)
    fit(tmp_path / "plain")
    assert record.strips == ["strip_000001.webp", "strip_000003.webp", "strip_000007.webp", "strip_000020.webp"]
    assert all((tmp_path / "drawn" / name).is_file() for name in record.strips)
    with_strips, without = state(tmp_path / "drawn"), state(tmp_path / "plain")
    assert same(drawn[-1], with_strips["ema"]["shadow"]) and not same(drawn[-1], with_strips["modules"][0])
    assert same(with_strips["modules"][0], without["modules"][0])


# -- stopping and going on --------------------------------------------------------------------------------------------

def stop_at(step):
    def corrupt(now, loss):
        if now == step:
            raise KeyboardInterrupt
        return loss
    return corrupt


@pytest.mark.parametrize("stop", [1, 9, 19])
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights_and_record(tmp_path, stop):
    whole, record = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", corrupt=stop_at(stop))
    assert state(tmp_path / "parts")["step"] == stop
    parts, again = fit(tmp_path / "parts")
    assert same(copies(parts), copies(whole))
    assert [row["losses"] for row in again.rows] == [row["losses"] for row in record.rows]


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, record = fit(tmp_path)
    again, same_record = fit(tmp_path, corrupt=stop_at(0))
    assert same(copies(first), copies(again)) and same_record.rows == record.rows


def test_no_resume_starts_anew(tmp_path):
    first, _ = fit(tmp_path)
    again, record = fit(tmp_path, replace(SETTINGS, lr=0.02), resume=False)
    assert len(record.rows) == 20 and not same(copies(first), copies(again))


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    fit(tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=r"a run with other settings \(batch, lr\); give another --out"):
        fit(tmp_path, replace(SETTINGS, lr=0.02, batch=5))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_checkpoint_of_another_size_or_a_damaged_one_is_refused(tmp_path):
    fit(tmp_path)
    objectives = [Objective("linear", nn.Linear(4, 1), None)]
    with pytest.raises(ValueError, match=r"another size: weight is \(1, 3\) there and \(1, 4\) here"):
        train(tmp_path, SETTINGS, objectives, progress=False)
    path = tmp_path / "state.pt"
    for damaged in (path.read_bytes()[:500], b"nothing", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.pt is damaged or no checkpoint; delete it"):
            fit(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint_whole(tmp_path):
    whole, _ = fit(tmp_path / "whole")
    with pytest.raises(FloatingPointError, match="the loss of linear is nan at step 7; .* smaller lr"):
        fit(tmp_path / "broken", corrupt=lambda step, loss: loss * float("nan") if step == 7 else loss)
    kept = state(tmp_path / "broken")
    assert kept["step"] == 7 and all(x.isfinite().all() for x in kept["modules"][0].values())
    assert same(copies(fit(tmp_path / "broken")[0]), copies(whole))


# -- SIGKILL ----------------------------------------------------------------------------------------------------------

def real_training(folder, steps):
    """Temporal layers on films of noise with the recipe's own loss, a second objective beside; runs in its own process."""
    torch.set_num_threads(1)
    found = Latents([normal(8, 4, 4, 4, seed=i).half() for i in range(3)], torch.tensor([[0, 1], [1, 2], [2, 3]]),
                    (("action", ("a", "b", "c", "d")), ("person", tuple("012345678"))), 8.0)
    theta = tiny_unet().requires_grad_(False)
    layers = insert(theta, ff_mult=1, ff_in=False)
    second = nn.Linear(4, 4)
    settings = Settings(steps, batch=2, lr=1e-2, warmup=3, precision="fp32", save_every_s=0)

    def beside(step, samples):
        return second(torch.randn(2, 4, generator=rng(0, step, 9))).square().mean(), {}
    objectives = [Objective("temporal", layers, diffusion_loss(VideoModel(theta, layers), found, 3, 2, settings)),
               Objective("second", second, beside)]
    train(folder, settings, objectives, watch=lambda: dict(alpha=layers.alphas()), progress=False)
    weights.save_tensors(folder / "end.safetensors", layers.state_dict())


def steps_done(folder):
    path = folder / "record.json"
    return json.loads(path.read_text())["rows"][-1]["step"] if path.is_file() else 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_training_killed_at_several_moments_and_resumed_ends_in_the_same_weights_to_the_bit(tmp_path):
    steps, context = 20, multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_training"])

    def start(name):
        process = context.Process(target=real_training, args=(tmp_path / name, steps))
        process.start()
        return process
    whole, killed = start("whole"), []
    for moment, delay in ((3, 0.0), (8, 0.004), (13, 0.013)):              # in a step, or while a checkpoint is written
        process = start("parts")
        while process.is_alive() and steps_done(tmp_path / "parts") < moment:
            time.sleep(0.005)
        time.sleep(delay)
        assert process.is_alive(), process.exitcode
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed.append((process.exitcode, steps_done(tmp_path / "parts")))
    assert all(code == -signal.SIGKILL and step < steps for code, step in killed), killed
    last = start("parts")
    last.join(), whole.join()
    assert (last.exitcode, whole.exitcode) == (0, 0)
    ends = [weights.load_tensors(tmp_path / name / "end.safetensors") for name in ("whole", "parts")]
    states = [state(tmp_path / name) for name in ("whole", "parts")]
    assert same(*ends) and all(same(*both) for both in zip(*(s["modules"] for s in states)))
    assert not list((tmp_path / "parts").glob(".*.part"))                  # what a kill left half-written is gone
    rows = [[row["losses"] for row in s["record"]["rows"]] for s in states]
    assert rows[0] == rows[1] and len(rows[0]) == steps
