"""Our temporal layers in diffusers' image U-Net against diffusers' own video U-Nets: seconds a
step.

Protocol. `theirs`: UNetSpatioTemporalConditionModel with random weights. `ours`: the same
weights, taken apart into a UNet2DConditionModel and our temporal layers: the same function
(`function_error` is checked on two clips with two texts). Both in float32 on the same threads,
spatial weights frozen, temporal weights trained. A training step is forward, mean square and
backward; a sampling step is one forward pass without gradients. Steps are interleaved, model
after model, and the ratios are theirs over ours in seconds (above 1: ours is faster), medians of
ROUNDS. Part of the gain is that theirs copies a clip's text to every position of the picture;
`one_token` is the same with one token of text. Beside them UNetMotionModel and
UNet3DConditionModel at the same widths, frames and size, other functions, with their temporal
parts trained: seconds, GFLOP (torch.utils.flop_counter) and seconds per TFLOP of a step,
parameters.
"""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

WIDTHS, HEADS = (64, 128, 128), (1, 2, 2)       # heads of 64, as Stable Diffusion 2 has them
CLIPS, FRAMES, SIZE, TOKENS, TEXT = 2, 8, 16, 77, 256
ROUNDS, SECONDS = 9, 240                        # rounds at most; no new one after so many seconds
IDS = (6.0, 127.0, 0.02)

Clip = tuple[Tensor, Tensor, Tensor]            # z (b t c h w), tau (b,), text (b l d)
Step = Callable[["Contestant", Clip], None]


@dataclass(frozen=True)
class Contestant:
    """call(z, tau, text) -> (b t c h w), all parameters, and those that are trained."""
    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    parameters: list[nn.Parameter]
    trained: list[nn.Parameter]


def run(rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter) -> dict:
    """All figures. clock: time.process_time on a machine that is busy with other work."""
    torch.manual_seed(0)
    models, clip = contestants(), inputs()
    with torch.no_grad():
        ours, theirs = models["ours"].call(*clip), models["theirs"].call(*clip)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
    if error > 1e-4:
        raise ValueError(f"ours and theirs are not the same function (off by {error:.1e}); "
                         "run tests/test_parity.py")
    train, sample = (timed(models, step, clip, rounds, clock) for step in (train_step, sample_step))
    two = {name: models[name] for name in ("ours", "theirs")}
    short = [timed(two, step, inputs(1), rounds, clock) for step in (train_step, sample_step)]
    figures = {name: describe(models[name], clip, train[name], sample[name]) for name in models}
    setting = dict(widths=WIDTHS, heads=HEADS, clips=CLIPS, frames=FRAMES, size=SIZE, tokens=TOKENS,
                   text=TEXT, precision="float32", rounds=rounds)
    return {**ratios(train, sample), "one_token": ratios(*short), "function_error": error,
            "models": figures, "setting": setting}


def ratios(train: dict[str, float], sample: dict[str, float]) -> dict[str, float]:
    """Theirs over ours, in seconds."""
    return {"train_ratio": round(train["theirs"] / train["ours"], 3),
            "sample_ratio": round(sample["theirs"] / sample["ours"], 3)}


def inputs(tokens: int = TOKENS) -> Clip:
    """Two clips, two noise levels, two texts."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(CLIPS, FRAMES, 4, SIZE, SIZE, generator=generator)
    return z, torch.tensor([100, 700]), torch.randn(CLIPS, tokens, TEXT, generator=generator)


# --------------------------------------------------------------------------------------------------
# The models.

def contestants() -> dict[str, Contestant]:
    """Ours, theirs, and two other video U-Nets of diffusers."""
    from vldm_mini.stable_diffusion import from_spatio_temporal
    from vldm_mini.temporal import VideoModel, temporal_parameters
    video, motion, cube = spatio_temporal(), motion_unet(), unet_3d()
    ours = VideoModel(*from_spatio_temporal(video, IDS))
    ids = torch.tensor([IDS] * CLIPS)

    def call_ours(z: Tensor, tau: Tensor, text: Tensor) -> Tensor:
        return ours(z, tau, encoder_hidden_states=text)

    def call_theirs(z: Tensor, tau: Tensor, text: Tensor) -> Tensor:
        return video(z, tau, text, ids).sample

    # these two have the axis of frames behind the channels, and one wants a text for every frame
    def call_motion(z: Tensor, tau: Tensor, text: Tensor) -> Tensor:
        text_of_frames = text.repeat_interleave(FRAMES, 0)
        return motion(z.transpose(1, 2), tau, text_of_frames).sample.transpose(1, 2)

    def call_cube(z: Tensor, tau: Tensor, text: Tensor) -> Tensor:
        return cube(z.transpose(1, 2), tau, text).sample.transpose(1, 2)
    return {
        "ours": frozen(call_ours, ours, list(temporal_parameters(ours.layers))),
        "theirs": frozen(call_theirs, video,
                         named(video, "temporal", "time_mixer", "time_pos_embed")),
        "UNetMotionModel": frozen(call_motion, motion, named(motion, "motion_modules")),
        "UNet3DConditionModel": frozen(call_cube, cube, named(cube, "temp_", "transformer_in")),
    }


def named(model: nn.Module, *parts: str) -> list[nn.Parameter]:
    """Parameters whose name holds one of the parts."""
    return [p for name, p in model.named_parameters() if any(part in name for part in parts)]


def frozen(call: Callable, model: nn.Module, trained: list[nn.Parameter]) -> Contestant:
    """A model of which only `trained` is trained."""
    model.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    return Contestant(call, list(model.parameters()), trained)


def _sizes(kind: str, **more: object) -> dict:
    """Arguments that the video U-Nets share; kind: the middle of their blocks' names."""
    attention_down, attention_up = f"CrossAttnDownBlock{kind}", f"CrossAttnUpBlock{kind}"
    return dict(sample_size=SIZE, in_channels=4, out_channels=4, layers_per_block=2,
                down_block_types=(attention_down, attention_down, f"DownBlock{kind}"),
                up_block_types=(f"UpBlock{kind}", attention_up, attention_up),
                block_out_channels=WIDTHS, cross_attention_dim=TEXT, **more)


def spatio_temporal() -> nn.Module:
    """The U-Net of Stable Video Diffusion, small."""
    from diffusers import UNetSpatioTemporalConditionModel
    return UNetSpatioTemporalConditionModel(**_sizes(
        "SpatioTemporal", addition_time_embed_dim=32, num_frames=FRAMES,
        projection_class_embeddings_input_dim=96, num_attention_heads=HEADS))


def motion_unet() -> nn.Module:
    """The U-Net of AnimateDiff, small."""
    from diffusers import UNetMotionModel
    return UNetMotionModel(use_linear_projection=True, **_sizes(
        "Motion", num_attention_heads=HEADS, motion_num_attention_heads=2,
        motion_max_seq_length=FRAMES))


def unet_3d() -> nn.Module:
    """The U-Net of ModelScope's text-to-video, small."""
    from diffusers import UNet3DConditionModel
    return UNet3DConditionModel(**_sizes("3D", attention_head_dim=64))


# --------------------------------------------------------------------------------------------------
# Timing.

def train_step(model: Contestant, clip: Clip) -> None:
    """Forward, mean square, backward into the temporal weights."""
    for p in model.trained:
        p.grad = None
    model.call(*clip).square().mean().backward()


@torch.no_grad()
def sample_step(model: Contestant, clip: Clip) -> None:
    """One evaluation of the network, as a sampler makes."""
    model.call(*clip)


def timed(models: dict[str, Contestant], step: Step, clip: Clip, rounds: int,
          clock: Callable[[], float]) -> dict[str, float]:
    """{name: median seconds of a step}, the models taking turns; the first round does not count."""
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


def describe(model: Contestant, clip: Clip, train: float, sample: float) -> dict:
    """Seconds, GFLOP and seconds per TFLOP of each step; parameters in all and trained."""
    row = dict(parameters=sum(p.numel() for p in model.parameters),
               trained=sum(p.numel() for p in model.trained))
    for name, step, seconds in (("train", train_step, train), ("sample", sample_step, sample)):
        with FlopCounterMode(display=False) as counter:
            step(model, clip)
        flop = counter.get_total_flops()
        row |= {f"{name}_seconds": round(seconds, 4), f"{name}_gflop": round(flop / 1e9, 2),
                f"{name}_seconds_per_tflop": round(seconds / flop * 1e12, 3)}
    return row
