"""The rows of RESULTS.md and of the README's table: which stored figure means what.

A path leads to one number in results/NAME.json, "/" between keys; a list's item by its index.
"""
from dataclasses import dataclass

HIGHER, LOWER, NEAR_1, NEAR_0 = "higher", "lower", "near 1", "near 0"


@dataclass(frozen=True)
class Arm:
    """One number: whose it is, where it is stored; the number is shown times `scale`."""
    name: str
    path: str
    scale: float = 1


@dataclass(frozen=True)
class Row:
    """One measurement: ours first, then its baselines.

    unit: "" for a ratio or a correlation. better: a word for the good direction. readme: whether
    the README's table shows it too, with the first baseline.
    """
    what: str
    unit: str
    better: str
    arms: tuple[Arm, ...]
    digits: int = 2
    readme: bool = False


@dataclass(frozen=True)
class Group:
    """A heading, and rows by benchmark."""
    title: str
    rows: dict[str, tuple[Row, ...]]


def percent(*arms: tuple[str, str]) -> tuple[Arm, ...]:
    """Arms whose stored shares are shown in percent."""
    return tuple(Arm(name, path, 100) for name, path in arms)


def plain(*arms: tuple[str, str]) -> tuple[Arm, ...]:
    """Arms shown as they are stored."""
    return tuple(Arm(name, path) for name, path in arms)


def of_actions(what: str, key: str, image_key: str) -> tuple[Row, ...]:
    """One row an action: generated, image model, shuffled real windows."""
    found = []
    for action in ("wave one hand", "wave two hands", "jumping jacks", "bend"):
        measure = "jerk" if "jerk" in key else "motion"
        found.append(Row(f"{what}, {action}", "", NEAR_1, plain(
            ("generated", f"{key}/{action}"), ("image model, alpha = 1", f"{image_key}/{action}"),
            ("real windows shuffled", f"beside/real, shuffled/{measure}/{action}"),
            ("real clips held out from the generator",
             f"beside/real, held out from the generator/{measure}/{action}"))))
    return tuple(found)


def of_light(what: str, measure: str, prefix: str) -> tuple[Row, ...]:
    """One row by day, one by night. prefix: of the keys, video_ratio or jerk_ratio and image_..."""
    image = {"motion": "image_ratio", "jerk": "image_jerk_ratio"}[measure]
    rows = []
    for light in ("day", "night"):
        rows.append(Row(f"{what}, {light}", "", NEAR_1, plain(
            ("generated", f"{prefix}/{light}"), ("image model, alpha = 1", f"{image}/{light}"),
            ("rendered, shuffled", f"beside/shuffled/{measure}/{light}"),
            ("rendered, frozen", f"beside/freeze/{measure}/{light}")), readme=measure == "motion"))
    return tuple(rows)


AUTOENCODER = {
    "autoencoder-actions": (
        Row("PSNR of frames of a person held out from training", "dB", HIGHER, plain(
            ("decoded", "psnr_db"), ("averaged over squares of f = 4", "baselines/averaged"),
            ("mean frame of the clip", "baselines/mean frame")), 1, readme=True),
        Row("PSNR of the pixels that move", "dB", HIGHER, plain(
            ("decoded", "psnr_db_where_it_moves"),), 1),
        Row("standard deviation of the latents", "", NEAR_1, plain(
            ("held-out frames", "latent_std"), ("training frames", "trained/latent_std")))),
    "autoencoder-driving": (
        Row("PSNR of frames of held-out scenes", "dB", HIGHER, plain(
            ("decoded", "psnr_db"), ("bicubic, 4 times smaller and back", "bicubic_psnr_db")), 1,
            readme=True),
        Row("standard deviation of the latents", "", NEAR_1, plain(
            ("held-out frames", "latent_std"),))),
}

CONTROL = {
    "control-actions": (
        Row("clips that show the requested action", "%", HIGHER, percent(
            ("generated", "action_accuracy"), ("image model, alpha = 1", "image_action_accuracy"),
            ("real clips", "real_action_accuracy")), 1, readme=True),
        Row("clips that show the requested person", "%", HIGHER, percent(
            ("generated", "person_accuracy"), ("image model, alpha = 1", "image_person_accuracy"),
            ("real clips", "real_person_accuracy")), 1),
        Row("both, for combinations held out from training", "%", HIGHER, percent(
            ("generated", "held_out_accuracy"),), 1, readme=True),
        Row("clips whose frames are classified as in order", "%", HIGHER, percent(
            ("generated", "order_accuracy"), ("image model, alpha = 1", "image_order_accuracy"),
            ("without temporal guidance", "unguided_order_accuracy"),
            ("real clips", "real_order_accuracy"),
            ("real clips, shuffled", "beside/real, shuffled/in_order")), 1, readme=True)),
    "control-driving": (
        Row("clips with the requested light", "%", HIGHER, percent(
            ("generated", "day_night_accuracy"),
            ("image model, alpha = 1", "image/day_night_accuracy"),
            ("labels of other videos", "baselines/labels of other videos/day_night_accuracy")), 1),
        Row("requested cars against cars found, rank correlation", "", HIGHER, plain(
            ("generated", "crowdedness_spearman"),
            ("labels of other videos", "baselines/labels of other videos/crowdedness_spearman"),
            ("image model, alpha = 1", "image/crowdedness_spearman"),
            ("rendered frames", "real, first frame's labels/crowdedness_spearman")), readme=True),
        Row("requested cars against cars found, mean error", "cars", LOWER, plain(
            ("generated", "crowdedness_mae"),
            ("labels of other videos", "baselines/labels of other videos/crowdedness_mae"),
            ("rendered frames", "real, first frame's labels/crowdedness_mae"))),
        Row("requested boxes that a found car covers (IoU 0.4)", "%", HIGHER, percent(
            ("generated", "box_hit_rate"),
            ("boxes of other frames", "baselines/boxes of other frames/box_hit_rate"),
            ("no boxes", "baselines/no boxes/box_hit_rate")), 1, readme=True),
        Row("found cars outside every requested box", "%", LOWER, percent(
            ("generated", "stray_car_rate"),
            ("boxes of other frames", "baselines/boxes of other frames/stray_car_rate"),
            ("no boxes", "baselines/no boxes/stray_car_rate")), 1),
        Row("the car finder's own precision on rendered frames", "%", HIGHER, percent(
            ("rendered frames", "finder_precision"),), 1)),
}

MOTION = {
    "motion-actions": (
        *of_actions("motion over that of real clips", "video_ratio", "image_ratio"),
        *of_actions("jerk over that of real clips", "jerk_ratio", "image_jerk_ratio")),
    "motion-driving": (
        *of_light("motion over that of rendered clips", "motion", "video_ratio"),
        *of_light("jerk over that of rendered clips", "jerk", "jerk_ratio"),
        Row("Fréchet distance of videos, 200 against 200", "", LOWER, plain(
            ("generated", "video_distance/video/distance"),
            ("image model, alpha = 1", "video_distance/image/distance"),
            ("other rendered clips", "video_distance/real, other seeds/distance"),
            ("floor: halves of the rendered clips", "video_distance/video/floor")), 3, readme=True),
        Row("Fréchet distance of frames, 1600 against 1600", "", LOWER, plain(
            ("generated", "frame_distance/video/distance"),
            ("image model, alpha = 1", "frame_distance/image/distance"),
            ("other rendered clips", "frame_distance/real, other seeds/distance"),
            ("floor: halves of the rendered clips", "frame_distance/video/floor")), 3),
        Row("the scene classifier's speed against the truth, rank correlation", "", HIGHER, plain(
            ("rendered clips", "speed_spearman"),))),
    "memorisation-actions": (
        Row("distance to the nearest training clip over that of real held-out clips", "", HIGHER,
            plain(("generated", "nn_ratio"), ("a copy", "copy_ratio")), readme=True),
        Row("the same, of combinations held out from training", "", HIGHER, plain(
            ("generated", "nn_ratio_held_out"),)),
        Row("over that of another moment of the training clips", "", HIGHER, plain(
            ("generated", "nn_ratio_other_moment"),))),
}

SCALES = ("1", "1.5", "2", "3", "4")
LONG_VIDEO = {
    "prediction": (
        Row("PSNR of the given frames in the network's output", "dB", HIGHER, plain(
            ("generated", "context_psnr_db"),), 1),
        Row("clips whose next frame is nearer than a copy, mean of 8 samples", "%", HIGHER, percent(
            ("generated", "beats_copy_share"), ("one sample", "beats_copy_share_single"),
            ("blurred copy", "beside/beats_copy_share, blurred copy")), 1),
        Row("clips whose next frame is nearer than a blurred copy, mean of 8 samples", "%", HIGHER,
            percent(("generated", "beats_blurred_copy_share"),
                    ("one sample", "beats_blurred_copy_share_single")), 1),
        Row("speed of the continuation against the true speed, rank correlation", "", HIGHER, plain(
            ("two context frames", "speed_spearman_s2"), ("one context frame", "speed_spearman_s1"),
            ("true frames", "beside/speed of the true frames"),
            ("other clips", "beside/speed of other clips")), readme=True),
        Row("speed of the continuation, mean error", "m/s", LOWER, plain(
            ("two context frames", "by_s/2/speed_error"),
            ("one context frame", "by_s/1/speed_error"),
            ("a copy", "beside/speed_error of a copy"))),
        Row("slow and fast starts of a scene are continued at their speed", "%", HIGHER, percent(
            ("two context frames", "speeds_distinguished"),), 1),
        Row("`actions`: an arm goes on as it went", "%", HIGHER, percent(
            ("two context frames", "arm_goes_on/S = 2"), ("one context frame", "arm_goes_on/S = 1"),
            ("a copy", "arm_goes_on/copy")), 1)),
    "guidance": tuple(
        Row(f"Fréchet distance of videos at context guidance {scale}", "", LOWER, plain(
            ("generated", f"table/{scale}/video_distance"),
            ("a frozen video", "beside/frozen/video_distance"),
            ("other real clips", "beside/other real clips/video_distance")), 3)
        for scale in SCALES) + tuple(
        Row(f"motion over the true motion at context guidance {scale}", "", NEAR_1, plain(
            ("generated", f"table/{scale}/motion_ratio"),)) for scale in SCALES),
    "rollout": (
        Row("accuracy of labels lost from the first to the last of 4.5 minutes", "points", LOWER,
            plain(("as shipped", "label_drop_points"),
                  ("context guidance alone", "arms/context guided alone/label_drop_points"),
                  ("no guidance", "arms/no guidance/label_drop_points"),
                  ("rendered", "beside/rendered/label_drop_points")), 1, readme=True),
        *(Row(f"motion in the last minute over that of rendered windows, video {k + 1}", "", NEAR_1,
              plain(("as shipped", f"motion_ratio_last/{k}"),
                    ("rendered", f"beside/rendered/motion_ratio_last/{k}"),
                    ("frozen", f"beside/frozen/motion_ratio_last/{k}"))) for k in range(4)),
        *(Row(f"pace in the last minute, video {k + 1}", "", "as rendered", plain(
            ("as shipped", f"pace_last/{k}"), ("rendered", f"beside/rendered/pace_last/{k}"),
            ("shuffled", f"pace_last_shuffled/{k}"))) for k in range(4)),
        *(Row(f"largest drift of {what}", "%", LOWER, percent(
            ("as shipped", f"{what}_drift"), ("rendered", f"beside/rendered/{what}_drift"),
            ("no guidance", f"arms/no guidance/{what}_drift")), 0)
          for what in ("brightness", "sharpness", "colour")),
        Row("windows that repeat an earlier one", "", LOWER, plain(
            ("as shipped", "loops"), ("rendered", "beside/rendered/loops"),
            ("frozen", "beside/frozen/loops")), 0),
        Row("memory growth from 30 s to the end", "MB", NEAR_0, plain(
            ("as shipped", "memory_growth_mb"),), 0)),
}


def at_rate(fps: str) -> tuple[Row, ...]:
    """Rows of interpolation at one frame rate."""
    arms = ("generated, mean of 4", "mean_db"), ("generated, one sample", "single_db"), (
        "linear interpolation", "linear_db"), ("true frames, decoded", "decoded_truth_db")
    return (Row(f"PSNR of the frames between, {fps} a second", "dB", HIGHER, plain(
                *((name, f"table/{fps}/{key}") for name, key in arms)), 1, readme=fps == "7.5"),
            Row(f"gradient energy over the true one, {fps} a second", "", NEAR_1, plain(
                ("generated, one sample", f"table/{fps}/sharpness"),
                ("linear interpolation", f"table/{fps}/linear_sharpness"),
                ("true frames, decoded", f"table/{fps}/decoded_truth_sharpness"))),
            Row(f"Fréchet distance of videos, {fps} a second", "", LOWER, plain(
                ("generated, one sample", f"table/{fps}/distance"),
                ("linear interpolation", f"table/{fps}/linear_distance")), 3))


def of_decoder(where: str, label: str, readme: bool = False) -> tuple[Row, ...]:
    """Rows of the decoder on one kind of latents; where: "" or a key with "/" behind it."""
    def arms(key: str) -> tuple[Arm, ...]:
        return plain(("temporal decoder", f"{where}table/temporal/{key}"),
                     ("frame by frame, trained as long", f"{where}table/frame-wise/{key}"),
                     ("frame by frame, blurred in time",
                      f"{where}table/frame-wise, blurred in time/{key}"))
    motion = (*arms("along_motion"), Arm("true frames", f"{where}true_along_motion"))
    return (Row(f"PSNR, {label}", "dB", HIGHER, arms("psnr_db"), 1),
            Row(f"flicker where the scene stands still, {label}", "1e-6", LOWER, tuple(
                Arm(arm.name, arm.path, 1e6) for arm in arms("still_flicker")), 1, readme),
            Row(f"change along the motion, {label}", "1e-6", "as of true frames", tuple(
                Arm(arm.name, arm.path, 1e6) for arm in motion), 0),
            Row(f"Fréchet distance of videos, {label}", "", LOWER, arms("video_distance"), 4),
            Row(f"Fréchet distance of frames, {label}", "", LOWER, arms("frame_distance"), 4))


def of_upsampler(where: str, label: str, readme: bool = False) -> tuple[Row, ...]:
    """Rows of one upsampler; where: "" or a key with "/" behind it."""
    def arms(key: str) -> tuple[Arm, ...]:
        return plain(*((name, f"{where}table/{arm}/{key}") for name, arm in (
            ("video upsampler", "video"), ("frame by frame, alpha = 1", "frame by frame"),
            ("bicubic", "bicubic"), ("the same noise in every frame", "stuck"))))
    motion = (*arms("along_motion"), Arm("true frames", f"{where}true_along_motion"))
    return (Row(f"PSNR of one sample, {label}", "dB", HIGHER, arms("psnr_db"), 1),
            Row(f"PSNR of the mean of 8 samples minus bicubic's, {label}", "dB", HIGHER, plain(
                ("video upsampler", f"{where}mean_gain_db"),), 1),
            Row(f"flicker, {label}", "1e-4", LOWER, tuple(
                Arm(arm.name, arm.path, 1e4) for arm in arms("flicker")), 0),
            Row(f"flicker where the scene stands still, {label}", "1e-6", LOWER, tuple(
                Arm(arm.name, arm.path, 1e6) for arm in arms("still_flicker")), 0, readme),
            Row(f"change along the motion, {label}", "1e-6", "as of true frames", tuple(
                Arm(arm.name, arm.path, 1e6) for arm in motion), 0),
            Row(f"relative error of the gradient energy, {label}", "", LOWER,
                arms("sharpness_error"), 2),
            Row(f"Fréchet distance of videos, {label}", "", LOWER, arms("video_distance"), 4),
            Row(f"Fréchet distance of frames, {label}", "", LOWER, arms("frame_distance"), 4))


SUPER_RESOLUTION = {
    "upsampler": (*of_upsampler("", "`driving`, in pixels", readme=True),
                  *of_upsampler("latent/", "`driving`, in latents")),
    "upsampler-signs": (*of_upsampler("", "`signs`, in pixels"),
                        *of_upsampler("latent/", "`signs`, in latents")),
    "upsampler-seams": (
        Row("PSNR of tiles against the whole, in pixels", "dB", HIGHER, plain(
            ("margin of 16", "pixel/tiles_psnr_db"),
            ("no margin", "pixel/beside/tiles without margin")), 1),
        Row("step across the edges of tiles, in pixels", "", NEAR_1, plain(
            ("margin of 16", "pixel/seam"), ("no margin", "pixel/beside/their seam"))),
        Row("PSNR of chunks against all frames at once, in pixels", "dB", HIGHER, plain(
            ("overlap of 4", "pixel/chunks_psnr_db"),
            ("no overlap", "pixel/beside/chunks without overlap")), 1)),
    "upsampler-robustness": (
        Row("Fréchet distance of enlarged generated frames", "", LOWER, plain(
            ("noise augmentation, best level", "distance_augmented"),
            ("noise augmentation, level 0", "distance_at_0"),
            ("trained without it", "distance_plain"), ("bicubic", "generated/bicubic"),
            ("other true frames", "floor")), 2, readme=True),
        Row("Fréchet distance of enlarged true frames", "", LOWER, plain(
            ("noise augmentation, level 0", "of_true_small_frames/tau_gamma 0"),
            ("trained without it", "of_true_small_frames/trained without"),
            ("bicubic", "of_true_small_frames/bicubic")), 3)),
}

COST = {
    "stack-base": (
        Row("noise to 113 frames of 64x128", "s", LOWER, plain(("all stages", "seconds"),
            *((stage, f"by_stage/{stage}/seconds")
              for stage in ("key frames", "to 29", "to 113", "decoding"))), 1, readme=True),
        Row("its peak memory", "MB", LOWER, plain(("all stages", "peak_memory_mb"),), 0)),
    "stack-full": (
        Row("noise to 113 frames of 256x512", "s", LOWER, plain(("all stages", "seconds"),
            ("pixel upsampler", "by_stage/pixel upsampler/seconds"),
            ("latent upsampler", "by_stage/latent upsampler/seconds")), 0),
        Row("its peak memory", "MB", LOWER, plain(("all stages", "peak_memory_mb"),), 0)),
    "upsampler-memory": (
        Row("memory for 128 frames of 256x512", "MB", LOWER, plain(
            ("8 at a time", "by_frames/128"),), 0),
        Row("memory growth per frame", "MB", NEAR_0, plain(
            ("8 at a time", "growth_mb_per_frame"),
            ("all at once", "all_at_once/growth_mb_per_frame")), 1)),
    "driving-render": (
        Row("rendered frames of 64x128", "1/s", HIGHER, plain(
            ("one core", "frames_per_second"),), 0),
        Row("PSNR of 4 times smaller and back (little: frames have detail)", "dB", LOWER, plain(
            ("rendered frames", "bicubic_psnr_db"), ("smooth frames", "smooth_psnr_db")), 1)),
    "read-video": (
        Row("reading a video of 1200 frames' height", "1/s", HIGHER, plain(
            ("reduced frames", "frames_per_second"), ("decoding alone", "decoded_only")), 0),
        Row("its peak memory", "MB", LOWER, plain(("reduced frames", "peak_memory_mb"),
            ("all frames at full size", "full_size_mb")), 0)),
    "peers": (
        Row("seconds of diffusers' video U-Net over ours, training step", "", HIGHER, plain(
            ("77 tokens of text", "train_ratio"), ("one token", "one_token/train_ratio"))),
        Row("seconds of diffusers' video U-Net over ours, sampling step", "", HIGHER, plain(
            ("77 tokens of text", "sample_ratio"), ("one token", "one_token/sample_ratio")))),
}

GROUPS = (
    Group("Exact worlds", {"toy-score": (
        Row("relative error of the learned score, worst of 5 noise levels and 3 seeds", "%", LOWER,
            percent(("trained", "relative_error_worst"), ("untrained", "baselines_worst/untrained"),
                    ("one Gaussian of the same moments",
                     "baselines_worst/one Gaussian of the same moments")), 1, readme=True),)}),
    Group("Autoencoder", AUTOENCODER),
    Group("Control: is the request followed?", CONTROL),
    Group("Motion and memorisation", MOTION),
    Group("Prediction and long videos", LONG_VIDEO),
    Group("Temporal interpolation", {"interpolation": (*at_rate("7.5"), *at_rate("30"))}),
    Group("Temporal decoder", {"decoder": (
        *of_decoder("", "true latents"), *of_decoder("noisy/", "noisy latents"),
        *of_decoder("generated/", "generated latents", readme=True))}),
    Group("Super-resolution", SUPER_RESOLUTION),
    Group("Time and memory", COST),
)
