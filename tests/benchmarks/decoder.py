"""Does the temporal decoder flicker less than the frame-wise one, trained for as many more steps?

Held-out clips, 200 of 9 frames at 30 a second. Both decoders start from the shipped one and are
trained on the same clips, with the same noise on the latents, for the same steps: the frame-wise
one in all its weights with a critic of frames, the temporal one in its temporal layers only with
a critic of clips.

Three kinds of latents are decoded: those of true frames (the main figures); the same with noise
of 0.1, independent in each frame (`noisy`); and what a decoder is there for, latents that the
interpolation model generated between true key frames (`generated`, the first 80 clips).
flicker_ratio: `measures.flicker`, temporal over frame-wise. psnr_gain_db: temporal minus
frame-wise. video_distance_gain: Fréchet distance of videos to the true ones, frame-wise over
temporal. frame_distance_ratio: of frames, temporal over frame-wise. along_motion, still_flicker:
the change along the motion of the true video where it moves, and from frame to frame where it
stands still; the true video's own stands beside them. A decoder that has the true video's change
along the motion does not flicker: the rest of measures.flicker is detail that the latents have
lost and that moves with the scene. Baselines: the shipped decoder without more training, and the
frame-wise video blurred in time. floor: the Fréchet distance of as many other true videos to
these. chunks_psnr_db: 48 frames decoded in chunks against all at once.
"""
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini import machine, weights
from vldm_mini.autoencoder import Autoencoder, PatchCritic, VideoDecoder
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_samples, measures, samples
from vldm_mini.evaluation.baselines import blurred_in_time
from vldm_mini.evaluation.driving_classifiers import SceneClassifier
from vldm_mini.evaluation.flicker import (
    along_motion,
    follow_motion,
    gradient_energy,
    still_flicker,
)
from vldm_mini.pipeline import VideoLDM
from vldm_mini.training import BatchRandom, Record, Settings, train
from vldm_mini.training.data import FrameStore, rendered
from vldm_mini.training.sizes import DRIVING
from vldm_mini.training.stages import decoder as stage

from ._common import feature_distance, number, shipped_folder

N, GENERATED, FPS, NOISE = 200, 80, 30, 0.1
Motion = tuple[Tensor, Tensor]                     # what `follow_motion` gives


def held_out(n: int = N, frames: int = 9, first: int = 20_000) -> tuple[list, Tensor]:
    """Held-out clips at 30 frames a second -> clips, videos (n t 3 64 128) in [-1, 1]."""
    clips = [driving.DrivingClip(seed, frames, 64, FPS, start=2.0)
             for seed in driving.seeds("held_out", n, first)]
    return clips, torch.stack([video.to_float(clip.frames) for clip in clips])


def frame_wise(folder: Path) -> Autoencoder:
    """The shipped decoder, trained further as the temporal one was, but frame by frame.

    Kept in runs/samples/.
    """
    settings = Settings(**Record.load(folder / "decoder").settings)
    name = samples.key(folder, ("autoencoder",), frame_wise_decoder=settings.steps,
                       noise=stage.DECODER_NOISE)
    out = samples.RUNS / "samples" / f"{name}-decoder"
    if not (out / weights.WEIGHTS).is_file():
        dial = DRIVING["s"]
        model = Autoencoder.from_pretrained(folder / "autoencoder").train().to(machine.device())
        model.encoder.requires_grad_(False)
        torch.manual_seed(settings.seed)
        store = FrameStore(list(rendered(stage.decoder_clips("driving", dial))), machine.device(),
                           dial.frames, 1)

        def draw_clips(draw: BatchRandom) -> Tensor:
            return video.to_float(store.at(store.windows(draw)))
        critic = PatchCritic().to(machine.device())
        train(out, settings, stage.objectives(
            VideoDecoder(model), model.decoder, model.decoder.last_layer, critic, draw_clips,
            settings.steps))
        model.save_pretrained(out)
    return Autoencoder.from_pretrained(out)


@torch.no_grad()
def decode(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Latents (n t c h w) -> videos (n t 3 h w) in [-1, 1]."""
    return torch.cat([decoder(part) for part in z.split(4)]).clamp(-1, 1)


def figures_of(videos: Tensor, true: Tensor, motion: Motion) -> dict:
    """Figures of decoded videos (n t 3 h w) that need no classifier."""
    sharpness = (gradient_energy(videos) / gradient_energy(true)).median()
    return dict(psnr_db=number(measures.psnr(videos, true).mean(), 3),
                flicker=float(measures.flicker(videos, true).mean()),
                along_motion=round(along_motion(videos, *motion), 7),
                still_flicker=round(still_flicker(videos, true), 8),
                sharpness=number(sharpness, 3))


def compare(decoders: dict, z: Tensor, true: Tensor, motion: Motion,
            classifier: SceneClassifier) -> dict:
    """All figures of one kind of latents z (n t c h w); true (n t 3 h w) and its motion."""
    videos = {name: decode(decoder, z) for name, decoder in decoders.items()}
    videos["frame-wise, blurred in time"] = blurred_in_time(videos["frame-wise"])
    of_true, table = classifier.classify(true), {}
    for name, some in videos.items():
        predicted = classifier.classify(some)
        table[name] = figures_of(some, true, motion) | {
            f"{kind}_distance": round(feature_distance(predicted, of_true, kind), 6)
            for kind in ("video", "frame")}
    ours, other = table["temporal"], table["frame-wise"]
    ratios = {f"{key}_ratio": round(ours[key] / other[key], 4) for key in
              ("flicker", "frame_distance", "along_motion", "still_flicker", "sharpness")}
    return {**ratios, "psnr_gain_db": round(ours["psnr_db"] - other["psnr_db"], 3),
            "video_distance_gain": round(other["video_distance"] / ours["video_distance"], 3),
            "n": len(true), "table": table,
            "true_along_motion": round(along_motion(true, *motion), 7)}


@torch.no_grad()
def run(folder: Path | None = None, n: int = N, generated: int = GENERATED) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    with torch.enable_grad():
        trained_further = frame_wise(folder)
    pipeline = VideoLDM.from_pretrained(folder)
    classifier, _ = driving_samples.classifiers(folder)
    # temporal layers are inserted into a decoder for good: the frame-wise ones are other objects
    shipped = Autoencoder.from_pretrained(folder / "autoencoder")
    decoders = {"temporal": pipeline.decoder, "frame-wise": VideoDecoder(trained_further),
                "shipped": VideoDecoder(shipped)}
    clips, x = held_out(n)
    z = torch.stack([pipeline.autoencoder.encode(frames) for frames in x])
    noisy = z + NOISE * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    labels = driving_samples.labels_of(clips[:generated])
    between = pipeline.interpolate(z[:generated, ::4], labels, 1, seed=5)
    motion = follow_motion(x)
    some = tuple(part[:generated] for part in motion)
    long = pipeline.autoencoder.encode(held_out(1, 48)[1][0])[None]
    whole = pipeline.decoder(long)
    chunks = torch.cat(list(pipeline.decoder.chunks(long)), dim=1)
    others = classifier.classify(held_out(n, first=21_000)[1])
    floor = feature_distance(others, classifier.classify(x), "video")
    return {**compare(decoders, z, x, motion, classifier),
            "chunks_psnr_db": number(measures.psnr(chunks, whole).mean(), 2),
            "floor": round(floor, 6), "noisy": compare(decoders, noisy, x, motion, classifier),
            "generated": compare(decoders, between, x[:generated], some, classifier)}
