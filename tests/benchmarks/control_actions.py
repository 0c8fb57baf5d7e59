"""Does a generated clip show who and what was asked for, in order? Judged by networks that saw real clips only.

action_accuracy, person_accuracy, order_accuracy: of 200 clips over trained combinations, the share whose action and
person are named as asked, and that are judged in order. held_out_accuracy: action and person both, of 40 clips over
combinations never filmed for the generator. image_*: the same noise through the image model (alpha = 1).
unguided_*: 100 clips without temporal guidance. real_*: real windows held out from the classifiers. Beside them real windows
after the autoencoder, and baselines that must fail on order.
"""
import torch
from scipy.stats import binomtest

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_classifiers, action_samples


def figures(report):
    """Counts -> shares, with Wilson's 95 % intervals."""
    shares = {name: round(report[name] / report["n"], 4) for name in ("action", "person", "both", "in_order")}
    interval = {name: [round(x, 3) for x in binomtest(report[name], report["n"]).proportion_ci(method="wilson")]
                for name in shares}
    return {**shares, "interval": interval, "counts": report}


def judged(classifiers, made):
    """Samples -> figures, pooled and of every generation seed."""
    report = lambda keep: action_classifiers.classifier_report(                                                          # noqa: E731
        classifiers, video.to_float(made.films[keep]), made.actions[keep], made.persons[keep])
    seeds = {int(seed): report(made.seeds == seed) for seed in made.seeds.unique()}
    return {**figures(report(torch.ones_like(made.seeds, dtype=torch.bool))), "by_seed": seeds}


def by_request(classifiers, made):
    """{"person p, action": [named both as asked, of]}: where it goes wrong."""
    verdict = classifiers.classify(made.float())
    right = (verdict.action == made.actions) & (verdict.person == made.persons)
    rows = {}
    for action, person, hit in zip(made.actions.tolist(), made.persons.tolist(), right.tolist()):
        row = rows.setdefault(f"person {person}, {video.ACTIONS[action]}", [0, 0])
        row[0], row[1] = row[0] + hit, row[1] + 1
    return rows


@torch.no_grad()
def through_autoencoder(model, films, batch=16):
    """Films (n t 3 h w) encoded and decoded: what the best generator could give. Same shape."""
    rebuilt = [model.decode(model.autoencoder.encode(part.flatten(0, 1)).unflatten(0, part.shape[:2]))
               for part in films.split(batch)]
    return torch.cat(rebuilt)


def run(model=None, made=None, classifiers=None, clips=None):
    """All figures; arguments are for tests."""
    if made is None:
        model, made = action_samples.all_samples()
    classifiers = classifiers or action_classifiers.ActionClassifiers.from_pretrained(weights.shipped(action_samples.WEIGHTS) / "classifiers")
    clips = clips or video.actions()
    films, actions, persons = action_classifiers.held_windows(clips, classifiers.config)
    rows = {"real": films, "real, autoencoded": through_autoencoder(model, films),
            **{f"real, {k}": v for k, v in action_classifiers.baselines(films, torch.Generator().manual_seed(0)).items()}}
    rows = {name: figures(action_classifiers.classifier_report(classifiers, film, actions, persons)) for name, film in rows.items()}
    found = {name: judged(classifiers, part) for name, part in made.items()}
    mine = made["video"]
    rows |= {f"generated, {name}": figures(action_classifiers.classifier_report(classifiers, film, mine.actions, mine.persons))
             for name, film in action_classifiers.baselines(mine.float(), torch.Generator().manual_seed(0)).items()}
    return {"action_accuracy": found["video"]["action"], "person_accuracy": found["video"]["person"],
            "held_out_accuracy": found["held_out"]["both"], "image_action_accuracy": found["image"]["action"],
            "order_accuracy": found["video"]["in_order"], "real_action_accuracy": rows["real"]["action"],
            "real_order_accuracy": rows["real"]["in_order"], "n": len(made["video"].films),
            "image_person_accuracy": found["image"]["person"], "image_order_accuracy": found["image"]["in_order"],
            "real_person_accuracy": rows["real"]["person"], "held_out_order_accuracy": found["held_out"]["in_order"],
            "unguided_order_accuracy": found["unguided"]["in_order"],
            "generated": found, "beside": rows, "held_out_by_request": by_request(classifiers, made["held_out"]),
            "by_request": by_request(classifiers, made["video"]), "settings": action_samples.settings(model)}
