"""A training and a sampling step of our layers in diffusers' image U-Net, against diffusers' own video U-Nets.

Protocol. `theirs`: UNetSpatioTemporalConditionModel with random weights. `ours`: the same weights, taken apart into a
UNet2DConditionModel and our temporal layers: the same function (`function_error` is checked on two clips with two
texts). Both in float32 on the same threads, spatial weights frozen, temporal weights trained. A training step is
forward, mean square and backward; a sampling step is one forward without gradients. Steps are interleaved, model
after model, and the ratios are theirs over ours in seconds (above 1: we are faster), medians of ROUNDS. Part of the
gain is that theirs copies a clip's text to every place of the picture; `one_token` is the same with one token of text.
Beside them UNetMotionModel and UNet3DConditionModel at the same widths, frames and size, other functions, with their
temporal parts trained: seconds, GFLOP (torch.utils.flop_counter) and seconds per TFLOP of a step, parameters.
"""
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

WIDTHS, HEADS = (64, 128, 128), (1, 2, 2)             # heads of 64, as Stable Diffusion 2 has them
CLIPS, FRAMES, SIZE, TOKENS, TEXT = 2, 8, 16, 77, 256
ROUNDS, SECONDS = 9, 240                              # rounds at most, and no new round after so many seconds
IDS = (6.0, 127.0, 0.02)


def run(rounds=ROUNDS, clock=time.perf_counter):
    """All figures. `clock`: time.process_time on a machine that is busy with other work."""
    torch.manual_seed(0)
    models, clip = contestants(), inputs()
    with torch.no_grad():
        ours, theirs = models["ours"][0](*clip), models["theirs"][0](*clip)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
    if error > 1e-4:
        raise ValueError(f"ours and theirs are not the same function (off by {error:.1e}); run tests/test_parity.py")
    train, sample = (timed(models, step, clip, rounds, clock) for step in (train_step, sample_step))
    short = [timed({name: models[name] for name in ("ours", "theirs")}, step, inputs(1), rounds, clock)
             for step in (train_step, sample_step)]
    figures = {name: describe(models[name], clip, train[name], sample[name]) for name in models}
    return {**ratios(train, sample), "one_token": ratios(*short), "function_error": error, "models": figures,
            "setting": dict(widths=WIDTHS, heads=HEADS, clips=CLIPS, frames=FRAMES, size=SIZE, tokens=TOKENS,
                            text=TEXT, precision="float32", rounds=rounds)}


def ratios(train, sample):
    """Theirs over ours, in seconds."""
    return {"train_ratio": round(train["theirs"] / train["ours"], 3),
            "sample_ratio": round(sample["theirs"] / sample["ours"], 3)}


def inputs(tokens=None):
    """z (b t c h w), tau (b,), text (b l d): two clips, two noise levels, two texts."""
    rng = torch.Generator().manual_seed(1)
    return (torch.randn(CLIPS, FRAMES, 4, SIZE, SIZE, generator=rng), torch.tensor([100, 700]),
            torch.randn(CLIPS, tokens or TOKENS, TEXT, generator=rng))


def contestants():
    """{name: (f(z, tau, text) -> (b t c h w), all parameters, trained parameters)}."""
    from vldm_mini.stable_diffusion import from_spatio_temporal
    from vldm_mini.temporal import VideoModel, temporal_parameters
    video = spatio_temporal()
    ours = VideoModel(*from_spatio_temporal(video, IDS))
    ids = torch.tensor([IDS] * CLIPS)
    motion, cube = motion_unet(), unet_3d()
    swap, each = lambda z: z.transpose(1, 2), lambda x: x.repeat_interleave(FRAMES, 0)          # noqa: E731
    return {
        "ours": _frozen(lambda z, tau, text: ours(z, tau, encoder_hidden_states=text), ours,
                        temporal_parameters(ours.layers)),
        "theirs": _frozen(lambda z, tau, text: video(z, tau, text, ids).sample, video,
                          _named(video, "temporal", "time_mixer", "time_pos_embed")),
        "UNetMotionModel": _frozen(lambda z, tau, text: swap(motion(swap(z), tau, each(text)).sample), motion,
                                   _named(motion, "motion_modules")),
        "UNet3DConditionModel": _frozen(lambda z, tau, text: swap(cube(swap(z), tau, text).sample), cube,
                                        _named(cube, "temp_", "transformer_in")),
    }


def _named(model, *parts):
    return [p for name, p in model.named_parameters() if any(part in name for part in parts)]


def _frozen(call, model, trained):
    model.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    return call, list(model.parameters()), trained


def _sizes(kind, **more):
    down, up = (f"CrossAttnDownBlock{kind}",) * 2, (f"CrossAttnUpBlock{kind}",) * 2
    return dict(sample_size=SIZE, in_channels=4, out_channels=4, down_block_types=(*down, f"DownBlock{kind}"),
                up_block_types=(f"UpBlock{kind}", *up), block_out_channels=WIDTHS, layers_per_block=2,
                cross_attention_dim=TEXT, **more)


def spatio_temporal():
    from diffusers import UNetSpatioTemporalConditionModel
    return UNetSpatioTemporalConditionModel(**_sizes("SpatioTemporal", addition_time_embed_dim=32, num_frames=FRAMES,
                                                     projection_class_embeddings_input_dim=96,
                                                     num_attention_heads=HEADS))


def motion_unet():
    from diffusers import UNetMotionModel
    sizes = _sizes("Motion", num_attention_heads=HEADS, motion_num_attention_heads=2, motion_max_seq_length=FRAMES)
    return UNetMotionModel(**sizes, use_linear_projection=True)


def unet_3d():
    from diffusers import UNet3DConditionModel
    return UNet3DConditionModel(**_sizes("3D", attention_head_dim=64))


def train_step(model, clip):
    """Forward, mean square, backward into the temporal weights."""
    call, _, trained = model
    for p in trained:
        p.grad = None
    call(*clip).square().mean().backward()


@torch.no_grad()
def sample_step(model, clip):
    """One evaluation of the network, as a sampler makes."""
    model[0](*clip)


def timed(models, step, clip, rounds, clock):
    """{name: median seconds of a step}, the models taking turns; one round first that does not count."""
    seconds, start = {name: [] for name in models}, time.perf_counter()
    for turn in range(rounds + 1):
        for name, model in models.items():
            begin = clock()
            step(model, clip)
            if turn:
                seconds[name].append(clock() - begin)
        if turn >= 3 and time.perf_counter() - start > SECONDS / 4:
            break
    return {name: statistics.median(times) for name, times in seconds.items()}


def describe(model, clip, train, sample):
    """Seconds, GFLOP and seconds per TFLOP of each step; parameters in all and trained."""
    rows = dict(parameters=sum(p.numel() for p in model[1]), trained=sum(p.numel() for p in model[2]))
    for name, step, seconds in (("train", train_step, train), ("sample", sample_step, sample)):
        with FlopCounterMode(display=False) as counter:
            step(model, clip)
        flop = counter.get_total_flops()
        rows |= {f"{name}_seconds": round(seconds, 4), f"{name}_gflop": round(flop / 1e9, 2),
                 f"{name}_seconds_per_tflop": round(seconds / flop * 1e12, 3)}
    return rows
