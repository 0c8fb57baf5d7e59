"""The command `python -m vldm_mini sample`: videos from trained weights, and enlarged ones."""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import machine
from .arguments import label, number, positive, seed, whole


def options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--weights", default="actions",
                     help="the name of shipped weights, or the folder of a run (actions)")
    sub.add_argument("--person", help="label of `actions`: 0 to 8 (default: the model chooses)")
    sub.add_argument("--action", help="label of `actions`: 'wave one hand', 'wave two hands', "
                     "'jumping jacks', bend, or 0 to 3 (default: the model chooses)")
    sub.add_argument("--label", action="append", type=label, default=[], metavar="NAME=VALUE",
                     help="a label of other data (light=night); may be repeated")
    sub.add_argument("--frames", type=positive,
                     help="frames of the video (default: as trained); with --video, only its first")
    sub.add_argument("--minutes", type=number(0.1, 600), metavar="N",
                     help="a long video of N minutes, by prediction (weights that have that stage)")
    sub.add_argument("--smooth", action="store_true",
                     help="16 times the frame rate, by interpolation (weights that have it)")
    sub.add_argument("--large", choices=("pixel", "latent"),
                     help="four times the height, by an upsampler in pixels or in latents (weights "
                     "that have one; trained at 30 frames a second: best with --smooth)")
    sub.add_argument("--video", metavar="FILE",
                     help="enlarge a video of your own (with --large; --weights signs, or yours)")
    sub.add_argument("--steps", type=whole(1, 1000),
                     help="DDIM steps (default: as the weights say)")
    sub.add_argument("--label-guidance", type=number(0, 100), metavar="W",
                     help="guidance by labels; 1: none (default: as the weights say)")
    sub.add_argument("--temporal-guidance", type=number(0, 100), metavar="W",
                     help="guidance by the temporal layers; 1: none (default: as the weights say)")
    sub.add_argument("--context-guidance", type=number(0, 100), metavar="W",
                     help="with --minutes: guidance by the frames before; 1: none (default: as the "
                     "weights say)")
    sub.add_argument("--alpha", type=number(0, 1),
                     help="one value for every mix; 1 is the image model (default: as trained)")
    sub.add_argument("--seed", type=seed, default=0, help="of the noise, 0 to 2^63 - 1 (0)")
    sub.add_argument("--out", default="sample_out", help="folder of the video (sample_out)")
    _sd_options(sub)


def _sd_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("Stable Diffusion (section 4.2)")
    group.add_argument("prompt", nargs="?", help="with --sd: what the video shows")
    group.add_argument("--sd", metavar="NAME",
                       help="a pipeline of diffusers: a name on the hub, or a folder")
    group.add_argument("--sd-list", action="store_true",
                       help="names of public checkpoints, with sizes, and stop")
    group.add_argument("--motion-adapter", metavar="NAME",
                       help="AnimateDiff's motion modules, for Stable Diffusion 1.x: a name "
                       "or a folder")
    group.add_argument("--temporal", metavar="FOLDER", help="temporal layers that were saved alone")
    group.add_argument("--negative-prompt", help="what the video shall not show")
    group.add_argument("--guidance", type=number(0, 100), default=7.5, metavar="W",
                       help="guidance by the prompt; 1: none (7.5)")
    group.add_argument("--height", type=positive, help="pixels (default: as trained)")
    group.add_argument("--width", type=positive, help="pixels (default: as trained)")
    group.add_argument("--half", action="store_true", help="half precision, for a GPU")
    group.add_argument("--offload", action="store_true",
                       help="parts wait in the computer's memory until the GPU needs them")
    group.add_argument("--decode-chunk", type=positive, metavar="N",
                       help="frames decoded at a time (default: all)")
    group.add_argument("--dry-run", action="store_true",
                       help="build the networks of a listed checkpoint at their real widths, "
                       "without weights and memory, and print what they need")


def sample(args: argparse.Namespace) -> None:
    """One video from trained weights: an animated WebP, a PNG of its frames and an x-t slice.

    With --minutes, a long video that is written while it is generated; with --smooth, one at 16
    times the frame rate; with --large, one of four times the height: these are .mp4 files. With
    --video, no video is generated: your own is enlarged.
    """
    machine.set_threads()
    if args.sd or args.sd_list or args.dry_run:
        _sample_stable_diffusion(args)
        return
    if args.prompt or args.motion_adapter or args.temporal:
        raise ValueError("a prompt, --motion-adapter and --temporal go with --sd NAME")
    if args.minutes and args.large:
        raise ValueError("--minutes writes small frames; enlarge a part of that video afterwards, "
                         "with --video FILE --large KIND")
    if args.video:
        _enlarge_own(args)
    elif args.minutes:
        _sample_long(args)
    else:
        _sample_short(args)


def _model_and_labels(args: argparse.Namespace) -> tuple[Any, Any]:
    """The VideoLDM and the labels (1, n) that the command line names."""
    from vldm_mini.pipeline import VideoLDM
    from vldm_mini.weights import writable
    model = VideoLDM.from_pretrained(args.weights)
    given = {"person": args.person, "action": args.action} | dict(args.label)
    classes = dict(model.config.label_names)
    values = {}
    for name, text in given.items():
        if text is not None:
            values[name] = _class(name, text, classes.get(name, ()))
    labels = model.labels(**values)
    writable(args.out)
    return model, labels


def _class(name: str, text: str, classes: Sequence[str]) -> str | int:
    """The value of a label: the name or the number of a class. Raises ValueError for others."""
    if text in classes or not (text.isascii() and text.isdecimal()):
        return text
    if classes and int(text) >= len(classes):
        raise ValueError(f"{name} must lie in 0..{len(classes) - 1}, got {text}; leave it out to "
                         "let the model choose")
    return int(text)


def _sampling(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that were given, as keyword arguments."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _sample_long(args: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from vldm_mini.teaching import pictures
    model, labels = _model_and_labels(args)
    fps = model.config.fps
    how = _sampling(args, "steps", "label_guidance", "context_guidance")
    latents = model.rollout(labels, round(60 * args.minutes * fps) + 1, seed=args.seed,
                            progress=tqdm, **how)
    parts = (model.decode(z)[0] for z in latents)
    print(f"done: {pictures.save_growing(Path(args.out) / 'video.mp4', parts, fps)}")


def _sample_short(args: argparse.Namespace) -> None:
    from vldm_mini.teaching import pictures
    model, labels = _model_and_labels(args)
    out, fps = Path(args.out), model.config.fps
    upsampler = model.upsampler(args.large) if args.large else None
    how = _sampling(args, "steps", "label_guidance", "temporal_guidance", "frames", "alpha")
    if args.smooth:
        video, fps = model.smooth_video(labels, seed=args.seed, **how), 16 * fps
    else:
        video = model.generate(labels, seed=args.seed, **how)
    if upsampler:
        _enlarge(upsampler, video, fps, args)
    elif args.smooth:
        movie = pictures.movie(video, fps=fps, scale=2, loop=1)
        print(f"done: {movie.save(out / 'video.mp4')}")
    else:
        _save_pictures(video, out, fps)


def _sample_stable_diffusion(args: argparse.Namespace) -> None:
    from .stable_diffusion.sample import sample_prompt, text_output
    text = text_output(args)
    if text is not None:
        print(text)
    else:
        _save_pictures(sample_prompt(args), Path(args.out), fps=8)


def _save_pictures(video: Any, out: Path, fps: float) -> None:
    from vldm_mini.teaching import pictures
    pictures.movie(video, fps=fps).save(out / "video.webp")
    pictures.strip(video).save(out / "strip.png")
    pictures.slice(video).save(out / "slice.png")
    print(f"done: video.webp, strip.png and slice.png in {out}")


def _enlarge(upsampler: Any, video: Any, fps: float, args: argparse.Namespace,
             tile: tuple[int, int] | None = None) -> None:
    """Write a video (1 t 3 h w) at four times its height and width, part by part."""
    from tqdm.auto import tqdm

    from vldm_mini.teaching import pictures
    parts = upsampler.parts(video, seed=args.seed, alpha=args.alpha, tile=tile, progress=tqdm)
    path = Path(args.out) / "video.mp4"
    pictures.save_growing(path, (part[0] for part in parts), fps, scale=1)
    print(f"done: {path}")


def _enlarge_own(args: argparse.Namespace) -> None:
    """A video file of the user's, enlarged: its first --frames frames, or all."""
    from vldm_mini.datasets import video
    from vldm_mini.upsampler import VideoUpsampler
    from vldm_mini.weights import writable
    if not args.large:
        raise ValueError("--video FILE is enlarged: add --large pixel or --large latent")
    if args.minutes or args.smooth or args.label or args.person or args.action:
        raise ValueError("--video FILE is enlarged as it is: leave out labels, --minutes and "
                         "--smooth")
    upsampler = VideoUpsampler.from_pretrained(args.weights, args.large)
    writable(args.out)
    frames, fps = video.read_video(args.video)
    frames = frames[:args.frames]
    multiple = 2 ** (len(upsampler.theta.config.channels) - 1)       # the network halves each side
    height, width = (side // multiple * multiple for side in frames.shape[1:3])
    if not height or not width:
        raise ValueError(f"the frames of {args.video} have {frames.shape[2]}x{frames.shape[1]} "
                         f"pixels; at least {multiple}x{multiple} are needed")
    small = frames[:, :height, :width].movedim(-1, 1)[None]
    print(f"enlarging {len(frames)} frames to {4 * width}x{4 * height}, 8 at a time", flush=True)
    _enlarge(upsampler, small, fps, args, tile=(64, 128))
