"""Numbers in the chapters' prose against the outputs, asserts and constants of their code.

    python -m tests.benchmarks claims                       # stored notebooks; kept as a result
    python -m tests.benchmarks claims --list [06 07]        # numbers that are found nowhere
    python -m tests.benchmarks claims --weak [06]           # found only as a constant of the code
    python -m tests.benchmarks claims --words [06]          # claims in words: "a third", "twice"
    python -m tests.benchmarks claims --run [06] --size s   # runs a copy with today's weights first

A number counts if it speaks of an output: not a heading, reference, formula, code, shape, year, run
time, count of things that the code sets ("250 steps"), nor what a sentence says about the paper. It
is supported if a text output or a constant of the code, rounded to the digits in which the number
is written, equals it; a percentage may be a share, and a change a ratio. After `--run`, a number
that the stored outputs supported and the new ones do not, and a cell that fails, is refuted.
"""
import argparse
import ast
import html
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import notebooks
from vldm_mini.teaching import exercises

RESULTS = Path(__file__).resolve().parent / "results"
# -- what is no number of an output
# --------------------------------------------------------------------------------------
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|\d+"
NUMBERS = rf"(?:{NUMBER})(?:(?:,| and| or| to|, and|\s*[-–/])\s*(?:{NUMBER}))*"
REFERENCE = re.compile(
    r"\b(?:chapters?|sections?|secs?\.?|eqs?\.?|equations?|figs?\.?|figures?|tables?|exercises?|"
    r"cells?|parts?|frames?|rows?|columns?|seeds?|steps?|stages?|appendix|pages?|items?|versions?|"
    r"layers?|blocks?|channels?|windows?|scenes?|clips?|panels?|python|torch|arxiv|tau|alpha|"
    rf"sizes?|speed|ipynb)\s*(?:=|of)?\s*\(?(?:{NUMBERS})[a-z]?\)?", re.IGNORECASE)
LEFT_OUT = (
    re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL),
    re.compile(r"\$\$.*?\$\$", re.DOTALL), re.compile(r"(?<!\\)\$[^$\n]+(?:\n[^$\n]+)*\$"),
    re.compile(r"^\|[^\n]*\b(?:to read|minutes|min)\b[^\n]*\|\s*\n(?:\|[^\n]*\n?)*", re.MULTILINE),
    re.compile(r"`[^`]*`"), re.compile(r"<details>.*?</details>", re.DOTALL),
    re.compile(r"<!--.*?-->", re.DOTALL), re.compile(r"<[^>]+>"),
    re.compile(r"(?<=\])\([^)]*\)"),                                 # a link's address
    re.compile(r"^\s{0,3}#.*$", re.MULTILINE), re.compile(r"^\s*\d+[.)]\s", re.MULTILINE),
    re.compile(r"https?://\S+"), REFERENCE,
    re.compile(r"\b\d+(?:\s?[x×]\s?\d+)+\b"),                        # a shape
    re.compile(r"\((?:\d+, )+\d+\)|\((?:\d+)\)"),                    # a shape, an equation
    re.compile(r"\b\d{4}[-.]\d+(?:[-.]\d+)?\b|\b\d+\.\d+\.\d+\b"),   # a date, a version, arXiv
    re.compile(r"\b(?:19|20)\d\d\b(?![.,]\d)(?!\s*(?:%|percent|dB|times|frames|steps))"),
    re.compile(r"\b\d+-?[dDM]\b(?!\w)|\b\d+-bit\b"),
    re.compile(r"\b[A-Za-z_]+[-.]?\d[\w.]*"),       # 3-D, H.264, x0
    re.compile(rf"\b(?:{NUMBERS})\s*(?:min\b|minutes?|hours?|h\b|GPU|days?)"),     # a run time
)
# a count of what the code sets, unless it is "7 of 8 clips"
THINGS = (
    r"steps?|pixels?|px|frames?|clips?|videos?|images?|pictures?|samples?|channels?|layers?|heads?|"
    r"blocks?|latents?|tokens?|levels?|scenes?|seeds?|epochs?|windows?|cells?|chapters?|points?|"
    r"numbers?|values?|positions?|classes|draws?|batch(?:es)?|groups?|files?|evaluations?|cores?|"
    r"rows?|columns?|cars?|people|persons?|actions?|runs?|iterations?|networks?|models?|lines?|"
    r"bits?|(?:key )?frames? (?:a|per) second|fps|a second|per second|modes?|bins?|rollouts?|"
    r"weights|arms?|exercises?|copies|patches|tiles?|noise levels?|m\b|km\b")
COUNTED = re.compile(rf"(?:-|\s)(?:[a-z][\w-]*\s){{0,2}}?(?:{THINGS})\b", re.IGNORECASE)
UNIT = re.compile(r"\s?(%|percent|dB|times|-?fold|ms|KB|MB|GB|points? of|standard dev|per ?cent|of "
                  r"(?:the |all )?\d)", re.IGNORECASE)
SMALL = 12                 # a bare whole number up to here counts things
ELSEWHERE = re.compile(r"\b(?:[Tt]he paper(?!.s? (?:loop|eq))|[Pp]aper's|authors|arXiv|Stable "
                       r"Diffusion|published)\b")
OF_THE_PAPER = re.compile(r"^#+ (?:What differs|Glossary|Symbols|Words).*?(?=^#|\Z)",
                          re.MULTILINE | re.DOTALL)
STORED = re.compile(r"\b(?:README|RESULTS|[Bb]enchmarks?|measured (?:over|on) )")
ABOUT = re.compile(r"\b(?:about|around|roughly|nearly|almost|some|approximately|close to|near|"
                   r"up to)\s+[-−]?$|[~≈]\s?$", re.IGNORECASE)
BOUND = re.compile(r"\b(?:over|under|more than|less than|at most|at least|below|above|within|"
                   r"fewer than)\s+[-−]?$", re.IGNORECASE)
CHANGE = re.compile(
    r"\b(?:less(?! than \d)|lower|fewer|smaller|more(?! than \d)|higher|larger|greater|better|"
    r"worse|gain|loses?|lost|removes?|reduc\w+|sav\w+|drop\w*|fall\w*|rise\w*|ris\w+|grow\w*|"
    r"shorter|longer|faster|slower|nearer|quieter|"
    r"drift\w*|change\w*|decreas\w+|increas\w+|shrink\w*|"
    r"off|from)\b", re.IGNORECASE)
SCALES = {"million": 1e6, "M": 1e6, "thousand": 1e3, "k": 1e3, "K": 1e3, "billion": 1e9}
SCALE = re.compile(r"\s?(million|thousand|billion|M\b|k\b|K\b)")
IN_WORDS = re.compile(
    r"\b(?:(?:a|one|two|three) (?:half|halves|thirds?|quarters?|fifths?|sixths?|tenths?)|half "
    r"(?:of|the|as)|twice|double[sd]?|halve[sd]?|(?:two|three|four|five|six|eight|ten) times|"
    r"hundred times)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """A number in prose: cell from 0, its sentence, as written, where it is found ("" nowhere)."""
    cell: int
    sentence: str
    written: str
    found: str = ""

    def __str__(self) -> str:
        return f"cell {self.cell}: {self.written}: {self.sentence}"


# -- prose
# --------------------------------------------------------------------------------------

def sentences(markdown: str) -> Iterator[tuple[str, str]]:
    """(sentence as it is, sentence with blanks for what is no number of an output)."""
    bare = markdown
    for pattern in LEFT_OUT:
        bare = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), bare)
    ends = [match.end() for match in re.finditer(
        r"(?<!\be\.g)(?<!\bi\.e)(?<!\beq)(?<!\bFig)(?<!\bvs)(?<!\bapprox)[.!?:;][)*\"]*"
        r"(?=\s+[^a-z])|\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.)\s)|\|", markdown)]
    for start, end in zip([0, *ends], [*ends, len(markdown)]):
        whole = " ".join(markdown[start:end].split())
        if whole:
            yield whole, bare[start:end]


def numbers_of(whole: str, bare: str) -> Iterator[re.Match]:
    """The numbers of one sentence that speak of an output."""
    if ELSEWHERE.search(whole):
        return
    for match in re.finditer(NUMBER, bare):
        before, after = bare[:match.start()], bare[match.end():]
        if re.search(r"[\w.]$", before) or re.match(r"\w", after) and not SCALE.match(after):
            continue                                               # within a word
        unit, integer = UNIT.match(after), match.group().isdigit() or "," in match.group()
        share = re.search(r"\d\s+of\s+(?:the |all )?$", before)
        if integer and not unit and not share and not SCALE.match(after):
            if int(match.group().replace(",", "")) <= SMALL or COUNTED.match(after):
                continue
        yield match


def prose(book: dict) -> Iterator[tuple[int, str]]:
    """(cell, text) of the markdown cells outside of exercises."""
    tasks = set()
    for *_, cells in exercises.sections(book):
        tagged = [k for k, cell in enumerate(cells)
                  if any(exercises.has(cell, tag) for tag in ("exercise", "check", "solution"))]
        tasks.update(id(cell) for cell in cells[:1 + max(tagged, default=0)])
    for k, cell in enumerate(book["cells"]):
        if cell["cell_type"] == "markdown" and id(cell) not in tasks:
            yield k, OF_THE_PAPER.sub("", cell["source"])


# -- evidence
# --------------------------------------------------------------------------------------

def values_in(text: str) -> set[float]:
    """All numbers of a text, as they are and scaled by "million", "k", ..."""
    found = set()
    pattern = rf"(?<![\w.])(?:{NUMBER})(?:[eE][-+]?\d+)?|(?<=[a-zA-Z_=x×])\d+(?:\.\d+)?"
    for match in re.finditer(pattern, text):
        value = float(match.group().replace(",", ""))
        found.add(value)
        scale = SCALE.match(text[match.end():])
        if scale:
            found.add(value * SCALES[scale.group(1)])
    return found


def output_text(output: dict) -> str:
    """What a reader can read of an output, and the descriptions of its pictures."""
    data = output.get("data", {})
    texts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")]
    markup = "".join(data.get("text/html", ""))
    alts = re.findall(r"\balt=(?:'([^']*)|\"([^\"]*))", markup)
    markup = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", markup, flags=re.DOTALL)
    return "\n".join(["".join(text) for text in texts] + [html.unescape(markup)]
                     + [html.unescape(a or b) for a, b in alts])


def folded(node: ast.AST) -> float | None:
    """The value of a constant, or of arithmetic with constants only."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return folded(node.operand)
    if isinstance(node, ast.BinOp):
        a, b = folded(node.left), folded(node.right)
        work = {ast.Add: lambda: a + b, ast.Sub: lambda: abs(a - b), ast.Mult: lambda: a * b,
                ast.Div: lambda: a / b}.get(type(node.op))
        if work and a is not None and b:
            return work()
    return None


def constants(tree: ast.AST) -> set[float]:
    """Numbers in a piece of code, those inside of strings too."""
    found = {folded(node) for node in ast.walk(tree)} - {None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= values_in(node.value)
    return found


def parsed(source: str) -> ast.AST:
    """A cell's code without magics; an empty module where it is no Python."""
    try:
        return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE))
    except SyntaxError:
        return ast.Module([], [])


def shown_code(book: dict) -> Iterator[dict]:
    """The code cells that are no exercises."""
    for cell in book["cells"]:
        if cell["cell_type"] == "code" and not any(
                exercises.has(cell, tag) for tag in ("exercise", "check", "solution")):
            yield cell


def evidence(book: dict) -> dict[str, set[float]]:
    """{"output", "assert", "constant"}: the numbers of the chapter's code cells."""
    found: dict[str, set[float]] = {"output": set(), "assert": set(), "constant": set()}
    for cell in shown_code(book):
        for output in cell.get("outputs", []):
            found["output"] |= values_in(output_text(output))
        tree = parsed(cell["source"])
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                found["assert"] |= constants(node)
        found["constant"] |= constants(tree)
    return found


def asserts(book: dict) -> int:
    """The asserts outside of exercises."""
    return sum(isinstance(node, ast.Assert) for cell in shown_code(book)
               for node in ast.walk(parsed(cell["source"])))


def stored_values() -> set[float]:
    """Every number in results/*.json, for sentences that cite them."""
    found: set[float] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict | list):
            for child in node.values() if isinstance(node, dict) else node:
                walk(child)
        elif isinstance(node, int | float) and not isinstance(node, bool):
            found.add(abs(float(node)))
    for file in RESULTS.glob("*.json"):
        if file.stem not in ("claims", "exercises", "browser"):
            walk(json.loads(file.read_text(encoding="utf-8")))
    return found


# -- both together
# --------------------------------------------------------------------------------------

def accepted(written: str, before: str, after: str, whole: str) -> list[tuple[float, float]]:
    """Intervals of values which, rounded as the number is written, are that number."""
    digits = written.replace(",", "")
    value, decimals = float(digits), len(digits.partition(".")[2])
    below = above = 0.5 * 10.0 ** -decimals
    zeros = len(digits) - len(digits.rstrip("0")) if not decimals else 0
    step = 10.0 ** (zeros or -decimals)
    if ABOUT.search(before):
        below = above = max(0.5 * step, 0.05 * value)
    elif BOUND.search(before):
        below, above = step, step
    scale = SCALE.match(after)
    if scale:
        factor = SCALES[scale.group(1)]
        value, below, above = value * factor, below * factor, above * factor
    ranges = [(value - below, value + above)]
    if re.match(r"\s?(?:%|per ?cent)", after):
        low, high = ranges[0]
        ranges.append((low / 100, high / 100))
        if CHANGE.search(whole):
            ranges += [(1 - high / 100, 1 - low / 100), (1 + low / 100, 1 + high / 100)]
    elif re.match(r"\s?(?:times|-?fold)", after) and value:
        ranges.append((1 / (value + above), 1 / max(value - below, 1e-9)))
    elif re.match(r"\s?(?:ms|s|seconds?|[KMG]B)\b", after):
        ranges += [(low * k, high * k) for low, high in ranges for k in (1000, 1 / 1000)]
    return ranges


def check(book: dict, cited: set[float]) -> list[Claim]:
    """All numbers of the chapter's prose, each with where it is found."""
    found, claims = evidence(book), []
    for cell, text in prose(book):
        for whole, bare in sentences(text):
            kinds = found | ({"stored": cited} if STORED.search(whole) else {})
            for match in numbers_of(whole, bare):
                ranges = accepted(match.group(), bare[:match.start()], bare[match.end():], whole)
                where = next((kind for kind, values in kinds.items() if any(
                    low - 1e-9 <= value <= high + 1e-9
                    for value in values for low, high in ranges)), "")
                claims.append(Claim(cell, whole, match.group(), where))
    return claims


def in_words(book: dict) -> list[Claim]:
    """Claims such as "a third of": they are not looked for, only listed."""
    return [Claim(cell, whole, match.group()) for cell, text in prose(book)
            for whole, bare in sentences(text) if not ELSEWHERE.search(whole)
            for match in IN_WORDS.finditer(bare)]


def statements(book: dict, claims: list[Claim]) -> int:
    """Sentences about outputs: those with numbers, and those from "What to notice" on."""
    found = {(claim.cell, claim.sentence) for claim in claims}
    for cell, text in prose(book):
        start = text.find("**What to notice")
        if start >= 0:
            found |= {(cell, whole) for whole, _ in sentences(text[start:])
                      if len(whole.split()) > 3}
    return len(found)


def figures(book: dict, claims: list[Claim]) -> dict:
    """The counts of one chapter."""
    where = Counter(claim.found for claim in claims)
    return {"statements": statements(book, claims), "numbers": len(claims),
            "supported": len(claims) - where[""], "unsupported": where[""],
            "only_as_constant": where["constant"], "in_words": len(in_words(book)),
            "asserts": asserts(book)}


def rerun(path: Path, size: str) -> tuple[dict | None, str]:
    """(the notebook after a run of a copy, "") or (None, the error of the cell that failed)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, folder))
        try:
            notebooks.execute(copy, size, cell_timeout=3600)
        except Exception as error:      # nbclient's error of a cell; the other chapters still run
            return None, str(error)[-600:]
        return exercises.read(copy), ""


def run(names: list[str] | None = None, size: str | None = None) -> dict:
    """{chapters: {name: counts}, totals}; with a size, chapters are run anew first."""
    cited, rows = stored_values(), {}
    for path in notebooks.find(names or []):
        book = exercises.read(path)
        claims = check(book, cited)
        rows[path.stem] = figures(book, claims)
        if size:
            new, error = rerun(path, size)
            now = check(new, cited) if new else claims
            lost = [before for before, after in zip(claims, now)
                    if before.found and not after.found]
            rows[path.stem] |= {"refuted": len(lost) + bool(error)}
            for text in [error] * bool(error) + [str(claim) for claim in lost]:
                print(f"{path.stem}: refuted: {text}", file=sys.stderr, flush=True)
    totals = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()), {})}
    return {"chapters": rows, "totals": totals}


def main(argv: list[str] | None = None) -> int:
    """The command line with options; it keeps no result. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks claims", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="how file names begin; none: all chapters")
    parser.add_argument("--list", action="store_true", help="print numbers that are found nowhere")
    parser.add_argument("--weak", action="store_true", help="print those found as constants only")
    parser.add_argument("--words", action="store_true", help="print claims in words")
    parser.add_argument("--run", action="store_true", help="run a copy of each chapter first")
    parser.add_argument("--size", default="s", help="of training cells, with --run (default: s)")
    args = parser.parse_args(argv)
    try:
        files = notebooks.find(args.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not (args.list or args.weak or args.words):
        print(json.dumps(run(args.names, args.size if args.run else None), indent=1))
        return 0
    cited = stored_values()
    for file in files:
        book = exercises.read(file)
        listed = in_words(book) if args.words else []
        listed += [claim for claim in check(book, cited)
                   if args.list and not claim.found or args.weak and claim.found == "constant"]
        for claim in sorted(listed, key=lambda claim: claim.cell):
            print(f"{file.stem}: {claim}")
    return 0
