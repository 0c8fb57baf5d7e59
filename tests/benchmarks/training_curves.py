"""How the background training of a set went: held-out error of each noise level against hours.

Reads the records below runs/ (VLDM_RUNS="driving-s actions-s" names others) and draws
data/media/training_RUN.png: for each stage that keeps held-out figures one panel, and below it the
strips of the same noise at the moments that the recorder chose.
"""
import os
from pathlib import Path

from vldm_mini.training import LEVELS, Record

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("autoencoder", "image", "temporal", "decoder", "prediction", "interpolation", "boxes")
MIDDLE = slice(1, LEVELS - 2)                 # levels between nearly clean and nearly noise


def run() -> dict:
    """{run_stage_steps, _process_hours, _held_out_first, _held_out_last} of each stage so far."""
    figures = {}
    for name in os.environ.get("VLDM_RUNS", "driving-s").split():
        records = {stage: Record.load(ROOT / "runs" / name / stage) for stage in STAGES
                   if (ROOT / "runs" / name / stage / "record.json").is_file()}
        if not records:
            raise FileNotFoundError(f"no training in runs/{name}; start one: python -m vldm_mini "
                                    "train all --data driving --size s")
        for stage, record in records.items():
            figures |= stage_figures(f"{name}_{stage}", record)
        draw(name, records)
    return figures


def stage_figures(key: str, record: Record) -> dict:
    """Steps, hours of processor time, first and last held-out error at middle noise levels."""
    found = {f"{key}_steps": record.rows[-1]["step"],
             f"{key}_process_hours": round(record.process_minutes / 60, 3)}
    levels = [row["held_out"]["levels"][MIDDLE] for row in record.rows if "held_out" in row]
    if levels:
        found[f"{key}_held_out_first"] = round(sum(levels[0]) / len(levels[0]), 5)
        found[f"{key}_held_out_last"] = round(sum(levels[-1]) / len(levels[-1]), 5)
    return found


def draw(name: str, records: dict[str, Record]) -> None:
    """One column a stage with held-out figures: curves above, strips below."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image
    shown = {stage: record for stage, record in records.items()
             if any("held_out" in row for row in record.rows)}
    if not shown:
        return
    fig, axes = plt.subplots(2, len(shown), figsize=(9 * len(shown), 9), squeeze=False,
                             layout="constrained", height_ratios=(1, 2))
    colours = plt.get_cmap("viridis")
    for column, (stage, record) in enumerate(shown.items()):
        rows = [row for row in record.rows if "held_out" in row]
        hours = [row["process_minutes"] / 60 for row in rows]
        above, below = axes[:, column]
        for level in range(LEVELS):
            tau = (level + 0.5) / LEVELS
            values = [row["held_out"]["levels"][level] for row in rows]
            above.plot(hours, values, "o-", ms=3, color=colours(tau), label=f"{1000 * tau:.0f}")
        above.set(xlabel="hours of one processor thread", ylabel="held-out error of v", title=stage)
        above.legend(title="tau", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        strips = [ROOT / "runs" / name / stage / strip for strip in record.strips]
        strips = [path for path in strips if path.is_file()]
        pictures = [Image.open(path).convert("RGB") for path in strips]
        # the upper half of each strip: two of its four rows of labels
        pictures = [image.crop((0, 0, image.width, image.height // 2)) for image in pictures]
        sheet = Image.new("RGB", (pictures[0].width, sum(p.height + 4 for p in pictures)), "white")
        top = 0
        for picture in pictures:
            sheet.paste(picture, (0, top))
            top += picture.height + 4
        below.imshow(sheet)
        steps = [str(int(path.stem.partition("_")[2])) for path in strips]
        height = pictures[0].height + 4
        below.set_yticks([height * (i + 0.5) for i in range(len(steps))], steps)
        below.set(xticks=[], ylabel="step", xlabel="the same noise and labels at every moment")
    fig.savefig(ROOT / "data" / "media" / f"training_{name}.png", dpi=60)
    plt.close(fig)
