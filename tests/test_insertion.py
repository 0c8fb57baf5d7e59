"""Layers inserted into a backbone belong to the running call: copies, threads, recomputation.

And they are saved with everything that is needed to build them again. The mathematics of the layers
is tested in test_temporal.
"""

import copy
import functools
import json
import re
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.tiny import AUTOENCODER, copies, normal, same, shaken, tiny_unet
from vldm_mini import insertion
from vldm_mini.autoencoder import Autoencoder
from vldm_mini.latent_model import PipelineConfig
from vldm_mini.pipeline import VideoLDM
from vldm_mini.temporal import (
    Clip,
    TemporalAttention,
    TemporalLayers,
    TemporalMix,
    VideoModel,
    extend,
    fold,
    insert,
    insertion_points,
)

TAU, LABELS = torch.tensor([100, 700]), torch.tensor([[1, 2], [3, 8]])


def video_model(unet=None, **options):
    """A VideoModel whose temporal layers have random weights."""
    unet = tiny_unet() if unet is None else unet
    torch.manual_seed(0)
    return VideoModel(unet, shaken(insert(unet, **options), 0.2)).eval()


def clips(t=4, seed=0, b=2):
    return normal(b, t, 4, 4, 4, seed=seed)


@torch.no_grad()
def call(model, z, **more):
    return model(z, TAU[: len(z)], labels=LABELS[: len(z)], **more)


# -- copies ---------------------------------------------


@pytest.mark.parametrize("how", ["model", "pair"])
def test_a_deep_copy_computes_the_same_and_is_independent(how):
    model, z = video_model(), clips()
    want = call(model, z)
    assert not torch.equal(call(model, z, image=True), want)
    if how == "model":
        other = copy.deepcopy(model)
    else:
        other = VideoModel(*copy.deepcopy((model.backbone, model.layers)))
    assert torch.equal(call(other, z), want)
    mine = {p.data_ptr() for p in model.parameters()}
    assert mine.isdisjoint({p.data_ptr() for p in other.parameters()})
    other.layers.set_alpha(1.0)
    assert torch.equal(call(other, z), call(model, z, image=True)), "the copy's own alpha counts"
    other.layers.set_alpha(None)
    shaken(other.layers, 0.5, seed=7)
    assert not torch.allclose(call(other, z), want, atol=1e-3), "the copy's own weights count"
    shaken(other.backbone, 0.5, seed=8)
    assert torch.equal(call(model, z), want), "and the original is what it was"
    other.layers.remove()
    assert torch.equal(call(model, z), want)
    assert not any(module._forward_hooks for module in other.backbone.modules())


def test_a_copy_of_a_copy_and_a_copy_of_one_of_two_sets_of_layers_on_one_backbone():
    first, z = video_model(), clips()
    second = VideoModel(first.backbone, shaken(insert(first.backbone), 0.2, seed=5)).eval()
    want = call(first, z), call(second, z)
    assert not torch.allclose(*want, atol=1e-3)
    again = copy.deepcopy(copy.deepcopy(second))
    assert torch.equal(call(again, z), want[1])
    both = copy.deepcopy([first, second])
    assert torch.equal(call(both[0], z), want[0]) and torch.equal(call(both[1], z), want[1])


def test_a_deep_copy_of_a_video_ldm_samples_the_same():
    torch.manual_seed(0)
    model, autoencoder = video_model(), shaken(Autoencoder(AUTOENCODER)).eval()
    config = PipelineConfig(
        label_names=(("a", tuple("wxyz")), ("b", tuple("123456789"))), pixels=32, frames=4, steps=2
    )
    ldm = VideoLDM(autoencoder, model.backbone, model.layers, config)
    labels = ldm.labels(a="x", b=2)
    want = ldm.latents(labels)
    other = copy.deepcopy(ldm)
    assert torch.equal(other.latents(labels), want)
    shaken(ldm.layers, 0.5, seed=3)
    assert torch.equal(other.latents(labels), want)
    assert not torch.equal(ldm.latents(labels), want)
    assert not torch.equal(other.latents(labels, alpha=1), want)


def test_layers_copied_without_their_backbone_are_refused():
    model = video_model()
    with pytest.raises(ValueError, match="not inserted into this backbone"):
        VideoModel(model.backbone, copy.deepcopy(model.layers))
    with pytest.raises(ValueError, match="not inserted into this backbone"):
        VideoModel(tiny_unet(), model.layers)


# -- threads ---------------------------------------------


class Meeting(nn.Module):
    """A layer in which two threads wait for one another, so that their calls do overlap."""

    barrier = None

    def __init__(self, point):
        super().__init__()
        self.inner = TemporalAttention(point)

    def forward(self, z, clip):
        if Meeting.barrier is not None:
            Meeting.barrier.wait(timeout=60)
        return self.inner(z, clip)


def in_threads(*calls):
    """The results of functions that run at the same time, a thread each."""
    results = [None] * len(calls)

    def run(i):
        results[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    "first, second",
    [
        ({}, {}),
        ({}, {"alpha": 0.9}),
        ({"alpha": 1.0}, {"alpha": 0.0}),
        ({"positions": torch.tensor([9, 8, 7, 6])}, {"mask": torch.eye(4).bool()}),
    ],
    ids=str,
)
def test_two_calls_at_the_same_time_are_two_calls_one_after_the_other(first, second):
    model = video_model(attention=Meeting)
    a, b = clips(), clips(seed=1)
    want = call(model, a, **first), call(model, b, **second)
    assert not torch.equal(*want)
    Meeting.barrier = threading.Barrier(2)
    try:
        got = in_threads(lambda: call(model, a, **first), lambda: call(model, b, **second))
    finally:
        Meeting.barrier = None
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_calls_of_other_lengths_in_image_mode_and_of_the_bare_backbone_overlap():
    model, a, b = video_model(attention=Meeting), clips(t=3), clips(t=5, seed=1)
    frames = a.flatten(0, 1)
    tau, labels = TAU.repeat_interleave(3), LABELS.repeat_interleave(3, 0)

    @torch.no_grad()
    def bare():
        return model.backbone(frames, tau, labels)

    want = call(model, a), call(model, b), call(model, a, image=True), bare()
    Meeting.barrier = threading.Barrier(2)
    try:
        got = in_threads(
            lambda: call(model, a),
            lambda: call(model, b),
            lambda: [call(model, a, image=True) for _ in range(20)][-1],
            lambda: [bare() for _ in range(20)][-1],
        )
    finally:
        Meeting.barrier = None
    assert all(torch.equal(x, y) for x, y in zip(got, want))
    assert torch.equal(got[2].flatten(0, 1), got[3])


def test_alpha_of_one_call_is_a_fixed_alpha_and_leaves_nothing_behind():
    model, z = video_model(), clips()
    want = call(model, z)
    model.layers.set_alpha(0.25)
    fixed = call(model, z)
    model.layers.set_alpha(None)
    assert torch.allclose(call(model, z, alpha=0.25), fixed, atol=1e-5)
    assert torch.equal(call(model, z, alpha=1.0), call(model, z, image=True))
    assert torch.equal(call(model, z), want)
    with pytest.raises(ValueError, match=r"alpha lies in \[0, 1\], got 1.5"):
        call(model, z, alpha=1.5)


# -- gradient checkpointing ---------------------------------------------


def checkpointed(unet, **how):
    """The same U-Net, each Layer of which is recomputed during the backward pass."""
    for layer in (*unet.down, *unet.mid, *unet.up):
        layer.forward = functools.partial(checkpoint, layer.forward, **how)
    return unet


def several_calls(model):
    """A loss over calls of several lengths, with an alpha of their own and in image mode."""

    def one(z, **more):
        return model(z, TAU, labels=LABELS, **more).square().mean()

    text = normal(2, 5, 12, seed=5), normal(2, 5, 12, seed=6)
    return (
        one(clips(), text=text[0])
        + one(clips(3, seed=1), text=text[1], alpha=0.3)
        + one(clips(5, seed=2), image=True)
        + one(clips(seed=3), text=text[1], positions=torch.tensor([5, 1, 7, 2]))
    )


def gradients(model, backward=torch.Tensor.backward):
    model.zero_grad()
    backward(several_calls(model))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def in_another_thread(loss):
    in_threads(loss.backward)


@pytest.mark.parametrize(
    "backward", [torch.Tensor.backward, in_another_thread], ids=["this thread", "another thread"]
)
def test_checkpointing_gives_the_same_gradients(backward):
    want = gradients(video_model(text_channels=12))
    model = video_model(checkpointed(tiny_unet(), use_reentrant=False), text_channels=12)
    got = gradients(model, backward)
    assert len(want) > 100 and same(got, want)


def test_checkpointing_the_whole_model_gives_the_same_gradients():
    model = video_model()
    z = clips().requires_grad_()
    model(z, TAU, labels=LABELS).square().sum().backward()
    want, z.grad = z.grad, None
    checkpoint(model, z, TAU, labels=LABELS, use_reentrant=False).square().sum().backward()
    assert torch.equal(z.grad, want)


def test_the_image_model_alone_can_be_checkpointed_with_layers_hanging_on_it():
    model = video_model(checkpointed(tiny_unet(), use_reentrant=False))
    plain = tiny_unet()
    frames = normal(3, 4, 8, 8)
    for unet in (plain, model.backbone):
        unet(frames, TAU[0]).square().mean().backward()
    assert same(
        {n: p.grad for n, p in plain.named_parameters() if p.grad is not None},
        {n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None},
    )


def test_a_recomputation_whose_clip_is_not_known_is_an_error():
    model = video_model(checkpointed(tiny_unet(), use_reentrant=True))
    z = clips().requires_grad_()
    with pytest.raises(RuntimeError, match="use use_reentrant=False"):
        model(z, TAU, labels=LABELS).square().mean().backward()


def test_marks_on_tensors_keep_no_forward_pass_alive():
    """What a call leaves on its tensors must not refer back to them: memory would grow."""
    import gc
    import weakref

    model, seen = video_model(), []
    block = model.backbone.mid[0].block
    handle = block.register_forward_hook(
        lambda module, args, out: seen.extend(map(weakref.ref, args))
    )
    gc.disable()
    try:
        loss = model(clips(), TAU, labels=LABELS).square().mean()
        assert len(seen) == 2 and all(ref() is not None for ref in seen)
        loss.backward()
        del loss
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()
        handle.remove()


# -- conditions ---------------------------------------------


def test_conditions_in_dicts_lists_and_tuples_are_folded():
    b, t = 2, 3
    per_clip, per_frame, folded = normal(b, 7), normal(b, t, 4, 8, 8), normal(b * t, 5)
    got = fold({"a": [per_clip, (per_frame, {"b": folded})], "c": 3, "d": None, "e": "text"}, b, t)
    assert got["c"] == 3 and got["d"] is None and got["e"] == "text"
    assert torch.equal(got["a"][0], torch.stack([per_clip[i // t] for i in range(b * t)]))
    frames, inner = got["a"][1]
    assert isinstance(got["a"], list) and isinstance(got["a"][1], tuple)
    assert torch.equal(frames, torch.stack([per_frame[i // t, i % t] for i in range(b * t)]))
    assert torch.equal(inner["b"], folded)


def test_a_condition_of_another_batch_is_named():
    with pytest.raises(
        ValueError,
        match=r"added\['ids'\]\[0\] has 5 rows: give \(2, ...\) for 2 "
        r"clips, or \(2, 3, c, h, w\) or \(6, ...\)",
    ):
        fold({"ids": [torch.zeros(5, 2)]}, 2, 3, "added")
    with pytest.raises(ValueError, match=r"tau must be \(2,\), one for all frames"):
        video_model()(clips(), torch.tensor([1, 2, 3]), labels=LABELS)


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(positions=torch.arange(5)), r"positions must be \(4\), got \(5,\)"),
        (dict(mask=torch.ones(4, 5).bool()), r"mask must be \(4, 4\), got \(4, 5\)"),
        (dict(mask=torch.ones(4, 4)), "mask must be bool"),
        (dict(text=torch.zeros(2, 5, 13)), r"text must be \(2, l, 12\), got \(2, 5, 13\)"),
        (dict(text=torch.zeros(3, 5, 12)), r"text must be \(2, l, 12\), got \(3, 5, 12\)"),
        (dict(regime=torch.tensor([0, 2])), r"regime lies in 0..1, got \[0, 2\]"),
        (dict(regime=torch.tensor([0])), r"regime must be \(2\), got \(1,\)"),
        (dict(context=torch.zeros(2, 5, 3, 8, 8)), r"context must be \(2, 5, 4, h, w\), got"),
    ],
)
def test_a_clip_of_a_wrong_shape_is_refused_by_name(more, message):
    model = video_model(text_channels=12, regimes=2, context_channels=5)
    with pytest.raises(ValueError, match=message):
        call(model, clips(), **{"text": torch.zeros(2, 5, 12), **more})


def test_a_text_given_to_layers_without_text_is_refused():
    with pytest.raises(ValueError, match="take no text: insert them with text_channels"):
        call(video_model(), clips(), text=torch.zeros(2, 5, 12))


# -- number formats and devices ---------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_take_the_number_format_of_their_backbone(dtype, tmp_path):
    unet = tiny_unet().to(dtype)
    layers = insert(unet, text_channels=12, context_channels=5, regimes=2)
    assert {p.dtype for p in layers.parameters()} == {dtype}
    model, z = VideoModel(unet, layers).eval(), clips().to(dtype)
    more = dict(text=normal(2, 5, 12), context=normal(2, 5, 4, 4, 4), regime=torch.tensor([0, 1]))
    fresh = call(model, z, **more)
    assert fresh.dtype == dtype and torch.equal(fresh, call(model, z, image=True))
    shaken(layers, 0.02)
    y = call(model, z, **more)
    assert y.isfinite().all() and not torch.equal(y, fresh)
    assert torch.equal(call(model, z, alpha=1.0, **more), fresh)
    layers.save_pretrained(tmp_path)
    again = TemporalLayers.from_pretrained(tmp_path, unet)
    assert {p.dtype for p in again.parameters()} == {dtype}


def test_a_forward_pass_never_waits_for_the_device():
    """On the meta device, which has no values, reading one (bool, item, tolist) is an error."""
    with torch.device("meta"):
        unet = tiny_unet()
        model = VideoModel(
            unet, insert(unet, text_channels=12, context_channels=5, regimes=2, per="channel")
        )
        model.layers.set_alpha(0.5)
        y = model(
            torch.zeros(2, 4, 4, 8, 8),
            torch.zeros(2, dtype=torch.long),
            labels=torch.zeros(2, 2, dtype=torch.long),
            text=torch.zeros(2, 5, 12),
            context=torch.zeros(2, 5, 4, 8, 8),
            regime=torch.zeros(2, dtype=torch.long),
            mask=torch.ones(4, 4).bool(),
            positions=torch.arange(4),
        )
    assert y.shape == (2, 4, 4, 8, 8) and y.device.type == "meta"


# -- the embedding of tau ---------------------------------------------


class NeedsEmbedding(nn.Module):
    """Adds a projection of the embedding of tau; notes what it was given."""

    def __init__(self, point):
        super().__init__()
        self.project, self.seen = nn.Linear(point.emb_channels, point.channels), []

    def forward(self, z, clip):
        self.seen.append(clip.emb)
        return z + self.project(clip.emb).transpose(1, 2)[..., None, None]


@pytest.mark.parametrize(
    "options",
    [{}, dict(conv=None), dict(where=lambda point: "mid" in point.name)],
    ids=["all", "conv=None", "where"],
)
def test_every_insertion_point_gets_the_embedding_of_tau(options):
    model = video_model(attention=NeedsEmbedding, **options)
    call(model, clips())
    want = model.backbone.embed(TAU, LABELS)[:, None].expand(-1, 4, -1)
    layers = [
        mix.layer for mix in model.layers.mixes.values() if isinstance(mix.layer, NeedsEmbedding)
    ]
    assert layers and all(torch.allclose(layer.seen[0], want, atol=1e-5) for layer in layers)


# -- where ---------------------------------------------


def test_where_selects_insertion_points_by_a_function_or_by_names(tmp_path):
    unet = tiny_unet()
    names = [point.name for _, point in insertion_points(unet)]
    ups = [name for name in names if name.startswith("up")]
    assert 0 < len(ups) < len(names)
    for where in (lambda point: point.name.startswith("up"), ups, reversed(ups)):
        layers = insert(unet, where=where)
        assert list(layers.mixes) == [name.replace(".", "-") for name in ups]
        assert layers.settings["where"] == ups
    layers.save_pretrained(tmp_path)
    assert list(TemporalLayers.from_pretrained(tmp_path, unet).mixes) == list(layers.mixes)
    assert list(insert(unet, where=names[3]).mixes) == [names[3].replace(".", "-")]
    assert len(insert(unet, where=None).mixes) == len(names)


def test_only_the_chosen_insertion_points_change_anything():
    unet = tiny_unet()
    only = "down.0.block"
    model = VideoModel(unet, insert(unet, where=[only])).eval()
    with torch.no_grad():
        model.layers.mixes["down-0-block"].layer.conv2.bias += 1
    seen = {}
    for module, point in insertion_points(unet):
        module.register_forward_hook(lambda m, args, out, name=point.name: seen.update({name: out}))
    call(model, clips(), image=True)
    before = dict(seen)
    call(model, clips())
    assert torch.allclose(seen[only], before[only] + 0.5, atol=1e-5), "alpha is 0.5"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(where=["mid.9"]), "no insertion point is called mid.9; there are down.0.block"),
        (dict(where=lambda point: False), "no temporal layer was inserted"),
        (dict(conv=None, attention=None), "no temporal layer was inserted"),
        (
            dict(per="channels"),
            'per is "scalar", "channel" or a number of frames, got \'channels\'',
        ),
        (dict(per=0), "per is .* got 0"),
        (dict(per=True), "per is .* got True"),
        (dict(colour=3), "have no option colour; there are text_channels"),
        (
            dict(attention=functools.partial(TemporalAttention, 3)),
            "name the arguments in functools.p",
        ),
        (dict(attention={"class": TemporalAttention}), "under the key 'layer'"),
        (dict(attention=lambda point: TemporalAttention(point)), "a lambda has no name"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
)
def test_what_cannot_be_inserted_is_said_in_one_line(options, message):
    unet = tiny_unet()
    with pytest.raises(ValueError, match=message):
        insert(unet, **options)
    assert not any(module._forward_hooks for module in unet.modules())


def test_an_instance_and_a_layer_that_is_no_module_are_type_errors():
    unet = tiny_unet()
    point = insertion_points(unet)[0][1]
    with pytest.raises(TypeError, match="give the class TemporalAttention, not an instance"):
        insert(unet, attention=TemporalAttention(point))
    with pytest.raises(TypeError, match="gave a NoneType, not an nn.Module; .*where="):
        insert(unet, attention=gives_none)
    with pytest.raises(TypeError, match="given as a class, functools.partial.*got 3"):
        insert(unet, attention=3)


def gives_none(point):
    return None


# -- a reader's own layers: hyperparameters, source, hash ------------------------------------------


class Shares(nn.Module):
    """A learned share of the frame `steps` earlier, times `scale`."""

    def __init__(self, point, steps=1, scale=1.0):
        super().__init__()
        self.steps, self.scale = steps, scale
        self.share = nn.Parameter(torch.zeros(point.channels, 1, 1, 1))

    def forward(self, z, clip):
        return z + self.scale * self.share * z.roll(self.steps, dims=2)


@dataclass(frozen=True)
class SharesOf:
    """The same as a dataclass of hyperparameters that builds the layer."""

    steps: int = 1

    def __call__(self, point):
        return Shares(point, self.steps)


class QuarterMix(TemporalMix):
    """A mix of one's own, with a fixed weight of a quarter."""

    def forward(self, z, clip):
        return z if clip.image else z + 0.25 * (self.layer(z, clip) - z)


@pytest.mark.parametrize(
    "given, cls",
    [
        (functools.partial(Shares, steps=2), Shares),
        (dict(layer=Shares, steps=2), Shares),
        (SharesOf(2), SharesOf),
    ],
    ids=["partial", "dict", "dataclass"],
)
def test_hyperparameters_are_used_saved_and_loaded(given, cls, tmp_path):
    unet, z = tiny_unet(), clips()
    model = VideoModel(unet, shaken(insert(unet, attention=given), 0.3)).eval()
    layers = [mix.layer for name, mix in model.layers.mixes.items() if name.endswith("attention")]
    assert layers and all(layer.steps == 2 for layer in layers)
    y = call(model, z)
    model.layers.save_pretrained(tmp_path, dtype=torch.float32)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["hyperparameters"] == {"attention": {"steps": 2}}
    assert saved["attention"] == f"tests.test_insertion.{cls.__name__}"
    assert saved["conv"] == "vldm_mini.temporal.TemporalConv"
    again = TemporalLayers.from_pretrained(tmp_path, unet, attention=cls)
    assert torch.equal(call(VideoModel(unet, again), z), y)
    text = (tmp_path / f"{cls.__name__}.py.txt").read_text()
    assert "import torch\n" in text and f"class {cls.__name__}" in text
    assert not (tmp_path / "TemporalConv.py.txt").exists()


def test_conv_and_attention_may_be_one_class_with_different_hyperparameters(tmp_path):
    unet = tiny_unet()
    layers = insert(unet, conv=functools.partial(Shares, steps=3), attention=Shares)
    layers.save_pretrained(tmp_path)
    again = TemporalLayers.from_pretrained(tmp_path, unet, conv=Shares, attention=Shares)
    assert [mix.layer.steps for mix in again.mixes.values()] == [
        3 if point.kind == "conv" else 1 for _, point in insertion_points(unet)
    ]


def test_a_mix_of_ones_own_is_saved_and_loaded(tmp_path):
    unet, z = tiny_unet(), clips()
    model = VideoModel(unet, shaken(insert(unet, mix=QuarterMix), 0.2)).eval()
    y = call(model, z)
    model.layers.save_pretrained(tmp_path, dtype=torch.float32)
    with pytest.raises(ValueError, match="saved with mix=QuarterMix, .*give it"):
        TemporalLayers.from_pretrained(tmp_path, unet)
    again = TemporalLayers.from_pretrained(tmp_path, unet, mix=QuarterMix)
    assert torch.equal(call(VideoModel(unet, again), z), y)
    assert (tmp_path / "QuarterMix.py.txt").is_file()


@pytest.mark.parametrize("value", [nn.SiLU, {1, 2}, (1, 2), float("nan"), torch.zeros(1)], ids=str)
def test_a_hyperparameter_that_json_cannot_keep_is_refused(value):
    with pytest.raises(ValueError, match="hyperparameter scale=.* of Shares cannot be saved"):
        insert(tiny_unet(), attention=functools.partial(Shares, scale=value))


def test_loading_names_the_argument_and_the_file_where_a_class_is_missing(tmp_path):
    unet = tiny_unet()
    insert(unet, conv=Shares).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"conv=Shares, .*from_pretrained\(..., conv=Shares\); "
        r"its source lies in .*Shares\.py\.txt",
    ):
        TemporalLayers.from_pretrained(tmp_path, unet)
    with pytest.raises(ValueError, match="saved with conv=Shares, not with Meeting"):
        TemporalLayers.from_pretrained(tmp_path, unet, conv=Meeting)
    with pytest.raises(ValueError, match="saved with attention=TemporalAttention, not with Shares"):
        TemporalLayers.from_pretrained(tmp_path, unet, conv=Shares, attention=Shares)
    with pytest.raises(ValueError, match="give the class alone"):
        TemporalLayers.from_pretrained(tmp_path, unet, conv=functools.partial(Shares, steps=5))


def test_a_damaged_config_is_named(tmp_path):
    insert(tiny_unet()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"conv"', '"cnov"'))
    with pytest.raises(ValueError, match=r"config.json is damaged, it lacks conv"):
        TemporalLayers.from_pretrained(tmp_path, tiny_unet())


SOURCE = '''"""A file of layers."""
import torch
from torch import nn

STEPS = 1


def earlier(z):
    return z.roll(STEPS, dims=2)


class Mine(nn.Module):
    """Mine."""

    def __init__(self, point, scale=1.0):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, z, clip):
        return z + self.share * earlier(z)   # a comment


class Another(nn.Module):
    pass
'''


def hash_of(tmp_path, monkeypatch, text, scale=1.0, **options):
    import importlib
    import sys

    (tmp_path / "mylayers.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mylayers", None)
    importlib.invalidate_caches()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        make = importlib.import_module("mylayers").Mine
    finally:
        sys.dont_write_bytecode = before
    make = functools.partial(make, scale=scale)
    return insert(tiny_unet(), attention=make, **options).source_hash()


def test_the_hash_of_layers_changes_with_what_they_compute_and_with_nothing_else(
    tmp_path, monkeypatch
):
    want = hash_of(tmp_path, monkeypatch, SOURCE)
    assert len(want) == 64
    same_code = [
        SOURCE,
        SOURCE.replace("a comment", "another one"),
        SOURCE.replace("Mine.", "M."),
        SOURCE.replace("    pass", "    x = 1"),
        SOURCE + "\n\nOTHER = 3\n",
    ]
    other_code = [
        SOURCE.replace("z + self", "z - self"),
        SOURCE.replace("STEPS = 1", "STEPS = 2"),
        SOURCE.replace("dims=2", "dims=1"),
    ]
    for text in same_code:
        assert hash_of(tmp_path, monkeypatch, text) == want
    for text in other_code:
        assert hash_of(tmp_path, monkeypatch, text) != want
    assert hash_of(tmp_path, monkeypatch, SOURCE, scale=2.0) != want
    assert hash_of(tmp_path, monkeypatch, SOURCE, where=["mid.0.attention"]) != want
    assert hash_of(tmp_path, monkeypatch, SOURCE, per="channel") != want
    assert insert(tiny_unet()).source_hash() == insert(tiny_unet(seed=3)).source_hash()


def test_a_class_of_a_notebook_cell_keeps_the_text_of_its_cell():
    """A cell's code has a file name of its own, whose text Python's linecache holds."""
    import linecache

    cell = "<ipython-input-7-0123>"
    text = SOURCE
    linecache.cache[cell] = (len(text), None, text.splitlines(True), cell)
    space = {"__name__": "__main__"}
    exec(compile(text, cell, "exec"), space)
    layer = insertion.LayerClass.of(space["Mine"])
    assert layer.source == text and layer.path == "__main__.Mine" and not layer.built_in
    assert layer.sources() == {"Mine": text}


# -- wrapped backbones, extension ---------------------------------------------


def test_layers_saved_from_a_lora_wrapped_backbone_load_into_the_plain_one(tmp_path):
    peft = pytest.importorskip("peft")
    plain, z = tiny_unet(), clips()
    wrapped = peft.get_peft_model(tiny_unet(), peft.LoraConfig(target_modules=["to_q"]))
    model = VideoModel(wrapped, shaken(insert(wrapped), 0.2)).eval()
    y = call(model, z)
    assert list(model.layers.mixes) == list(insert(plain).mixes)
    model.layers.save_pretrained(tmp_path, dtype=torch.float32)
    again = VideoModel(plain, TemporalLayers.from_pretrained(tmp_path, plain)).eval()
    assert torch.equal(call(again, z), y), "a fresh LoRA changes nothing"
    assert model.prediction == plain.prediction and model.schedule == plain.schedule


def test_extended_layers_take_the_old_ones_off_the_backbone_and_keep_their_settings():
    unet = tiny_unet()
    bare = sum(len(module._forward_hooks) for module in unet.modules())
    given = dict(
        where=lambda point: point.name.startswith("up"),
        mix=QuarterMix,
        per="channel",
        conv=functools.partial(Shares, steps=2),
    )
    layers = shaken(insert(unet, **given), 0.2).eval()
    hooks = sum(len(module._forward_hooks) for module in unet.modules())
    want = call(VideoModel(unet, layers), clips())
    wide = extend(layers, unet, context_channels=5, regimes=2)
    assert sum(len(module._forward_hooks) for module in unet.modules()) == hooks > bare
    assert not layers.hang_on(unet) and wide.hang_on(unet) and not wide.training
    assert torch.equal(call(VideoModel(unet, wide), clips()), want)
    old, new = layers.settings, wide.settings
    assert new == old | {"options": {"context_channels": 5, "regimes": 2}}
    before = copies(layers)
    assert same({name: x for name, x in copies(wide).items() if name in before}, before)
    with pytest.raises(ValueError, match="not inserted into this backbone"):
        VideoModel(unet, layers)


def test_a_video_model_passes_on_the_schedule_and_the_prediction_of_its_backbone():
    from vldm_mini.diffusion import Schedule

    unet = tiny_unet(prediction="eps")
    layers = insert(unet)
    assert VideoModel(unet, layers).schedule is unet.schedule
    assert VideoModel(unet, layers).prediction == "eps"
    other = Schedule.scaled_linear()
    model = VideoModel(unet, layers, schedule=other, prediction="x0")
    assert model.schedule is other and model.prediction == "x0"
    decoder = Autoencoder(AUTOENCODER).decoder
    model = VideoModel(decoder, insert(decoder, attention=None))
    assert model.schedule is None and model.prediction is None


def test_a_compiled_model_computes_the_same():
    model, z = video_model(), clips()
    want = call(model, z)
    assert torch.allclose(call(torch.compile(model, backend="eager"), z), want, atol=1e-5)


def test_a_clip_has_every_field_that_a_call_can_set():
    import inspect

    names = set(inspect.signature(VideoModel.forward).parameters) - {"self", "z", "tau", "cond"}
    assert names | {"frames", "emb"} == {field for field in Clip.__dataclass_fields__}
