"""The training loop: random numbers of (seed, step), and a run that survives being killed."""
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
from vldm_mini.diffusion import Schedule
from vldm_mini.temporal import VideoModel, insert
from vldm_mini.training import (
    EMA,
    LEVELS,
    BatchRandom,
    Objective,
    Record,
    Settings,
    Watch,
    learning_rate,
    loop,
    make_optimizers,
    train,
)
from vldm_mini.training.data import Latents
from vldm_mini.training.loop import STATE
from vldm_mini.training.losses import LossOptions, diffusion_loss
from vldm_mini.training.randomness import mixed_seed
from vldm_mini.training.sizes import SIZES
from vldm_mini.unet import UNet

CPU = torch.device("cpu")
SETTINGS = Settings(steps=20, batch=4, lr=1e-2, warmup=3, ema=0.9, precision="fp32",
                    save_every_s=0)


def linear():
    """The layer that `fit` trains, the same at every call."""
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def fit(folder, settings=SETTINGS, corrupt=None, model=None, **more):
    """Train a linear layer to sum three numbers -> (layer, record).

    corrupt(step, loss) may change the loss.
    """
    model = model or linear()

    def loss(draw):
        x, tau = draw.normal(3), draw.integers(1000)
        each = (model(x)[:, 0] - x.sum(1)).square()
        mean = corrupt(draw.step, each.mean()) if corrupt else each.mean()
        return mean, dict(tau=tau, loss=each.detach(), shown=float(draw.step))
    return model, train(folder, settings, [Objective("linear", model, loss)], progress=False,
                        **more)


def one_weight(value=1.0):
    """A module of a single weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def state(folder):
    return weights.load_state(folder / STATE)


# -- randomness -----------------------------------------------------------------------------------

def test_seeds_of_neighbouring_steps_are_unrelated():
    seeds = [mixed_seed(seed, step) for seed in range(20) for step in range(100)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2 ** 63 for seed in seeds)
    values = torch.tensor(seeds, dtype=torch.float64) / 2 ** 63
    assert float(values.mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1])) < 0.05
    assert mixed_seed(2 ** 62, 10 ** 7) != mixed_seed(2 ** 62, 10 ** 7 + 1)


def test_the_numbers_of_a_step_depend_on_seed_and_step_alone():
    def numbers(seed, step):
        draw = BatchRandom(seed, step, 4, CPU)
        return torch.cat([draw.uniform(), draw.normal(3).flatten(), draw.integers(9).float()])
    first = numbers(1, 2)
    assert torch.equal(numbers(1, 2), first)
    assert not torch.equal(numbers(1, 3), first) and not torch.equal(numbers(2, 2), first)


def test_the_parts_of_a_batch_are_slices_of_the_whole():
    def numbers(**part):
        draw = BatchRandom(0, 5, 12, CPU, **part)
        high = torch.arange(1, 13)[draw.rows]
        return draw.samples, draw.index, draw.uniform(2), draw.normal(3), draw.integers(high)
    whole, parts = numbers(), [numbers(part=k, parts=3) for k in range(3)]
    assert sum((part[0] for part in parts), []) == whole[0] == list(range(12))
    for number in range(1, 5):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])
    with pytest.raises(ValueError, match="a batch of 12 cannot be divided into 5 equal parts"):
        BatchRandom(0, 5, 12, CPU, parts=5)


def test_integers_are_uniform_and_stay_below_their_limit():
    draw = BatchRandom(0, 0, 3000, CPU)
    counts = draw.integers(3).bincount(minlength=3) / 3000
    assert len(counts) == 3 and (counts - 1 / 3).abs().max() < 0.03
    high = torch.tensor([1, 2, 5]).repeat(1000)
    found = draw.integers(high)
    assert (found < high).all() and (found >= 0).all() and set(found[2::3].tolist()) == {*range(5)}
    largest = BatchRandom(0, 0, 4, CPU)
    largest.uniform = lambda: torch.full((4,), 1 - 2 ** -24)
    assert largest.integers(2 ** 26).max() < 2 ** 26


# -- EMA, Muon and the learning rate --------------------------------------------------------------

def set_to(model, value):
    for p in model.parameters():
        nn.init.constant_(p, value)


def test_the_first_ema_step_copies_and_the_second_keeps_two_elevenths():
    model = nn.Linear(2, 1)
    ema = EMA(model, 0.999)
    set_to(model, 5.0)
    ema.update(model)
    assert all((shadow == 5).all() for shadow in ema.shadow.values())
    set_to(model, 16.0)
    ema.update(model)                                       # (1 + 1) / (10 + 1) of the old value
    mean = torch.tensor(5 * 2 / 11 + 16 * 9 / 11)
    assert all(torch.allclose(shadow, mean) for shadow in ema.shadow.values())


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
    both = (training.Muon([ours], lr=0.1),
            torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    for grad in grads:
        for p, optimizer in zip((ours, theirs), both):
            p.grad = grad.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.05 * (ours - start).norm()


def test_muon_steps_matrices_of_several_shapes_as_it_steps_each_alone():
    shapes = (16, 24), (32, 16), (16, 24), (16, 4, 3, 2)
    together = [nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    optimizers = [training.Muon(together, lr=0.1), *(training.Muon([p], lr=0.1) for p in alone)]
    for step in range(2):
        for i, (a, b) in enumerate(zip(together, alone)):
            a.grad = b.grad = normal(*a.shape, seed=10 * step + i)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, alone))


def test_a_muon_step_has_singular_values_near_one_whatever_the_gradients_are():
    x = normal(40, 24, seed=0) * torch.logspace(-1, 1, 24)                   # a hundred to one
    assert torch.linalg.svdvals(x).max() / torch.linalg.svdvals(x).min() > 50
    values = torch.linalg.svdvals(training.orthogonal(x))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_gets_the_matrices_of_hidden_layers_and_adamw_the_rest():
    model = nn.Sequential(nn.Conv2d(2, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 3),
                          nn.Embedding(5, 32))
    names = {id(p): name for name, p in model.named_parameters()}
    adamw, muon = make_optimizers(model, muon=True)
    held = [[names[id(p)] for p in one.param_groups[0]["params"]] for one in (adamw, muon)]
    assert held[1] == ["0.weight", "1.weight"] and isinstance(muon, training.Muon)
    assert sorted(sum(held, [])) == sorted(names.values())
    assert len(make_optimizers(model)) == 1


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_cosine_to_zero():
    rates = [learning_rate(2.0, step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[50] == pytest.approx(1.0) and rates[25] == pytest.approx(1 + math.cos(math.pi / 4))
    assert all(a < b for a, b in zip(rates[:9], rates[1:10]))
    assert all(a > b for a, b in zip(rates[9:], rates[10:]))
    assert learning_rate(2.0, 0, 100, 0) == 2.0


# -- the loop -------------------------------------------------------------------------------------

def test_training_learns_and_ends_in_the_ema_weights(tmp_path):
    model, record = fit(tmp_path, replace(SETTINGS, steps=100, lr=0.1, save_every_s=60))
    assert record.rows[-1]["losses"]["linear"] < 0.01 * record.rows[0]["losses"]["linear"]
    end = state(tmp_path)
    assert same(copies(model), end["ema"]["shadow"])
    assert not same(copies(model), end["modules"][0])


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_of_the_weights_decays_as_the_settings_say(tmp_path, decay):
    """The average by hand, from the weights as each step leaves them."""
    model, seen = one_weight(), []

    def loss(draw):
        seen.append(model.weight.item())
        return (model.weight - 3).square().sum(), {}
    settings = replace(SETTINGS, steps=30, lr=0.1, ema=decay)
    train(tmp_path, settings, [Objective("one", model, loss)], progress=False)
    after_steps = [*seen[1:], float(state(tmp_path)["modules"][0]["weight"])]
    mean = after_steps[0]
    for step, value in enumerate(after_steps[1:], 1):
        share = min((1 + step) / (10 + step), decay)
        mean = share * mean + (1 - share) * value
    assert model.weight.item() == pytest.approx(mean, abs=1e-6)
    assert abs(mean - after_steps[-1]) > 1e-4, "the average differs from the last weights"


def test_the_gradient_is_clipped(tmp_path):
    model, _ = fit(tmp_path, replace(SETTINGS, steps=1), corrupt=lambda step, loss: 1e4 * loss)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert float(norm) == pytest.approx(SETTINGS.clip_norm, rel=1e-3)


def test_a_small_gradient_is_not_clipped(tmp_path):
    model = one_weight()
    objective = Objective("one", model, lambda draw: (0.25 * model.weight.sum(), {}))
    train(tmp_path, replace(SETTINGS, steps=1), [objective], progress=False)
    assert model.weight.grad.item() == 0.25


def rates_of(folder, scale, stop=None):
    """The learning rates of 12 steps on a constant gradient, from what AdamW moves the weight by.

    AdamW's step is then w - lr (1 + 0.01 w), 0.01 being its weight decay. stop: where the run is
    interrupted and resumed.
    """
    seen = {}

    def run(stop):
        model = one_weight()

        def loss(draw):
            seen[draw.step] = model.weight.item()
            if draw.step == stop:
                raise KeyboardInterrupt
            return 0.5 * model.weight.sum(), {}
        settings = replace(SETTINGS, steps=12, lr=0.1, warmup=4)
        train(folder, settings, [Objective("one", model, loss, lr_scale=scale)], progress=False)
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            run(stop)
    run(None)
    seen[12] = float(state(folder)["modules"][0]["weight"])
    return [(seen[k] - seen[k + 1]) / (1 + 0.01 * seen[k]) for k in range(12)]


@pytest.mark.parametrize("scale, stop", [(1.0, None), (0.5, None), (1.0, 5), (0.5, 7)])
def test_every_step_has_the_learning_rate_of_its_number_times_the_objectives_scale(
        tmp_path, scale, stop):
    rates = [scale * learning_rate(0.1, step, 12, 4) for step in range(12)]
    assert rates_of(tmp_path, scale, stop) == pytest.approx(rates, rel=2e-3, abs=1e-5)


def test_accumulated_parts_cover_the_batch_once_and_give_its_gradient(tmp_path):
    seen, found, grads = [], {}, {}
    for parts in (1, 4):
        model = linear()

        def loss(draw, model=model):
            seen.append((draw.step, draw.part, draw.samples))
            x = draw.normal(3)
            return (model(x)[:, 0] - x.sum(1)).square().mean(), {}
        # without clipping, which hides a factor of the gradient as the steps of AdamW do
        settings = replace(SETTINGS, steps=3, batch=8, accumulate=parts, clip_norm=1e9)
        train(tmp_path / str(parts), settings, [Objective("one", model, loss)], progress=False)
        found[parts] = copies(model)
        grads[parts] = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(grads[1], grads[4], rtol=1e-4) and grads[1].norm() > 0.1
    assert [part for part in seen if part[0] == 1] == [
        (1, 0, [*range(8)]), (1, 0, [0, 1]), (1, 1, [2, 3]), (1, 2, [4, 5]), (1, 3, [6, 7])]
    assert all(torch.allclose(found[1][name], found[4][name], atol=1e-6) for name in found[1])
    losses = [Record.load(tmp_path / parts).rows[0]["losses"]["one"] for parts in ("1", "4")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_objective_that_leaves_steps_out_does_not_move_and_its_loss_appears_once_it_joins(
        tmp_path):
    torch.manual_seed(0)
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    model = nn.ModuleList([first, frozen])
    before, seen = copies(model), []

    def late(draw):
        seen.append(second.weight.item())
        return (second.weight.square().sum(), {}) if draw.step >= 10 else None
    objectives = [Objective("first", model, lambda draw: (first.weight.square().sum(), {})),
                  Objective("late", second, late)]
    record = train(tmp_path, SETTINGS, objectives, progress=False)
    assert len(set(seen[:11])) == 1 and len(set(seen[10:])) == 10
    assert [row["step"] for row in record.rows if "late" in row["losses"]] == list(range(11, 21))
    assert same(copies(frozen), {k[2:]: x for k, x in before.items() if k.startswith("1.")})


def test_bf16_is_used_where_it_is_asked_for_and_the_weights_stay_in_float32(tmp_path):
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 4), []

    def loss(draw):
        y = model(normal(2, 4))
        seen.append(y.dtype)
        return y.float().square().mean(), {}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        train(tmp_path / precision, replace(SETTINGS, steps=3, precision=precision),
              [Objective("net", model, loss)], progress=False)
        assert set(seen) == {dtype}
    assert model.weight.dtype == torch.float32 and model.weight.isfinite().all()


# -- the flight recorder --------------------------------------------------------------------------

def test_the_record_says_what_was_set_where_it_ran_and_how_it_went(tmp_path):
    _, record = fit(tmp_path, watch=Watch(row=lambda: dict(alpha={"down": 0.5})))
    assert Record.load(tmp_path) == record
    assert record.settings == dict(vars(SETTINGS)) and record.where["torch"] == torch.__version__
    assert {"commit", "python", "device", "threads", "processor"} <= record.where.keys()
    assert [row["step"] for row in record.rows] == list(range(1, 21))
    for row in record.rows:
        assert row["alpha"] == {"down": 0.5} and len(row["levels"]) == LEVELS
    assert all(a["minutes"] <= b["minutes"] for a, b in zip(record.rows, record.rows[1:]))
    assert sorted(record.rows[0]["losses"]) == ["linear", "shown"]


def test_a_row_of_a_long_run_is_the_mean_of_its_steps(tmp_path):
    _, record = fit(tmp_path, replace(SETTINGS, steps=600, batch=1, save_every_s=60))
    assert len(record.rows) == 200
    assert record.rows[0]["losses"]["shown"] == 1                              # steps 0, 1 and 2
    assert sum(level is not None for level in record.rows[0]["levels"]) <= 3


def test_the_loss_is_kept_for_each_level_of_noise(tmp_path):
    model = one_weight()
    each = torch.tensor([1.0, 3.0, 5.0, 7.0])

    def loss(draw):
        logs = dict(tau=torch.tensor([0, 99, 100, 999]), loss=each * (1 + draw.step))
        return model.weight.sum(), logs
    record = train(tmp_path, replace(SETTINGS, steps=2), [Objective("one", model, loss)],
                   progress=False)
    assert record.rows[0]["levels"] == [2.0, 5.0, *[None] * 7, 7.0]
    assert record.rows[1]["levels"] == [4.0, 10.0, *[None] * 7, 14.0]


def test_the_longest_record_of_size_m_is_under_1_mb(tmp_path):
    with torch.device("meta"):
        names = insert(UNet(SIZES["m"].unet)).mixes.keys()
    row = dict(step=100000, minutes=1234.567, process_minutes=1234.567,
               losses=dict(temporal=0.12345), levels=[0.12345] * LEVELS,
               alpha=dict.fromkeys(names, 0.1234))
    strips = [f"strip_{i:06d}.webp" for i in range(12)]
    Record(vars(SETTINGS), training.provenance(), [row] * 399, strips).save(tmp_path)
    assert (tmp_path / "record.json").stat().st_size < 1e6


def test_a_folder_without_a_record_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record.json in"):
        Record.load(tmp_path)


def test_strips_come_from_the_ema_weights_and_leave_the_training_weights_alone(tmp_path):
    from PIL import Image
    seen, model = [], linear()

    def strip():
        seen.append(copies(model))
        return Image.new("RGB", (2, 2))
    _, record = fit(tmp_path / "strips", model=model, watch=Watch(strip=strip, num_strips=4))
    fit(tmp_path / "plain")
    steps = (1, 3, 7, 20)
    assert record.strips == [f"strip_{step:06d}.webp" for step in steps]
    assert all((tmp_path / "strips" / name).is_file() for name in record.strips)
    with_strips, without = state(tmp_path / "strips"), state(tmp_path / "plain")
    assert same(seen[-1], with_strips["ema"]["shadow"])
    assert not same(seen[-1], with_strips["modules"][0])
    assert same(with_strips["modules"][0], without["modules"][0])


def test_held_out_figures_are_those_of_the_ema_weights_at_evenly_spaced_moments(tmp_path):
    model, seen = linear(), []

    def validate():
        seen.append(copies(model))
        return dict(error=1.5)
    watch = Watch(validate=validate, num_validations=4)
    _, record = fit(tmp_path, model=model, watch=watch)
    rows = [row["step"] for row in record.rows if row.get("held_out") == dict(error=1.5)]
    assert rows == [5, 10, 15, 20] and same(seen[-1], state(tmp_path)["ema"]["shadow"])


# -- stopping and going on ------------------------------------------------------------------------

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
    before = (tmp_path / STATE).read_bytes()
    message = r"a run with other settings \(batch, lr\); give another --out, or --no-resume"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, replace(SETTINGS, lr=0.02, batch=5))
    assert (tmp_path / STATE).read_bytes() == before


def test_a_run_is_not_resumed_under_another_precision(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, corrupt=stop_at(5))
    with pytest.raises(ValueError, match=r"other settings \(precision\)"):
        fit(tmp_path, replace(SETTINGS, precision="bf16"))


def test_a_precision_that_was_probed_is_the_one_that_a_run_is_resumed_under(tmp_path, monkeypatch):
    probed = replace(SETTINGS, precision="")
    monkeypatch.setattr(loop.machine, "probe_precision", lambda device: "fp32")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, probed, corrupt=stop_at(5))
    assert state(tmp_path)["settings"]["precision"] == "fp32"
    monkeypatch.setattr(loop.machine, "probe_precision", lambda device: "bf16")
    with pytest.raises(ValueError, match=r"other settings \(precision\)"):
        fit(tmp_path, probed)


@pytest.mark.parametrize("key", ["data", "layers"])
def test_a_run_on_other_data_or_with_other_layers_is_not_resumed(tmp_path, key):
    identity = dict(data="0123", layers="abcd")
    fit(tmp_path, identity=identity)
    fit(tmp_path, identity=dict(identity))
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ValueError, match=rf"a run with other data or layers \({key}\); give"):
        fit(tmp_path, identity=identity | {key: "4567"})
    assert (tmp_path / STATE).read_bytes() == before


def test_a_second_run_on_a_folder_is_refused_while_the_first_one_lives(tmp_path):
    errors = []

    def second(step, loss):
        if step == 3:
            with pytest.raises(BlockingIOError, match="has been using") as error:
                fit(tmp_path, replace(SETTINGS, lr=0.5))
            errors.append(str(error.value))
        return loss
    first, _ = fit(tmp_path, corrupt=second)
    alone, _ = fit(tmp_path.with_name("alone"))
    assert len(errors) == 1 and str(os.getpid()) in errors[0] and "--out" in errors[0]
    assert same(copies(first), copies(alone)), "the first one is unharmed"
    fit(tmp_path)


def test_a_checkpoint_of_another_size_or_a_damaged_one_is_refused(tmp_path):
    fit(tmp_path)
    objectives = [Objective("linear", nn.Linear(4, 1), None)]
    with pytest.raises(ValueError, match=r"another size: weight is \(1, 3\) there and \(1, 4\)"):
        train(tmp_path, SETTINGS, objectives, progress=False)
    path = tmp_path / STATE
    for damaged in (path.read_bytes()[:500], b"nothing", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.safetensors is damaged .*delete it"):
            fit(tmp_path)


def test_step_counters_of_adamw_return_to_where_a_fresh_optimizer_keeps_them():
    """On the device if it is fused, on the CPU otherwise; averages always lie on the device."""
    p = nn.Parameter(torch.zeros(2, device="meta"))
    stored = [dict(step=torch.tensor(3.0), exp_avg=torch.zeros(2), exp_avg_sq=torch.zeros(2))]
    for fused, device in ((True, "meta"), (False, "cpu")):
        optimizer = torch.optim.AdamW([p])
        optimizer.defaults["fused"] = fused
        loop.load_optimizer(optimizer, stored)
        found = {name: x.device.type for name, x in optimizer.state[p].items()}
        assert found == dict(step=device, exp_avg="meta", exp_avg_sq="meta")


# -- gradients that are not finite ----------------------------------------------------------------

def infinite_gradient(value):
    """A loss of finite value whose gradient is not: the derivative of a square root at 0."""
    zero = value - value.detach()
    return value.detach() + zero.abs().sqrt()


@pytest.mark.parametrize("corrupt", [lambda loss: loss * float("nan"), infinite_gradient,
                                     lambda loss: loss * 1e38 * 1e38],
                         ids=["NaN loss", "finite loss", "infinite loss"])
def test_a_gradient_that_is_not_finite_stops_the_run_and_its_last_checkpoint_is_whole(
        tmp_path, corrupt):
    whole, _ = fit(tmp_path / "whole")
    model = linear()
    message = (r"the gradient of linear is not finite at step 7; the last checkpoint in .*broken "
               r"is from before that\. Try a smaller --lr than 0\.01, or --precision fp32")
    with pytest.raises(FloatingPointError, match=message):
        fit(tmp_path / "broken", model=model,
            corrupt=lambda step, loss: corrupt(loss) if step == 7 else loss)
    assert all(p.isfinite().all() for p in model.parameters()), "no NaN reaches the weights"
    kept = state(tmp_path / "broken")
    assert kept["step"] == 7 and all(x.isfinite().all() for x in kept["modules"][0].values())
    assert same(copies(fit(tmp_path / "broken")[0]), copies(whole))


def test_between_two_rows_no_bad_gradient_reaches_the_weights_and_the_first_step_is_named(tmp_path):
    model, seen = linear(), []

    def corrupt(step, loss):
        seen.append(all(bool(p.isfinite().all()) for p in model.parameters()))
        return infinite_gradient(loss) if step in (401, 402) else loss
    with pytest.raises(FloatingPointError, match="linear is not finite at step 401"):
        fit(tmp_path, replace(SETTINGS, steps=1000), model=model, corrupt=corrupt)
    assert len(seen) == 405 and all(seen)                            # a row every fifth step
    assert state(tmp_path)["step"] == 400


# -- SIGKILL --------------------------------------------------------------------------------------

def real_training(folder, steps):
    """Temporal layers on clips of noise with the stage's loss, and a second objective beside them.

    Runs in a process of its own.
    """
    torch.set_num_threads(1)
    latents = Latents([normal(8, 4, 4, 4, seed=i).half() for i in range(3)],
                      torch.tensor([[0, 1], [1, 2], [2, 3]]),
                      (("action", tuple("abcd")), ("person", tuple("012345678"))), 8.0)
    theta = tiny_unet().requires_grad_(False)
    layers = insert(theta, ff_mult=1, ff_in=False)
    second = nn.Linear(4, 4)
    settings = Settings(steps, batch=2, lr=1e-2, warmup=3, precision="fp32", save_every_s=0)
    options = LossOptions(tau=(0.0, 1.0), stratified=True, temporal_difference=8.0)
    loss = diffusion_loss(VideoModel(theta, layers), latents, 3, 2, Schedule.linear(),
                          options=options)
    objectives = [Objective("temporal", layers, loss, muon=True),
                  Objective("second", second,
                            lambda draw: (second(draw.normal(4)).square().mean(), {}))]
    train(folder, settings, objectives, Watch(row=lambda: dict(alpha=layers.alphas())),
          progress=False)
    weights.save_tensors(folder / "end.safetensors", layers.state_dict())


def steps_done(folder):
    path = folder / "record.json"
    return json.loads(path.read_text())["rows"][-1]["step"] if path.is_file() else 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_training_killed_at_several_moments_and_resumed_ends_in_exactly_the_same_weights(tmp_path):
    steps, context = 20, multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_training"])

    def start(name):
        process = context.Process(target=real_training, args=(tmp_path / name, steps))
        process.start()
        return process
    whole, killed = start("whole"), []
    # in a step, or while a checkpoint is written
    for moment, delay in ((3, 0.0), (8, 0.004), (13, 0.013)):
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
    names = ("whole", "parts")
    assert same(*(weights.load_tensors(tmp_path / name / "end.safetensors") for name in names))
    states = [state(tmp_path / name) for name in names]
    assert all(same(*both) for both in zip(*(one["modules"] for one in states)))
    assert not list((tmp_path / "parts").glob(".*.part"))      # what a kill left half-written
    rows = [[row["losses"] for row in one["record"]["rows"]] for one in states]
    assert rows[0] == rows[1] and len(rows[0]) == steps
