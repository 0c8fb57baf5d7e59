"""Who may know what (the house's plan), and what importing the package may pull in."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vldm_mini"
MODULES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))
           if file.name != "__init__.py"}

TOOLS = {"weights", "machine", "files"}                       # files and hardware: no idea of the paper's
NETWORKS = {"blocks", "unet", "temporal", "autoencoder", "context", "upsampler"}
DATA = {name for name in MODULES if name.startswith("datasets.")}
TRAINING = {name for name in MODULES if name.startswith("training.")}
EVALUATION = {name for name in MODULES if name.startswith("evaluation.")}
TEACHING = {name for name in MODULES if name.startswith("teaching.")}
LAB = {name for name in MODULES if name.startswith("lab.")}
GROUND = {"diffusion", "pipeline", "boxes", *NETWORKS, *TOOLS}
# "a package": whatever stands in that folder
MAY_KNOW = {
    "diffusion": set(),
    "blocks": set(),
    "files": set(),
    "weights": {"files"},
    "machine": {"datasets.video"},                   # its report says which data is there
    "unet": {"blocks", "weights"},
    "context": {"blocks"},
    "temporal": {"blocks", "context", "weights"},
    "autoencoder": {"blocks", "context", "temporal", "weights"},   # the temporal decoder, in parts
    "upsampler": NETWORKS | TOOLS | {"diffusion"},
    "pipeline": NETWORKS | TOOLS | {"diffusion"},
    "boxes": NETWORKS | TOOLS | {"diffusion", "pipeline"},
    "datasets": DATA | TOOLS | {"blocks", "diffusion"},
    "training": GROUND | DATA | EVALUATION | TRAINING,
    "training.loop": TOOLS | {"training.optimizers"},
    "stable_diffusion": NETWORKS | TOOLS | {"diffusion", "stable_diffusion.conversion"},
    "evaluation": GROUND | DATA | TRAINING | EVALUATION,
    "teaching": GROUND | DATA | EVALUATION | TEACHING,
    "lab": GROUND | DATA | TRAINING | EVALUATION | TEACHING | LAB,
    "cli": set(MODULES),
    "__main__": {"cli"},
}
LIGHT = {"torch", "einops", "numpy", "safetensors", "vldm_mini"}
HEAVY = ("av", "pooch", "diffusers", "transformers", "matplotlib", "IPython", "PIL", "scipy", "accelerate", "peft")


def may_know(name):
    """What a module may import: as its own name says, else as its folder's."""
    return MAY_KNOW.get(name, MAY_KNOW.get(name.partition(".")[0]))


def imports(name):
    """[(full name, inside a function?)] of all that a module imports, relative imports resolved."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    inside = {node for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
              for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["vldm_mini", *name.split(".")][:-node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", node in inside) for alias in node.names)


def known(name):
    """Names of our own modules that a module imports, wherever it does."""
    full = [target.removeprefix("vldm_mini.") for target, _ in imports(name) if target.startswith("vldm_mini.")]
    hits = ([module for module in MODULES if f"{target}.".startswith(f"{module}.")] for target in full)
    return {max(hit, key=len) for hit in hits if hit}


def test_the_graph_sees_relative_absolute_and_inner_imports():
    assert "datasets.video" in known("machine") and "blocks" in known("unet") and "training.recipes" in known("cli")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_knows_only_what_it_may(name):
    assert may_know(name) is not None, f"{name} is new: say in this file what it may know"
    unwanted = known(name) - may_know(name) - {name}
    assert unwanted == set(), f"{name} must not know {sorted(unwanted)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_heavy_packages_only_where_it_uses_them(name):
    if name.startswith("stable_diffusion"):
        pytest.skip("its subject is diffusers; nothing imports it")
    top = {target.partition(".")[0] for target, inside in imports(name) if not inside}
    assert top - LIGHT - set(sys.stdlib_module_names) == set()


def test_importing_the_package_and_its_core_pulls_in_nothing_heavy():
    core = sorted(GROUND | TRAINING | EVALUATION | {"teaching.pictures", "datasets.toy"})
    code = ("import sys, vldm_mini; early = [m for m in ('torch', 'numpy') if m in sys.modules]\n"
            + "\n".join(f"import vldm_mini.{name}" for name in core)
            + f"\nprint(early, [m for m in {HEAVY!r} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[] []", done.stdout + done.stderr
