"""The code in figures: size, longest lines, missing type hints, words that are ours alone.

    python -m tests.benchmarks house                  # JSON; counts by folder on stderr
    python -m tests.benchmarks house --list [PATH]    # every finding, as path:line, below PATH

"Own words" are words of an earlier draft that the field does not use ("film" for a video, "told"
for conditioned on). OWN_WORDS lists them with a pattern each. Identifiers are split at underscores
and capitals before the patterns are applied, so that `told_latents` and `PlaceNorm` count as well.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vldm_mini"
NOT_GROUND_FLOOR = ("__init__", "__main__", "arguments", "cli", "files", "machine", "report",
                    "sample", "weights")
LONG_FUNCTION = 60

# Words before "drive" that make it a noun. "to drive", "driving", "drives along" stay allowed.
_ARTICLE = (
    r"(?:a|an|the|each|every|one|two|three|this|that|these|those|of|per|all|some|other|"
    r"another|which|both|own|\d+|held[- ]out|rendered|true|real|same|whole|long|longer|"
    r"short|first|last|new|many|more|few|training)"
)
_POSITION = (
    r"(?<!in )(?<!take )(?<!takes )(?<!took )(?<!taken )(?<!taking )(?<!decimal )"
    r"(?<!first )"
)

# name -> pattern; {"text": ...} for comments, docstrings, messages and prose, {"name": ...} for
# identifiers. One string: the same pattern for both.
OWN_WORDS = {
    "film": r"\bfilm(?:s|ed|ing)?\b",
    "told": r"\b(?:un)?told\b",
    "wish": r"\bwish(?:es|ed|ing)?\b",
    "judge": r"\bjudg(?:e|es|ed|ing|ement|ment)\b",
    "opponent": r"\bopponents?\b",
    "player": r"(?<!video )\bplayers?\b",
    "drive": {"text": rf"\b{_ARTICLE} drives?\b|`drives?`", "name": r"\bdrives?\b"},
    "place": {"text": rf"{_POSITION}\bplaces?\b", "name": r"\bplaces?\b"},
    "steady": r"\b(?:un)?stead(?:y|ily|iness|ier)\b",
    "straight": {
        "text": r"\bstraight (?:lines?|interpolation|mix)\b|\bthe straight\b",
        "name": r"\bstraight\b",
    },
    "blend": r"\bblend(?:s|ed|ing)?\b",
    "grow": {
        "text": r"`(?:grow|widen)|\b(?:grow|widen)\(",
        "name": r"\b(?:grow|grows|grown|widen|widens|widened)\b",
    },
    "spoil": r"\bspoil(?:s|ed|t|ing)?\b",
    "remade": r"\bremade\b",
    "drawn": {
        "text": (
            r"\bdrawn (?:from|at random|anew|again|uniformly|once|with|without|by|in one)\b"
            r"|\brandomly drawn\b"
        ),
        "name": r"\bdrawn\b",
    },
    "one more of": r"\bone more of\b",
    "made of": r"\bmade of\b",
    "guided along": r"\bguided along\b",
    "to the bit": r"\bto the (?:bit|digit|last bit|last digit)\b",
    "at the door": r"\bat the door\b|\bfresh look\b",
    "personified": (
        r"\b(?:network|model|layer|backbone|classifier|critic|decoder|encoder|upsampler|"
        r"finder|net)s? (?:asks?|answers?|hears?|believes?|listens?|thinks?|knows?|wants?|"
        r"is asked|are asked)\b"
    ),
}
# The renderer may speak of straight roads; this file and its test hold the list itself.
ALLOWED = {"straight": ("vldm_mini/datasets/", "tests/test_driving.py")}
NOT_COUNTED = ("tests/benchmarks/house.py", "tests/test_house.py")


@dataclass(frozen=True)
class Finding:
    """An own word, a missing hint or a long line: file, line, what it is, the text around it."""

    file: str
    line: int
    what: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.text.strip()[:120]}"


def split_words(text: str) -> str:
    """Identifiers as words: `told_latents` -> "told latents", `PlaceNorm` -> "Place Norm"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text.replace("_", " "))


def find(text: str, kind: str, file: str) -> Iterator[tuple[str, int, str]]:
    """Own words in a text: (word, line from 0, the text around it); kind is "text" or "name".

    A phrase may run over the end of a line, in a comment or a docstring as well.
    """
    lines = re.sub(
        r"\s*\n[\s#>*]*", lambda match: "\n" * match.group().count("\n"), split_words(text)
    )
    flat = lines.replace("\n", " ")
    for name, pattern in OWN_WORDS.items():
        if any(file.startswith(start) for start in ALLOWED.get(name, ())):
            continue
        pattern = pattern if isinstance(pattern, str) else pattern[kind]
        for match in re.finditer(pattern, flat, re.I):
            around = flat[max(0, match.start() - 40) : match.end() + 40]
            yield name, lines.count("\n", 0, match.start()), around


def own_words_of_text(text: str, file: str, first: int = 1) -> list[Finding]:
    """Own words of prose that starts at line `first`."""
    return [
        Finding(file, first + line, word, around) for word, line, around in find(text, "text", file)
    ]


def own_words_of_code(source: str, file: str) -> list[Finding]:
    """Own words of Python source: identifiers, comments and strings."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.NAME:
            names = find(token.string, "name", file)
            found += [Finding(file, line, word, token.line) for word, _, _ in names]
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            found += own_words_of_text(token.string, file, line)
    return found


def notebook_cells(file: Path) -> list[tuple[str, str]]:
    """[(cell type, source)] of a notebook; magics and shell lines of code cells are left out."""
    cells = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = re.sub(r"^\s*[%!].*$", "", source, flags=re.M)
        cells.append((cell["cell_type"], source))
    return cells


def own_words(file: Path) -> list[Finding]:
    """All own words of one file, by its kind: Python, notebook (its "line" is the cell), text."""
    name = file.relative_to(ROOT).as_posix()
    if file.suffix == ".py":
        return own_words_of_code(file.read_text(encoding="utf-8"), name)
    if file.suffix != ".ipynb":
        return own_words_of_text(file.read_text(encoding="utf-8"), name)
    found = []
    for number, (kind, source) in enumerate(notebook_cells(file), 1):
        count = own_words_of_code if kind == "code" else own_words_of_text
        found += [Finding(name, number, f"{f.what} ({kind})", f.text) for f in count(source, name)]
    return found


def counted_files() -> list[Path]:
    """Files whose words count: package, tests, notebooks, README, RESULTS, cards, set-up files."""
    files = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        *ROOT.glob("*.md"),
        *(ROOT / "data").rglob("*.md"),
        *PACKAGE.rglob("*.html"),
        *(ROOT / "tests").rglob("*.json"),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]
    return sorted(
        f for f in files if f.is_file() and f.relative_to(ROOT).as_posix() not in NOT_COUNTED
    )


def folder_of(finding: Finding) -> str:
    """Folder under which a finding is counted; notebooks are counted apart by code and prose."""
    if finding.file.endswith(".ipynb"):
        return "notebooks, code" if finding.what.endswith("(code)") else "notebooks, prose"
    return Path(finding.file).parent.as_posix()


def code_lines(file: Path) -> int:
    """Lines of code, without docstrings, comments and blank lines."""
    text, code, prose = file.read_text(encoding="utf-8"), set(), set()
    for node in ast.walk(ast.parse(text)):
        is_block = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if is_block and ast.get_docstring(node) is not None:
            prose.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def _is_public(name: str) -> bool:
    return name in ("__init__", "__call__") or not name.startswith("_")


def _lacks_hints(node: ast.FunctionDef) -> bool:
    a = node.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(p for p in (a.vararg, a.kwarg) if p)]
    bare = [p for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return bool(bare) or (node.returns is None and node.name != "__init__")


def untyped(file: Path) -> list[Finding]:
    """Public functions and methods that lack the hint of a parameter or of what they return.

    Of `__init__` only the parameters count.
    """
    name, found = file.relative_to(ROOT).as_posix(), []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _is_public(
                node.name
            ):
                if _lacks_hints(node):
                    found.append(Finding(name, node.lineno, "untyped", prefix + node.name))

    visit(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return found


def long_functions(file: Path) -> list[Finding]:
    """Functions of more than LONG_FUNCTION lines, docstring included."""
    name, found = file.relative_to(ROOT).as_posix(), []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > LONG_FUNCTION:
                found.append(Finding(name, node.lineno, f"{lines} lines", node.name))
    return found


def longest_lines(limit: int = 100) -> list[Finding]:
    """Lines of over `limit` columns in package, tests and notebooks' code, longest first."""
    found = []
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > limit:
                found.append(
                    Finding(file.relative_to(ROOT).as_posix(), number, f"{len(line)} columns", line)
                )
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, (kind, source) in enumerate(notebook_cells(file), 1):
            long = (
                [line for line in source.splitlines() if len(line) > limit]
                if kind == "code"
                else []
            )
            found += [
                Finding(f"notebooks/{file.name}", number, f"{len(line)} columns", line)
                for line in long
            ]
    return sorted(found, key=lambda finding: -int(finding.what.split()[0]))


def measure() -> dict:
    """All figures, see the module's docstring."""
    package = sorted(PACKAGE.rglob("*.py"))
    flat = [file for file in PACKAGE.glob("*.py") if file.stem not in NOT_GROUND_FLOOR]
    ground = {file.stem: code_lines(file) for file in sorted(flat)}
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in package}
    longest = max(lengths, key=lengths.get)
    words = [finding for file in counted_files() for finding in own_words(file)]
    over, lines = longest_lines(100), longest_lines(0)
    return {
        "ground_floor_lines": ground,
        "ground_floor_lines_total": sum(ground.values()),
        "longest_module": lengths[longest],
        "longest_module_name": longest.relative_to(ROOT).as_posix(),
        "modules_over_400_lines": sum(length > 400 for length in lengths.values()),
        "longest_line": int(lines[0].what.split()[0]),
        "lines_over_100": len(over),
        "functions_over_60_lines": sum(len(long_functions(file)) for file in package),
        "untyped_public": sum(len(untyped(file)) for file in package),
        "own_words": len(words),
        "own_words_by_folder": dict(sorted(Counter(folder_of(word) for word in words).items())),
        "own_words_by_word": dict(
            Counter(word.what.partition(" (")[0] for word in words).most_common()
        ),
        "untyped_by_folder": dict(
            sorted(
                Counter(folder_of(finding) for file in package for finding in untyped(file)).items()
            )
        ),
    }


def listing(below: str) -> list[Finding]:
    """Every finding in files whose path starts with `below`."""
    files = [
        file for file in counted_files() if file.relative_to(ROOT).as_posix().startswith(below)
    ]
    found = [finding for file in files for finding in own_words(file)]
    for file in files:
        if file.suffix == ".py" and PACKAGE in file.parents:
            found += [*untyped(file), *long_functions(file)]
    return found + [finding for finding in longest_lines() if finding.file.startswith(below)]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks house", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--list", nargs="?", const="", metavar="PATH", help="print every finding below PATH"
    )
    args = parser.parse_args(argv)
    if args.list is not None:
        for finding in listing(args.list):
            print(finding)
        return 0
    figures = measure()
    for key in ("own_words_by_folder", "own_words_by_word", "untyped_by_folder"):
        print(f"{key}: {json.dumps(figures[key])}", file=sys.stderr)
    print(json.dumps(figures))
    return 0
