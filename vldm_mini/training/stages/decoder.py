"""Stage `decoder`: temporal layers of the decoder (paper, section 3.1.1). Chapter 05."""
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from ... import machine, weights
from ...autoencoder import (
    Autoencoder,
    PatchCritic,
    VideoDecoder,
    adaptive_weight,
    hinge_critic_loss,
    hinge_decoder_loss,
)
from ...datasets import driving
from ...datasets.driving import DrivingClip
from ...temporal import TemporalLayers, insert
from ..data import FrameStore, fingerprint, load_clips, rendered, to_float
from ..loop import Objective, Watch
from ..randomness import BatchRandom
from ..record import Record
from ..sizes import Size
from .autoencoder import CRITIC_WEIGHT
from .common import STORED_AS, Job, Request, alphas_row, card

# MINI: an error that changes from frame to frame counts again, beside L1 and the critic of clips
CHANGE_WEIGHT = 2.0
# MINI: generated latents differ a little from frame to frame, and no decoder of single frames can
# tell which part of that is meant. So latents carry noise here, another in each frame, of a
# strength that is uniform up to this share of their spread
DECODER_NOISE = 0.25
# the decoder meets the end of the stack (30 frames a second) most often, but also its middle
DECODER_FPS = (16 * driving.KEY_FPS, 16 * driving.KEY_FPS, 4 * driving.KEY_FPS, driving.KEY_FPS)
MAX_CLIPS = 600


def prepare(request: Request) -> Job:
    """Temporal layers of the decoder; encoder and decoder stay as they are. Saves out/decoder."""
    settings, dial = request.settings("decoder"), request.dial
    source = request.folder("autoencoder")
    if not (source / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no autoencoder in {request.out}; first: python -m vldm_mini "
                                f"train autoencoder --data {request.data}")
    model = Autoencoder.from_pretrained(source).to(machine.device()).requires_grad_(False)
    clips = decoder_clips(request.data, dial)
    stride = 1 if request.data == "driving" else dial.stride
    store = FrameStore(list(rendered(clips)), machine.device(), dial.frames, stride,
                       [clip.name for clip in clips])

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        # MINI: convolutions over time that also look sideways: what moves is elsewhere in the next
        # frame
        layers = (TemporalLayers.from_pretrained(request.start, model.decoder) if request.start
                  else insert(model.decoder, attention=None, space=3))
        critic = PatchCritic(dims=3).to(machine.device())

        def draw_clips(draw: BatchRandom) -> Tensor:
            return to_float(store.at(store.windows(draw)))
        return objectives(VideoDecoder(model, layers), layers.train(), last_weights(layers), critic,
                          draw_clips, settings.steps)

    def finish(built: list[Objective], record: Record) -> None:
        text = card("decoder layers (temporal)", request, record)
        built[0].module.save_pretrained(request.folder("decoder"), text, STORED_AS)

    def watch(built: list[Objective]) -> Watch:
        return Watch(row=alphas_row(built[0].module))
    return Job("decoder", settings, build, finish, dict(data=fingerprint(clips)), watch)


def decoder_clips(data: str, dial: Size) -> list:
    """Clips to decode: of `driving` one a scene at one of DECODER_FPS, else those of training."""
    if data != "driving":
        return load_clips(data, dial)[0]
    seeds = driving.seeds("train", min(MAX_CLIPS, dial.clips))
    found = []
    for i, seed in enumerate(seeds):
        fps = DECODER_FPS[i % len(DECODER_FPS)]
        found.append(DrivingClip(seed, dial.frames, dial.pixels, fps, start=2.0))
    return found


def last_weights(layers: TemporalLayers) -> Tensor:
    """The weights by whose gradients reconstruction and critic are balanced."""
    return list(layers.mixes.values())[-1].layer.conv2.weight


def noisy_latents(z: Tensor, draw: BatchRandom) -> Tensor:
    """z (b t c h w) plus noise of each frame's own, one strength a clip, up to DECODER_NOISE."""
    strength = DECODER_NOISE * draw.uniform()
    return z + strength[:, None, None, None, None] * draw.normal(*z.shape[1:])


def objectives(decoder: VideoDecoder, trained: nn.Module, balance_on: Tensor, critic: PatchCritic,
               draw_clips: Callable[[BatchRandom], Tensor], steps: int) -> list[Objective]:
    """The decoder and its critic. draw_clips(draw) -> clips (b t 3 h w) in [-1, 1].

    trained: the module that learns; balance_on: its last weights. critic: of clips if its
    convolutions are 3-D, else of frames. It joins after a quarter of `steps`.
    """
    of_clips = critic[0].weight.ndim == 5
    fold = "b t c h w -> b c t h w" if of_clips else "b t c h w -> (b t) c h w"
    last = {}

    def score(x: Tensor) -> Tensor:
        return critic(rearrange(x, fold)).float()

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        x = draw_clips(draw)
        with torch.no_grad():
            z = decoder.autoencoder.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        x_hat = decoder(noisy_latents(z.float(), draw))
        error = (x - x_hat).abs().mean()
        # over frames: what the error changes by from one frame to the next
        change = (x - x_hat).diff(dim=1).abs().mean()
        reconstruction = error + CHANGE_WEIGHT * change
        last[draw.part] = x, x_hat.detach()
        total = reconstruction
        if draw.step >= steps // 4:
            adversarial = hinge_decoder_loss(score(x_hat))
            weight = adaptive_weight(reconstruction, adversarial, balance_on)
            total = total + CRITIC_WEIGHT * weight * adversarial
        return total, dict(error=error, change=change)

    def critic_loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        real, fake = last[draw.part]
        return hinge_critic_loss(score(real), score(fake)), {}
    return [Objective("decoder", trained, loss, muon=True),
            Objective("critic", critic, critic_loss, lr_scale=0.5)]
