"""DreamBooth: a person in a handful of stills becomes a word of the image model.

Paper: section 4.2.1, after Ruiz et al. 2022 (arXiv 2208.12242): spatial layers and text encoder are
fine-tuned on the stills; the temporal layers, which never saw that person, are then put on top and
keep the original text encoder. Chapter 11 walks through it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vldm_mini.diffusion import denoising_error
from vldm_mini.schedule import Schedule
from vldm_mini.weights import load_tensors, packed, save_tensors

TOKEN = "sks"                       # rare: hardly a meaning to begin with
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class DreamBooth:
    """How to fine-tune. MINI: rates and steps are for mini-sd; for Stable Diffusion 1e-6 to 5e-6,
    800 to 1,200 steps. prior_weight: of the pictures that stand for everybody else; 0: none.
    lora_rank: train low-rank updates of attention alone; 0: all weights."""

    steps: int = 300
    batch: int = 4
    lr: float = 5e-5
    prior_weight: float = 1.0
    lora_rank: int = 0
    text_encoder: bool = True
    label_drop: float = 0.1
    seed: int = 0


def schedule_of(pipe: Any) -> Schedule:
    """The noise schedule of a pipeline's scheduler."""
    alpha_squared = pipe.scheduler.alphas_cumprod.double()
    return Schedule(alpha_squared.sqrt(), (1 - alpha_squared).sqrt())


def prediction_of(pipe: Any) -> str:
    """What its U-Net predicts: "eps", "v" or "x0"."""
    return PREDICTIONS[pipe.scheduler.config.prediction_type]


@torch.no_grad()
def encode_stills(pipe: Any, stills: Tensor) -> Tensor:
    """Pictures (n 3 h w) in [-1, 1] -> latents (n c h/f w/f) as diffusion uses them."""
    stills = stills.to(pipe.vae.device, pipe.vae.dtype)
    return pipe.vae.encode(stills).latent_dist.mode() * pipe.vae.config.scaling_factor


@torch.no_grad()
def prior_pictures(pipe: Any, prompts: Sequence[str], seed: int = 0, batch: int = 16,
                   **options: Any) -> Tensor:
    """Pictures of other people that the model itself generates, before it is fine-tuned.

    -> latents (n c h w). options: go to the pipeline's call.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    for at in range(0, len(prompts), batch):
        found.append(pipe(list(prompts[at:at + batch]), generator=generator, output_type="latent",
                          **options).images)
    return torch.cat(found)


def personalise(pipe: Any, stills: Tensor, captions: Sequence[str], prior: Tensor | None = None,
                prior_captions: Sequence[str] = (), how: DreamBooth = DreamBooth()) -> list[float]:
    """Fine-tune a Stable Diffusion pipeline in place. -> the loss of each step.

    stills (n 3 h w) in [-1, 1], with a caption each that holds TOKEN. prior: latents of
    `prior_pictures` with their captions. Raises ValueError for numbers that do not fit.
    """
    if len(stills) != len(captions):
        raise ValueError(f"{len(stills)} stills and {len(captions)} captions: give one each")
    if how.prior_weight and (prior is None or len(prior) != len(prior_captions)):
        raise ValueError("prior preservation needs prior pictures with a caption each: see "
                         "prior_pictures, or set prior_weight=0")
    schedule, prediction = schedule_of(pipe), prediction_of(pipe)
    own = encode_stills(pipe, stills), _tokens(pipe, captions)
    others = (prior, _tokens(pipe, prior_captions)) if how.prior_weight else None
    empty = _tokens(pipe, [""])
    g = torch.Generator().manual_seed(how.seed)
    losses = []
    with learning(pipe, how) as parameters:
        optimizer = torch.optim.AdamW(parameters, how.lr, betas=(0.9, 0.99), weight_decay=0.01)

        def loss_on(z: Tensor, ids: Tensor) -> Tensor:
            chosen = torch.randint(len(z), (how.batch,), generator=g)
            dropped = torch.rand(how.batch, 1, generator=g) < how.label_drop
            z, ids = z[chosen], torch.where(dropped.to(ids.device), empty, ids[chosen])
            tau = torch.randint(schedule.num_steps, (how.batch,), generator=g).to(z.device)
            eps = torch.randn(z.shape, generator=g).to(z)
            states = pipe.text_encoder(ids)[0]
            error = denoising_error(schedule, lambda noisy, tau: pipe.unet(noisy, tau, states)
                                    .sample, z, tau, eps, prediction)
            return error.square().mean()

        for step in range(how.steps):
            loss = loss_on(*own)
            if others:
                # the second term of DreamBooth: everybody else stays as they are
                loss = loss + how.prior_weight * loss_on(*others)
            for group in optimizer.param_groups:
                group["lr"] = how.lr * min(1.0, (step + 1) / 20)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
    return losses


def _tokens(pipe: Any, texts: Sequence[str]) -> Tensor:
    ids = pipe.tokenizer(list(texts), padding="max_length", truncation=True,
                         max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids
    return ids.to(pipe.unet.device)


@contextmanager
def learning(pipe: Any, how: DreamBooth) -> Iterator[list[nn.Parameter]]:
    """Inside, what DreamBooth trains has gradients: all weights of the U-Net and the text encoder,
    or a LoRA in them (peft), which stays in the pipeline afterwards. -> these parameters."""
    parts = [pipe.unet, pipe.text_encoder] if how.text_encoder else [pipe.unet]
    before = {p: p.requires_grad for part in (pipe.unet, pipe.text_encoder)
              for p in part.parameters()}
    for p in before:
        p.requires_grad_(False)
    parameters = []
    for part in parts:
        if how.lora_rank:
            from peft import LoraConfig
            torch.manual_seed(how.seed)
            part.add_adapter(LoraConfig(r=how.lora_rank, lora_alpha=how.lora_rank,
                                        target_modules=list(LORA_LAYERS)))
            found = [p for name, p in part.named_parameters() if "lora_" in name]
        else:
            found = list(part.parameters())
        parameters += [p.requires_grad_(True) for p in found]
    try:
        yield parameters
    finally:
        for p in parameters:
            p.requires_grad_(False)
        for p, needed in before.items():
            p.requires_grad_(needed)


@contextmanager
def original_text(pipe: Any, text_encoder: nn.Module) -> Iterator[None]:
    """Inside, a pipeline encodes prompts with another text encoder: that of the temporal layers."""
    own, pipe.text_encoder = pipe.text_encoder, text_encoder
    try:
        yield
    finally:
        pipe.text_encoder = own


@torch.no_grad()
def texts_for_time(pipe: Any, text_encoder: nn.Module, prompts: Sequence[str],
                   negative: str = "") -> Tensor:
    """temporal_prompt_embeds of a VideoPipeline: prompts in the original encoder's words.

    The rare token means nothing to it: say "a person" there. -> (2b l d), negative ones first.
    """
    with original_text(pipe, text_encoder):
        states = text_encoder(_tokens(pipe, [negative] * len(prompts) + list(prompts)))[0]
    return states


def untrained_copy(pipe: Any) -> dict[str, nn.Module]:
    """Copies of the U-Net and the text encoder, to compare with and to take a difference from."""
    return {"unet": copy.deepcopy(pipe.unet), "text_encoder": copy.deepcopy(pipe.text_encoder)}


def save_difference(pipe: Any, base: dict[str, nn.Module], path: str | Path) -> None:
    """What fine-tuning all weights changed, in 8 bits: a small file beside a model that many
    share. Raises OSError as `save_tensors`."""
    found = {}
    for part, before in base.items():
        old = before.state_dict()
        for name, value in getattr(pipe, part).state_dict().items():
            if value.is_floating_point() and not torch.equal(value, old[name]):
                found[f"{part}.{name}"] = (value - old[name]).float()
    save_tensors(path, packed(_rows_that_changed(found), torch.int8))


def _rows_that_changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a large table (token embeddings) only the rows that are not zero, with their numbers."""
    found = {}
    for name, value in tensors.items():
        rows = value.flatten(1).abs().amax(1).nonzero()[:, 0] if value.ndim > 1 else None
        if rows is not None and len(rows) < len(value) // 2:
            found[name + ROWS], found[name] = rows, value[rows]
        else:
            found[name] = value
    return found


ROWS = ".rows"


@torch.no_grad()
def load_difference(pipe: Any, path: str | Path) -> None:
    """Add a saved difference to a pipeline of the same base, in place. Raises ValueError."""
    tensors = load_tensors(path)
    states = {part: getattr(pipe, part).state_dict() for part in ("unet", "text_encoder")}
    for name, change in tensors.items():
        if name.endswith(ROWS):
            continue
        part, _, key = name.partition(".")
        if part not in states or key not in states[part]:
            raise ValueError(f"{path} is a difference of another model: it changes {name}")
        target = states[part][key]
        rows = tensors.get(name + ROWS)
        if rows is None:
            target.add_(change.to(target))
        else:
            target.index_add_(0, rows.to(target.device), change.to(target))
