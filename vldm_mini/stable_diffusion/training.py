"""Training mini-sd: autoencoder, text-to-image, then temporal layers on captioned clips.

    python -m vldm_mini train mini-sd --size s                 all three, in runs/mini-sd-s
    python -m vldm_mini train mini-sd-image --size s           one of them

Paper: section 4.2. The spatial layers are trained on frames of the same videos, and then stay
frozen: the paper's brief fine-tuning of Stable Diffusion on frames of its videos is part of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vldm_mini import machine, weights
from vldm_mini.autoencoder import Gaussian
from vldm_mini.diffusion import denoising_error
from vldm_mini.temporal import VideoModel, insert
from vldm_mini.training.data import FrameStore
from vldm_mini.training.loop import Objective, Settings, Watch
from vldm_mini.training.losses import LossOptions, draw_tau, weighed_error
from vldm_mini.training.randomness import BatchRandom
from vldm_mini.training.record import Record
from vldm_mini.training.stages import autoencoder as autoencoder_stage
from vldm_mini.training.stages import image as image_stage
from vldm_mini.training.stages import temporal as temporal_stage
from vldm_mini.training.stages.common import Job, Request, alphas_row, run_job

from . import mini
from .captioned import Captioned, CaptionedClip, encode, load
from .pipeline import TEMPORAL
from .tokenizer import read_merges

STAGES = ("autoencoder", "image", "temporal")
SETTINGS = {
    "xs": dict(autoencoder=Settings(8, 4, 2e-3, warmup=4), image=Settings(8, 4, 2e-3, warmup=4),
               temporal=Settings(6, 2, 2e-3, warmup=4)),
    "s": dict(autoencoder=Settings(4000, 16, 1e-3), image=Settings(16000, 24, 5e-4, warmup=200),
              temporal=Settings(8000, 4, 5e-4, warmup=200)),
    "m": dict(autoencoder=Settings(8000, 128, 1e-3), image=Settings(30000, 256, 5e-4, warmup=500),
              temporal=Settings(15000, 64, 5e-4, warmup=200)),
}
NAMES = ("mini-sd", *(f"mini-sd-{stage}" for stage in STAGES))


def train(name: str, request: Request, merges: list[tuple[str, str]] | None = None,
          clips: list[CaptionedClip] | None = None) -> Record:
    """Train what a name of NAMES says. Raises ValueError for another one.

    merges: of the tokenizer (default: those of open_clip_torch). clips: default `captioned.load`.
    """
    if name not in NAMES:
        raise ValueError(f"unknown stage {name!r}; choose one of {', '.join(NAMES)}")
    weights.writable(request.out)
    clips = load(mini.SIZES[request.size]) if clips is None else clips
    merges = read_merges(merges_file()) if merges is None else merges
    stages = STAGES if name == "mini-sd" else (name.removeprefix("mini-sd-"),)
    for stage in stages:
        record = run_job(request, PREPARE[stage](request, clips, merges))
    return record


def merges_file() -> Path:
    """CLIP's list of merges in the package open_clip_torch, which need not be imported.

    Raises ModuleNotFoundError saying how to install it.
    """
    spec = find_spec("open_clip")
    if spec is None:
        raise ModuleNotFoundError("mini-sd's tokenizer has CLIP's merges, which open_clip_torch "
                                  "holds: pip install --no-deps open_clip_torch")
    return Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


def settings_of(stage: str, request: Request) -> Settings:
    """The Settings of a stage with what the command line asks for."""
    asked = dict(steps=request.steps, lr=request.lr, batch=request.batch,
                 accumulate=request.accumulate)
    asked = {name: value for name, value in asked.items() if value is not None}
    return replace(SETTINGS[request.size][stage], seed=request.seed, precision=request.precision,
                   **asked)


def identity(clips: list[CaptionedClip]) -> dict:
    """What a run must not be resumed without: the content of the clips and what is said of them."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name} {clip.facts[0]} {clip.facts[-1]}".encode())
        digest.update(clip.frames[len(clip.frames) // 2].numpy().tobytes())
    return dict(data=digest.hexdigest())


# --------------------------------------------------------------------------------------------------
# The autoencoder: the same objectives as for ours.

class ForObjectives(nn.Module):
    """diffusers' AutoencoderKL as the objectives of the stage `autoencoder` take it."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae, self.decoder = vae, _Decoder(vae)

    def posterior(self, x: Tensor) -> Gaussian:
        """(b 3 h w) -> the encoder's Gaussian."""
        return Gaussian(self.vae.encode(x).latent_dist.parameters)


class _Decoder:
    """z -> frames. Not a module: its parameters are the autoencoder's."""

    def __init__(self, vae: nn.Module) -> None:
        self.vae = vae

    def __call__(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).sample

    @property
    def last_layer(self) -> nn.Parameter:
        return self.vae.decoder.conv_out.weight


def prepare_autoencoder(request: Request, clips: list[CaptionedClip],
                        merges: list[tuple[str, str]]) -> Job:
    """L1 + KL + critic. Saves out/autoencoder, a diffusers AutoencoderKL."""
    settings, device = settings_of("autoencoder", request), machine.device()
    store = FrameStore([clip.frames for clip in clips], device, 1)

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        model = ForObjectives(mini.autoencoder(mini.SIZES[request.size])).to(device)
        return autoencoder_stage.objectives(model, autoencoder_stage.store_frames(store),
                                            settings.steps)

    def finish(built: list[Objective], record: Record) -> None:
        vae = built[0].module.vae
        sample = encode(vae, clips[::max(1, len(clips) // 24)])
        spread = float(torch.cat([z.float().flatten() for z in sample]).std())
        # latents of variance 1, as Stable Diffusion's factor 0.18215 gives them
        vae.register_to_config(scaling_factor=vae.config.scaling_factor / spread)
        vae.save_pretrained(request.folder("autoencoder"))
    return Job("autoencoder", settings, build, finish, identity(clips))


# --------------------------------------------------------------------------------------------------
# Text to image, then text to video.

def trained_autoencoder(request: Request) -> nn.Module:
    """The AutoencoderKL of the run. Raises FileNotFoundError where there is none."""
    from diffusers import AutoencoderKL
    folder = request.folder("autoencoder")
    _need(folder / "config.json", "autoencoder")
    return AutoencoderKL.from_pretrained(folder).to(machine.device())


def _need(file: Path, stage: str) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"this stage stands on that of `{stage}`, and {file} is not there; "
                                f"first: python -m vldm_mini train mini-sd-{stage}")


def latents(request: Request, clips: list[CaptionedClip]) -> list[Tensor]:
    """Latents of all clips, encoded once and kept beside the run."""
    file = request.folder("autoencoder") / "diffusion_pytorch_model.safetensors"
    _need(file, "autoencoder")
    key = hashlib.sha256((weights.sha256(file) + identity(clips)["data"]).encode()).hexdigest()
    path = Path(request.out) / "latents" / f"{key[:16]}.safetensors"
    if not path.is_file():
        found = encode(trained_autoencoder(request), clips)
        weights.save_tensors(path, {f"{i:06d}": z for i, z in enumerate(found)})
    tensors = weights.load_tensors(path, cure="delete it; the clips are then encoded again")
    return [tensors[name] for name in sorted(tensors)]


def text_to_image_loss(model: nn.ModuleDict, data: Captioned) -> Callable:
    """Eq. (1) for the U-Net and the text encoder together."""
    options = image_stage.OPTIONS

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        z, ids = data.batch(draw, options.label_drop)
        states = model["text_encoder"](ids).last_hidden_state
        return _denoising_loss(lambda noisy, tau: model["unet"](noisy, tau, states).sample,
                               z[:, 0].float(), draw, options)
    return loss


def text_to_video_loss(model: VideoModel, encode_text: Callable, data: Captioned) -> Callable:
    """Eq. (2): only the temporal layers learn; the text encoder is frozen as the U-Net is."""
    options = temporal_stage.OPTIONS

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        z, ids = data.batch(draw, options.label_drop)
        with torch.no_grad():
            states = encode_text(ids)
        return _denoising_loss(lambda noisy, tau: model(noisy, tau, encoder_hidden_states=states),
                               z.float(), draw, options)
    return loss


def _denoising_loss(denoise: Callable, z: Tensor, draw: BatchRandom,
                    options: LossOptions) -> tuple[Tensor, dict]:
    schedule = mini.schedule()
    tau = draw_tau(draw, schedule.num_steps, options)
    error = denoising_error(schedule, denoise, z, tau, draw.normal(*z.shape[1:]), "v")
    plain = error.detach().square().flatten(1).mean(1)
    return weighed_error(error, None, options).mean(), dict(tau=tau, loss=plain)


def prepare_image(request: Request, clips: list[CaptionedClip],
                  merges: list[tuple[str, str]]) -> Job:
    """The U-Net and the text encoder. Saves out/pipeline, a StableDiffusionPipeline."""
    settings, device = settings_of("image", request), machine.device()
    stored = latents(request, clips)

    def build() -> list[Objective]:
        pipe = mini.pipeline(mini.SIZES[request.size], merges, request.seed)
        model = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder}).to(device)
        data = Captioned(clips, stored, pipe.tokenizer, 1, device)
        return [Objective("image", model.train(), text_to_image_loss(model, data))]

    def finish(built: list[Objective], record: Record) -> None:
        pipe = mini.pipeline(mini.SIZES[request.size], merges)
        model = built[0].module.eval()
        pipe.register_modules(vae=trained_autoencoder(request), unet=model["unet"],
                              text_encoder=model["text_encoder"])
        pipe.save_pretrained(request.folder("pipeline"))
    return Job("image", settings, build, finish, identity(clips))


def trained_pipeline(request: Request) -> Any:
    """The StableDiffusionPipeline of the run. Raises FileNotFoundError where there is none."""
    from diffusers import StableDiffusionPipeline
    folder = request.folder("pipeline")
    _need(folder / "model_index.json", "image")
    return StableDiffusionPipeline.from_pretrained(folder).to(machine.device())


def prepare_temporal(request: Request, clips: list[CaptionedClip],
                     merges: list[tuple[str, str]]) -> Job:
    """Temporal layers that attend to the text; all else is frozen. Saves out/pipeline/temporal."""
    settings, device = settings_of("temporal", request), machine.device()
    size, stored, pipe = mini.SIZES[request.size], latents(request, clips), None
    pipe = trained_pipeline(request)
    pipe.unet.requires_grad_(False)
    data = Captioned(clips, stored, pipe.tokenizer, size.frames, device)

    def encode_text(ids: Tensor) -> Tensor:
        return pipe.text_encoder(ids).last_hidden_state

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        layers = insert(pipe.unet, text_channels=size.text, ff_mult=2, ff_in=False)
        model = VideoModel(pipe.unet, layers)
        return [Objective("temporal", layers, text_to_video_loss(model, encode_text, data),
                          muon=True)]

    def watch(built: list[Objective]) -> Watch:
        return Watch(row=alphas_row(built[0].module))

    def finish(built: list[Objective], record: Record) -> None:
        built[0].module.save_pretrained(request.folder("pipeline") / TEMPORAL)
    return Job("temporal", settings, build, finish, identity(clips), watch)


PREPARE = {"autoencoder": prepare_autoencoder, "image": prepare_image, "temporal": prepare_temporal}
