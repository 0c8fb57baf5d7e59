"""Does the temporal decoder flicker less than the frame-wise one, trained for as many steps more?

Held-out drives, 200 clips of 9 frames at 30 a second. Both decoders begin as the shipped one and are trained on the same
films, with the same noise on the latents, for the same steps: the frame-wise one in all its weights with a critic of
frames, the temporal one in its temporal layers only with a critic of clips.

Decoded are true latents; latents with noise of 0.1, another in each frame; and what a decoder is there for, latents that
the interpolation model made between true key frames (the first 80 clips). Of the first the main figures, of the
others the same under `noisy` and `generated`. flicker_ratio: `measures.flicker`, temporal over frame-wise.
psnr_gain_db: temporal minus frame-wise. video_distance_gain: Fréchet distance of films to the true ones, frame-wise over
temporal. frame_distance_ratio: of frames, temporal over frame-wise. along_motion, still_flicker: the change along the
motion of the true film where that moves, and from frame to frame where it stands still (as in `upsampler`; the true
film's own stands beside them). A decoder that has the true film's change along the motion does not flicker: what is left
of measures.flicker is detail that the latents have lost and that moves with the scene. Beside them the shipped decoder
without more training, and an baseline: the frame-wise film blurred along time. floor: the Fréchet distance of as many
other true films to these. chunks_psnr_db: 48 frames in parts against the whole.
"""
import torch

from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder, PatchCritic, VideoDecoder
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_samples, driving_samples, measures
from vldm_mini.pipeline import VideoLDM
from vldm_mini.training import Record, Settings, recipes, train

from ._flicker import along_motion, blurred, edges, followed, still_flicker

N, MADE, FPS, NOISE = 200, 80, 30, 0.1


def drives(n=N, frames=9, first=20_000):
    """Held-out drives at 30 frames a second -> drives, films (n t 3 64 128) in [-1, 1]."""
    found = [driving.DrivingClip(seed, frames, 64, FPS, start=2.0) for seed in driving.seeds("held_out", n, first)]
    return found, torch.stack([video.to_float(drive.frames) for drive in found])


def frame_wise(folder):
    """The shipped decoder, trained on as the temporal one was, frame by frame. Kept in runs/."""
    settings = Settings(**Record.load(folder / "decoder").settings)
    key = action_samples.key(folder, ("autoencoder",), frame_wise_decoder=settings.steps, noise=recipes.DECODER_NOISE)
    out = action_samples.RUNS / "samples" / f"{key}-decoder"
    if not (out / weights.WEIGHTS).is_file():
        model = Autoencoder.from_pretrained(folder / "autoencoder").train()
        model.encoder.requires_grad_(False)
        torch.manual_seed(settings.seed)
        objectives = recipes.decoder_objectives(VideoDecoder(model), model.decoder, model.decoder.last_layer, PatchCritic(),
                                          recipes.decoder_clips("driving", recipes.DRIVING["s"]), settings, 8)
        train(out, settings, objectives)
        model.save_pretrained(out)
    return Autoencoder.from_pretrained(out)


@torch.no_grad()
def decoded(decoder, z):
    return torch.cat([decoder(part) for part in z.split(4)]).clamp(-1, 1)


def compared(decoders, z, x, motion, classify):
    """All figures of one kind of latents z (n t c h w), films x (n t 3 h w), motion: of x (`followed`)."""
    out = {name: decoded(decoder, z) for name, decoder in decoders.items()}
    out["frame-wise, blurred in time"] = blurred(out["frame-wise"])
    true, said = classify.classify(x), {name: classify.classify(y) for name, y in out.items()}
    distance = lambda a, kind: round(measures.frechet(                                                   # noqa: E731
        getattr(a, kind).flatten(0, -2), getattr(true, kind).flatten(0, -2)), 6)
    table = {name: dict(psnr_db=round(float(measures.psnr(y, x).mean()), 3), flicker=float(measures.flicker(y, x).mean()),
                        along_motion=round(along_motion(y, *motion), 7), still_flicker=round(still_flicker(y, x), 8),
                        sharpness=round(float((edges(y) / edges(x)).median()), 3),
                        video_distance=distance(said[name], "films"), frame_distance=distance(said[name], "frames"))
             for name, y in out.items()}
    ours, other = table["temporal"], table["frame-wise"]
    ratio = lambda key: round(ours[key] / other[key], 4)                                                # noqa: E731
    return {"flicker_ratio": ratio("flicker"), "psnr_gain_db": round(ours["psnr_db"] - other["psnr_db"], 3),
            "video_distance_gain": round(other["video_distance"] / ours["video_distance"], 3),
            "frame_distance_ratio": ratio("frame_distance"),
            "along_motion_ratio": ratio("along_motion"), "still_flicker_ratio": ratio("still_flicker"),
            "sharpness_ratio": ratio("sharpness"), "n": len(x), "table": table,
            "true_along_motion": round(along_motion(x, *motion), 7)}


@torch.no_grad()
def run(folder=None, n=N, made=MADE):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    with torch.enable_grad():
        trained_on = frame_wise(folder)
    pipeline, classify = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)[0]
    # a decoder has its temporal layers for good: the frame-wise ones are others
    decoders = {"temporal": pipeline.decoder, "frame-wise": VideoDecoder(trained_on),
                "shipped": VideoDecoder(Autoencoder.from_pretrained(folder / "autoencoder"))}
    found, x = drives(n)
    z = torch.stack([pipeline.autoencoder.encode(film) for film in x])
    noisy = z + NOISE * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    between = pipeline.interpolate(z[:made, ::4], driving_samples.labels_of(found[:made]), 1, seed=5)
    to, sure = followed(x)
    long = pipeline.autoencoder.encode(drives(1, 48)[1][0])[None]
    seen, others = classify.classify(x).films, classify.classify(drives(n, first=21_000)[1]).films
    whole, parts = pipeline.decoder(long), torch.cat(list(pipeline.decoder.chunks(long)), 1)
    return {**compared(decoders, z, x, (to, sure), classify),
            "chunks_psnr_db": round(float(measures.psnr(parts, whole).mean()), 2),
            "floor": round(measures.frechet(others, seen), 6), "noisy": compared(decoders, noisy, x, (to, sure), classify),
            "generated": compared(decoders, between, x[:made], (to[:made], sure[:made]), classify)}
