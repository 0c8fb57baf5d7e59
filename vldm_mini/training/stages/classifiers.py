"""Stage `classifiers`: evaluation networks.

They are trained on real or rendered clips before any generator.
"""
from ...evaluation import action_classifier_training as actions
from ...evaluation import driving_classifier_training as driving
from .common import Request


def train_classifiers(request: Request) -> dict:
    """Saves out/classifiers; minutes long. Returns the table of their accuracies.

    Raises ValueError for data other than `actions` and `driving`, and for request.start.
    """
    folder = request.folder("classifiers")
    if request.start:
        raise ValueError("classifiers are always trained from random weights: leave --start out")
    if request.data == "driving":
        return driving.train_classifiers(folder, request.seed, request.steps,
                                         resume=request.resume)
    if request.data != "actions":
        raise ValueError("there are classifiers of the actions and persons of `actions`, and of "
                         f"`driving`, not of {request.data!r}: give --data actions or "
                         "--data driving")
    from tqdm.auto import tqdm
    steps = request.steps or actions.CLASSIFIER_STEPS
    with tqdm(desc="classifiers", total=steps, mininterval=0.5) as bar:
        def progress(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
        return actions.train_classifiers(folder, request.seed, steps=steps, progress=progress)
