"""What a user imports, which module may know which, and what importing the package pulls in."""
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vldm_mini

PACKAGE = Path(__file__).resolve().parent.parent / "vldm_mini"


def run_python(code):
    """The last line of what a fresh interpreter prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# -- what a user imports ---------------------------------------------------------------------------

def test_every_public_name_is_there_and_is_listed_for_tab_completion():
    assert {"VideoLDM", "VideoModel", "insert", "Schedule", "ddim"} <= set(vldm_mini.__all__)
    assert set(vldm_mini.__all__) <= set(dir(vldm_mini))
    for name in vldm_mini.__all__:
        assert getattr(vldm_mini, name) is not None
    for name, module in vldm_mini._PUBLIC.items():
        assert getattr(vldm_mini, name) is getattr(getattr(vldm_mini, module), name)


def test_every_module_of_the_package_that_a_user_needs_is_public():
    found = {file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")}
    found |= {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    inner = {"arguments", "cli", "files", "layer_classes", "report", "sample"}
    assert found - inner == set(vldm_mini._MODULES)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'vldm_mini' has no attribute 'VideoGAN'"):
        _ = vldm_mini.VideoGAN
    with pytest.raises(ImportError):
        from vldm_mini import VideoGAN  # noqa: F401


def test_the_package_imports_no_torch_and_its_names_cost_little_beside_torch():
    seconds, early = run_python(
        "import sys, time, json\n"
        "import vldm_mini\n"
        "early = [name for name in ('torch', 'numpy') if name in sys.modules]\n"
        "import torch\n"
        "start = time.process_time()\n"
        "from vldm_mini import VideoLDM, VideoModel, insert, Schedule, ddim\n"
        "print(json.dumps([time.process_time() - start, early]))")
    assert early == []
    assert seconds < 1.5


# -- who may know whom -----------------------------------------------------------------------------

FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def module_name(file):
    """"datasets.toy" for vldm_mini/datasets/toy.py, and "datasets" for its __init__.py."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def folder(name):
    """The modules of a folder, the folder's own __init__ included."""
    return {module for module in MODULES if f"{module}.".startswith(f"{name}.")}


TOOLS = {"weights", "machine", "files", "layer_classes"}   # nothing of the paper
NETWORKS = {"blocks", "unet", "insertion", "temporal", "autoencoder", "context", "upsampler"}
GROUND = {"schedule", "diffusion", "latent_model", "pipeline", "boxes", *NETWORKS, *TOOLS}
DATA, TRAINING, EVALUATION = folder("datasets"), folder("training"), folder("evaluation")
TEACHING, LAB = folder("teaching"), folder("lab")
# the name of a folder stands for all modules in it that are not named themselves
MAY_KNOW = {
    "schedule": set(),
    "diffusion": {"schedule"},
    "blocks": set(),
    "files": set(),
    "weights": {"files"},
    "machine": set(),
    "report": {"machine", "datasets.video"},
    "unet": {"blocks", "diffusion", "weights"},
    "context": {"blocks", "diffusion"},
    "layer_classes": set(),
    "insertion": {"blocks", "layer_classes", "weights"},
    "temporal": {"blocks", "context", "diffusion", "insertion", "layer_classes", "weights"},
    "autoencoder": {"blocks", "context", "temporal", "weights"},   # the temporal decoder, in parts
    "upsampler": NETWORKS | TOOLS | {"diffusion"},
    "latent_model": NETWORKS | TOOLS | {"diffusion"},
    "pipeline": NETWORKS | TOOLS | {"diffusion", "latent_model"},
    "boxes": NETWORKS | TOOLS | {"diffusion", "latent_model", "pipeline"},
    "datasets": DATA | TOOLS | {"blocks", "diffusion"},
    "training": GROUND | DATA | EVALUATION | TRAINING,
    "training.stages": GROUND | DATA | EVALUATION | TRAINING | {"teaching.pictures"},
    "training.loop": TOOLS | {"training.optimizers", "training.randomness", "training.record"},
    "stable_diffusion": NETWORKS | TOOLS | {"diffusion", "schedule"} | folder("stable_diffusion"),
    "stable_diffusion.captioned": DATA | TRAINING | folder("stable_diffusion"),
    "stable_diffusion.training": GROUND | TRAINING | folder("stable_diffusion"),
    "evaluation": GROUND | DATA | TRAINING | EVALUATION,
    "teaching": GROUND | DATA | EVALUATION | TEACHING,
    "lab": GROUND | DATA | TRAINING | EVALUATION | TEACHING | LAB,
    "arguments": set(),
    "sample": set(MODULES),
    "cli": set(MODULES),
    "__main__": {"cli"},
}


def may_know(name):
    """What a module may import: as its own name says, else as its folder's."""
    while name not in MAY_KNOW and "." in name:
        name = name.rpartition(".")[0]
    return MAY_KNOW.get(name)


def package_of(name):
    """The package, as a list of names, that relative imports of a module start from."""
    parts = ["vldm_mini", *name.split(".")]
    return parts if MODULES[name].name == "__init__.py" else parts[:-1]


def imports(name):
    """[(full name, later than at import?)] of all that a module imports; relative ones resolved.

    Later: inside a function, or for type checkers only.
    """
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    later = [node for node in ast.walk(tree)
             if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
             or isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    inside = {node for block in later for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(name)
            base = package[:len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *filter(None, [node.module])])
            yield from ((f"{full}.{alias.name}", node in inside) for alias in node.names)


def known(name):
    """Names of our own modules that a module imports, wherever it does."""
    found = set()
    for target, _ in imports(name):
        target = f"{target.removeprefix('vldm_mini.')}."
        hits = [module for module in MODULES if target.startswith(f"{module}.")]
        if hits:
            found.add(max(hits, key=len))
    return found


def test_the_graph_sees_relative_absolute_and_inner_imports():
    assert "datasets.video" in known("report") and "blocks" in known("unet")
    assert "training.loop" in known("training") and "pipeline" in known("sample")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_knows_only_what_it_may(name):
    assert may_know(name) is not None, f"{name} is new: say in this file what it may know"
    unwanted = known(name) - may_know(name) - {name}
    assert unwanted == set(), f"{name} must not know {sorted(unwanted)}"


# -- what an import pulls in -----------------------------------------------------------------------

LIGHT = {"torch", "einops", "numpy", "safetensors", "vldm_mini"}
# modules about one heavy package; others import them inside functions only
ABOUT = {"teaching.curves": {"matplotlib"}, "teaching.widgets": {"ipywidgets"}}
HEAVY = ("av", "pooch", "diffusers", "transformers", "matplotlib", "IPython", "PIL", "scipy",
         "accelerate", "peft")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_heavy_packages_only_where_it_uses_them(name):
    if name.startswith("stable_diffusion"):
        pytest.skip("its subject is diffusers; nothing imports it")
    top = {target.partition(".")[0] for target, inside in imports(name) if not inside}
    assert top - LIGHT - ABOUT.get(name, set()) - set(sys.stdlib_module_names) == set()


def test_importing_the_core_pulls_in_nothing_heavy():
    core = sorted(GROUND | TRAINING | EVALUATION | {"teaching.pictures", "datasets.toy"})
    lines = ["import json, sys", *(f"import vldm_mini.{name}" for name in core),
             f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"]
    assert run_python("\n".join(lines)) == []


# -- a bare machine --------------------------------------------------------------------------------

BARE = '''
"""Hide every installed package but torch, einops, numpy, safetensors and what these need."""
import importlib.metadata as metadata
import re
import sys
from importlib.machinery import PathFinder

keep, queue = set(), ["torch", "einops", "numpy", "safetensors"]
while queue:
    name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
    if name in keep:
        continue
    keep.add(name)
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        continue
    queue += [re.match(r"[\\w.-]+", line)[0] for line in lines if "extra ==" not in line]

hidden = set()
for module, packages in metadata.packages_distributions().items():
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in packages}
    if not names & keep and module not in ("vldm_mini", "_distutils_hack"):
        hidden.add(module)


class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return super().find_spec(name, path, target)


sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
'''

TRAIN = '''
import json
import torch
from vldm_mini import UNet, UNetConfig, VideoLDM, VideoModel, insert
from vldm_mini.training import Objective, Settings, train
from vldm_mini.training.data import Latents
from vldm_mini.training.losses import diffusion_loss

torch.manual_seed(0)
clips = [torch.randn(6, 4, 8, 8).half() for _ in range(3)]
latents = Latents(clips, torch.tensor([[0], [1], [1]]), (("side", ("left", "right")),), 8.0)
theta = UNet(UNetConfig(channels=(16, 32), attention=(False, True), head_channels=16,
                        emb_channels=32, labels=latents.classes))
before = theta.conv_in.weight.detach().clone()
loss = diffusion_loss(theta, latents, 1, 1, theta.schedule, theta.prediction)
settings = Settings(steps=2, batch=4, precision="fp32")
record = train(FOLDER + "/image", settings, [Objective("image", theta, loss)], progress=False)
model = VideoModel(theta.requires_grad_(False), insert(theta, ff_mult=1))
loss = diffusion_loss(model, latents, 4, 1, theta.schedule, theta.prediction)
objectives = [Objective("temporal", model.layers, loss)]
second = train(FOLDER + "/temporal", settings, objectives, progress=False)
theta.save_pretrained(FOLDER + "/image")
print(json.dumps({"steps": [record.rows[-1]["step"], second.rows[-1]["step"]],
                  "moved": not torch.equal(before, theta.conv_in.weight),
                  "loss": record.rows[-1]["losses"]["image"]}))
'''


def test_the_ground_floor_trains_where_only_its_four_packages_are_installed(tmp_path):
    found = run_python(f"{BARE}\nFOLDER = {str(tmp_path)!r}\n{TRAIN}")
    assert found["steps"] == [2, 2] and found["moved"] and 0.1 < found["loss"] < 10
    assert (tmp_path / "image" / "model.safetensors").is_file()


def test_the_test_above_really_hides_the_other_packages():
    names = ("PIL", "scipy", "av")
    for name in names:
        pytest.importorskip(name)
    code = f"""{BARE}
import json
errors = []
for name in {names!r}:
    try:
        __import__(name)
    except ImportError as error:
        errors.append(str(error))
print(json.dumps(errors))
"""
    assert run_python(code) == [f"No module named {name!r}" for name in names]
