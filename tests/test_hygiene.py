"""Notebooks as agreed, no stray paths, no pickles, one meaning per symbol, a small ground floor."""

import ast
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
import tomllib
import zipfile
from pathlib import Path

import pytest

from vldm_mini import report
from vldm_mini.teaching import exercises

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PACKAGE = sorted((ROOT / "vldm_mini").rglob("*.py"))
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".yml",
    ".ipynb",
    ".sh",
    ".cfg",
    ".txt",
    ".json",
    ".cff",
    ".html",
    "",
}
HOMES = r"(?:work|root|farm|home/\w+|Users/\w+|tmp/[a-z]\w*)"
MACHINE_PATH = re.compile(rf"(?<![\w.:/])(?:/{HOMES}(?=[/\s\"'`)])|[A-Z]:\\+Users)[\w./\\-]*")


def tracked():
    """Files of the repository: those that git knows, else all but build products."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.splitlines() if done.returncode == 0 else []
    files = [ROOT / name for name in names] or [
        f for f in ROOT.rglob("*") if not {".venv", "build"} & set(f.parts)
    ]
    return [file for file in files if file.is_file()]


# -- notebooks -------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def book(request):
    """A notebook as JSON with joined sources; "path": its file, "code": its code cells."""
    book = exercises.read(request.param)
    code = [
        cell for cell in book["cells"] if cell["cell_type"] == "code" and cell["source"].strip()
    ]
    return book | {"path": request.param, "code": code}


def test_the_chapters_of_this_part_are_there():
    assert {"00_start_here", "01_toy_alignment_1d", "02_diffusion"} <= {
        file.stem for file in NOTEBOOKS
    }


def test_a_notebook_was_run_once_from_top_to_bottom(book):
    assert [cell["execution_count"] for cell in book["code"]] == list(
        range(1, len(book["code"]) + 1)
    )
    assert not [o for cell in book["code"] for o in cell["outputs"] if o["output_type"] == "error"]
    assert any(cell["outputs"] for cell in book["code"])


def test_a_notebook_shows_on_github_and_is_small(book):
    assert "widgets" not in book["metadata"], "metadata.widgets breaks GitHub's view"
    assert book["path"].stat().st_size < 1 << 20
    assert MACHINE_PATH.findall(book["path"].read_text(encoding="utf-8")) == []


def test_cell_ids_are_unique_and_stable(book):
    ids = [cell.get("id", "") for cell in book["cells"]]
    assert all(ids) and len(set(ids)) == len(ids)
    random = [name for name in ids if re.fullmatch(r"[0-9a-f]{8}|[0-9a-f-]{36}", name)]
    assert random == [], (
        "give cells names of their own: a random id changes whenever the notebook is made anew"
    )


def test_a_checked_cell_has_outputs_to_check_against(book):
    bare = [
        cell["id"]
        for cell in book["code"]
        if "nbval-check-output" in cell["metadata"].get("tags", ()) and not cell["outputs"]
    ]
    assert bare == [], "nbval passes these silently"


def folded(cell):
    """Whether a reader sees the cell only after a click: plots and solutions."""
    return cell["metadata"].get("jupyter", {}).get("source_hidden", False)


def lines_of_code(source):
    """Lines that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#")
               for line in source.splitlines())


def test_a_notebook_is_prose_first_and_of_one_sitting(book):
    prose = [cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown"]
    shown = [cell["source"] for cell in book["code"] if not folded(cell)]
    assert len(book["cells"]) <= 90 and len(prose) >= len(shown)
    assert sum(len(text.split()) for text in prose) >= 600
    assert statistics.median(map(lines_of_code, shown)) <= 10


def test_a_notebook_says_its_minutes_on_top_and_in_its_metadata(book):
    facts = book["metadata"].get("vldm", {})
    assert {"minutes_cpu", "minutes_gpu"} <= facts.keys()
    assert all(
        isinstance(facts[key], (int, float)) and facts[key] > 0
        for key in ("minutes_cpu", "minutes_gpu")
    )
    top = "\n".join(cell["source"] for cell in book["cells"][:3]).lower()
    assert "goal" in top and "paper" in top and "minutes" in top


def minutes_on_top(book):
    """[reading, on a CPU, on a GPU, exercises] of the table on top of a chapter."""
    row = next(line for line in book["cells"][0]["source"].splitlines()
               if line.startswith("|") and "arxiv.org" in line)
    columns = row.strip("|").split("|")[-4:]
    return [int(re.search(r"\d+", column).group()) for column in columns]


def test_the_minutes_of_a_chapter_are_the_same_everywhere(book):
    reading, cpu, gpu, exercises = minutes_on_top(book)
    facts, number = book["metadata"]["vldm"], book["path"].name[:2]
    assert (facts["minutes_cpu"], facts["minutes_gpu"]) == (cpu, gpu)
    first = json.loads((ROOT / "notebooks/00_start_here.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in first["cells"])
    row = next(line for line in text.splitlines() if line.startswith(f"| {number} |"))
    assert row.endswith(f"| {reading} / {cpu} / {exercises} |")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in readme if line.startswith(f"| [{number} "))
    assert row.endswith(f"| {reading + cpu} |")


def test_a_notebook_defines_no_class_that_the_package_has(book):
    ours = {
        node.name
        for file in PACKAGE
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    code = "\n".join(re.sub(r"^[%!].*$", "", cell["source"], flags=re.M) for cell in book["code"])
    own = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ClassDef)}
    assert own & ours == set()


def test_a_notebook_has_two_exercises_or_more_and_all_are_whole(book):
    assert exercises.problems(book["path"]) == []
    assert len(exercises.sections(book)) >= 2


def test_pictures_in_outputs_have_an_alt_text(book):
    html = "".join(
        "".join(o.get("data", {}).get("text/html", ""))
        for cell in book["code"]
        for o in cell["outputs"]
    )
    assert [
        image[:60]
        for image in re.findall(r"<img\b[^>]*>", html)
        if not re.search(r'alt="[^"]+', image)
    ] == []


def test_a_plotting_cell_ends_with_show_not_with_a_semicolon(book):
    assert [cell["id"] for cell in book["code"] if cell["source"].rstrip().endswith(";")] == []


def test_the_first_code_cell_never_replaces_torch_or_numpy(book):
    assert not re.search(r"pip install[^\n]*\b(torch|numpy)\b", book["code"][0]["source"])


# -- the tree --------------------------------------------------------------------------------------


def test_no_file_holds_a_path_of_somebodys_machine():
    texts = {
        f: f.read_text(encoding="utf-8", errors="replace") for f in tracked() if f.suffix in TEXT
    }
    assert {f.name: hits for f, text in texts.items() if (hits := MACHINE_PATH.findall(text))} == {}


def test_the_only_package_index_named_is_pytorchs_public_one():
    option = re.compile(r"(?:extra-index-url|index-url|find-links)[ =]+(\S+)")
    asked = {
        url
        for f in tracked()
        if f.suffix in TEXT
        for url in option.findall(f.read_text("utf-8", "replace"))
    }
    assert {url for url in asked if "://" in url} <= {"https://download.pytorch.org/whl/cpu"}


def test_there_are_no_pickles():
    assert [
        f.name for f in tracked() if f.suffix in {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}
    ] == []
    calls = re.compile(
        r"pickle\.(?:loads?|dumps?)\b|allow_pickle=True|torch\.save\("
        r"|torch\.load\((?![^\n]*weights_only=True)"
    )
    assert [f.name for f in PACKAGE if calls.search(f.read_text(encoding="utf-8"))] == []


def test_shipped_weights_are_small_and_each_has_a_config_and_a_card():
    files = [f for f in tracked() if f.is_relative_to(ROOT / "data" / "checkpoints")]
    assert sum(f.stat().st_size for f in files) <= 50 << 20
    for folder in {f.parent for f in files if f.suffix == ".safetensors"}:
        assert (folder / "config.json").is_file(), f"{folder.name} has no config.json"
        card = (folder / "README.md").read_text(encoding="utf-8").lower()
        assert [
            word for word in ("licence", "trained on", "recipe", "minutes") if word not in card
        ] == [], folder.name
    assert [f.name for f in files if "record" in f.name and f.stat().st_size > 1 << 20] == []


def test_no_real_frame_of_actions_is_stored():
    assert [
        f.name for f in tracked() if re.search(r"data/actions/|/actions/\d/\d{8}", f.as_posix())
    ] == []


def test_ruff_finds_nothing():
    folders = ["vldm_mini", "tests", "notebooks"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wheel_holds_every_folder_of_the_package():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    folders = {file.parent.relative_to(ROOT) for file in PACKAGE if file.name == "__init__.py"}
    listed = set(tools["setuptools"]["packages"]) - {"vldm_mini.data"}
    assert listed == {".".join(folder.parts) for folder in folders}


def test_a_wheel_builds_and_holds_all_that_an_installed_package_reads(tmp_path):
    pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-docs"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "vldm_mini", tmp_path / "vldm_mini",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").mkdir()
    for name in ("catalogue.json", "checkpoints.json"):
        shutil.copy(ROOT / "data" / name, tmp_path / "data")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        held = set(wheel.namelist())
    assert {file.relative_to(ROOT).as_posix() for file in PACKAGE} <= held
    assert {f"vldm_mini/data/{name}.json" for name in ("catalogue", "checkpoints")} <= held
    assert "vldm_mini/teaching/demo.html" in held
    assert {"LICENSE", "LICENSE-docs"} <= {Path(name).name for name in held}


# -- symbols ---------------------------------------------------------------------------------------


def names(file):
    """All identifiers of a source file: variables, parameters, attributes, keywords."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for field in ("id", "arg", "attr"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field)


def source(name):
    return ROOT / "vldm_mini" / f"{name}.py"


def test_bare_alpha_is_the_temporal_mix_and_nothing_else():
    files = [source(name) for name in ("diffusion", "blocks", "unet", "autoencoder")]
    files += [
        file
        for file in PACKAGE
        if file.parent.name in ("datasets", "video") or file.stem == "measures"
    ]
    for file in files:
        assert not {"alpha", "alphas"} & set(names(file)), (
            f"{file.name}: the schedule's is called alpha_tau"
        )


def test_the_schedule_is_alpha_tau_and_sigma_tau_never_alphas_cumprod():
    foreign = {"alphas_cumprod", "alpha_bar", "abar", "timestep", "timesteps"}
    found = {
        f.name: hits
        for f in PACKAGE
        if "stable_diffusion" not in f.parts and (hits := foreign & set(names(f)))
    }
    assert found == {}, (
        "alpha_tau, sigma_tau and tau are our words; diffusers' stay in stable_diffusion"
    )


def test_diffusion_time_is_tau_since_t_is_the_frame_axis():
    files = [source(name) for name in ("diffusion", "unet", "blocks", "autoencoder", "pipeline")]
    files += [file for file in PACKAGE if file.parent.name == "training"]
    for name in files:
        tree = ast.parse(name.read_text(encoding="utf-8"))
        taken = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            and "t" in [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        ]
        assert taken == [], f"{name}: a parameter t of {taken}"


# -- size ------------------------------------------------------------------------------------------

GROUND = (
    "schedule",
    "diffusion",
    "blocks",
    "unet",
    "temporal",
    "insertion",
    "autoencoder",
    "context",
    "upsampler",
    "latent_model",
    "pipeline",
    "boxes",
)


def code_lines(file):
    """Lines of code: without docstrings, comments and blank lines, which make reading quicker."""
    text, code, prose = file.read_text(encoding="utf-8"), set(), set()
    for node in ast.walk(ast.parse(text)):
        is_block = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if is_block and ast.get_docstring(node) is not None:
            prose.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def test_the_ground_floor_is_read_in_an_evening():
    assert 1000 < sum(code_lines(source(name)) for name in GROUND) <= 2000


def test_every_choice_of_ours_can_be_listed_with_its_reason():
    marks = report.mini_marks()
    assert marks and all(len(text) > 10 for _, _, text in marks)
    assert {file for file, _, _ in marks} >= {"vldm_mini/temporal.py", "vldm_mini/unet.py"}
    everywhere = sum(file.read_text(encoding="utf-8").count("MINI: ") for file in PACKAGE)
    assert len(marks) == everywhere, "those in docstrings as well"
    assert any("detail moves from pixel to pixel" in text for _, _, text in marks), "of a docstring"


# -- set-up ----------------------------------------------------------------------------------------


def pins():
    rows = [
        row
        for row in (ROOT / "constraints.txt").read_text().splitlines()
        if row and not row.startswith("#")
    ]
    return dict(row.lower().replace("_", "-").split("==") for row in rows)


def test_the_pins_are_exact_meet_the_ranges_and_leave_torchvision_out():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    number = lambda version: tuple(int(part) for part in re.findall(r"\d+", version))
    for asked in (line for group in groups for line in group if not line.startswith("vldm_mini")):
        name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)", asked).groups()
        assert number(pins()[name.lower()]) >= number(least), asked
    assert "torchvision" not in pins() and pins()["torch"] == "2.13.0"


def test_conda_uses_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert "--constraint constraints.txt" in text and "==" not in re.sub(r"#.*", "", text)


def test_the_readme_names_the_commands_and_ci_runs_its_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in (
        "make demo",
        "make test",
        "make lab",
        *(
            f"python -m vldm_mini {c}"
            for c in ("demo", "test", "lab", "check", "train", "sample", "data")
        ),
    ):
        assert command in readme, command
    assert re.search(r"^make test\b", (ROOT / ".ci" / "run").read_text(), re.M)
    assert json.dumps(sorted(re.findall(r"\((notebooks/[\w.]+\.ipynb)\)", readme))) == json.dumps(
        sorted({f"notebooks/{file.name}" for file in NOTEBOOKS})
    ), "the README's map and the folder differ"
