"""Write RESULTS.md and the README's table of results from the stored results.

    python -m tests.benchmarks results              # writes both
    python -m tests.benchmarks results --check      # says what differs, writes nothing

`_rows` says which stored figure is which row. A test holds both files equal to the stored results.
"""
import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks import stale
from tests.benchmarks._rows import GROUPS, Arm, Group, Row

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).resolve().parent / "results"
PAGE, README = ROOT / "RESULTS.md", ROOT / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# where a result comes from; all other single numbers are figures
ORIGIN = ("name", "minutes", "date", "commit", "dirty", "hardware", "device", "threads", "torch",
          "python", "weights")

INTRODUCTION = """\
# Results

Every stored figure of `python -m tests.benchmarks NAME`, written by `python -m tests.benchmarks
results` from `tests/benchmarks/results/`. Do not edit this page. Each benchmark's module says
exactly what is measured. A figure stands beside its baselines; a measure that a baseline passes
says little. "Better" names the good direction.
"""


def stored() -> dict[str, dict]:
    """{benchmark: its result} of all stored results."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted(STORED.glob("*.json"))}


def value(result: dict, arm: Arm) -> float:
    """The number that an arm's path leads to. Raises KeyError naming the path if there is none."""
    found = result
    for key in arm.path.split("/"):
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError) as error:
            raise KeyError(f"{result['name']} holds nothing at {arm.path}") from error
    return arm.scale * found


def shown(number: float, digits: int) -> str:
    """A number as it stands in a table, with a minus sign only if something is left of it."""
    text = f"{number:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def lines_of(row: Row, result: dict) -> list[str]:
    """Table lines of one measurement: one arm a line, one number a cell."""
    lines = []
    for k, arm in enumerate(row.arms):
        number = shown(value(result, arm), row.digits)
        head = row.what if k == 0 else ""
        lines.append(f"| {head} | {arm.name} | {number} | {row.unit} | {row.better} |")
    return lines


def other_rows(result: dict) -> tuple[Row, ...]:
    """Rows of a result that `_rows` does not know: its single numbers, by their names."""
    found = []
    for key, number in result.items():
        if key not in ORIGIN and isinstance(number, (int, float)):
            unit = "dB" if key.endswith("_db") else "MB" if key.endswith("_mb") else ""
            found.append(Row(key.replace("_", " "), unit, "", (Arm("measured", key),), 3))
    return tuple(found)


def origin(name: str, result: dict, out_of_date: dict[str, str]) -> str:
    """One line: benchmark, commit, date, hardware, minutes, and whether its weights still ship."""
    line = (f"- `{name}`: commit {result['commit'][:7]}, {result['date']}, {result['hardware']}, "
            f"{result['threads']} thread{'s' * (result['threads'] > 1)}, {result['minutes']:g} min")
    why = out_of_date.get(f"results/{name}")
    return f"{line}; **out of date**: {why}" if why else line


def section(group: Group, results: dict[str, dict], out_of_date: dict[str, str]) -> list[str]:
    """Heading, table and origins of one group; nothing if none of its results is stored."""
    rows = {name: rows for name, rows in group.rows.items() if name in results}
    if not rows:
        return []
    lines = [f"## {group.title}", "", "| what | of | value | unit | better |",
             "|---|---|---:|---|---|"]
    for name, some in rows.items():
        for row in some:
            lines += lines_of(row, results[name])
    return [*lines, "", *(origin(name, results[name], out_of_date) for name in rows), ""]


def page() -> str:
    """RESULTS.md."""
    results = stored()
    out_of_date = {one.name: one.why for one in stale.stale()}
    known = {name for group in GROUPS for name in group.rows}
    others = Group("Others", {name: other_rows(result) for name, result in results.items()
                              if name not in known})
    lines = INTRODUCTION.splitlines() + [""]
    for group in (*GROUPS, others):
        lines += section(group, results, out_of_date)
    return "\n".join(lines).rstrip("\n") + "\n"


def readme_table() -> str:
    """The README's table: chosen rows, ours beside the first baseline."""
    results = stored()
    lines = ["| what | ours | unit | better | baseline | its value | benchmark |",
             "|---|---:|---|---|---|---:|---|"]
    for group in GROUPS:
        for name, rows in group.rows.items():
            for row in rows:
                if row.readme and name in results:
                    lines.append(readme_line(name, row, results[name]))
    return "\n".join(lines)


def readme_line(name: str, row: Row, result: dict) -> str:
    """One line of the README's table."""
    ours, *others = row.arms
    number = shown(value(result, ours), row.digits)
    baseline = others[0].name if others else ""
    its_value = shown(value(result, others[0]), row.digits) if others else ""
    return (f"| {row.what} | {number} | {row.unit} | {row.better} | {baseline} | {its_value} | "
            f"`{name}` |")


def readme() -> str:
    """The README with today's table between the two markers. Raises ValueError without markers."""
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{rest.split(END, 1)[1]}"


def write(check: bool = False) -> list[Path]:
    """Bring both files up to date, or with check only compare them; returns those that differed."""
    from vldm_mini.weights import write_text
    wanted = {PAGE: page(), README: readme()}
    different = [file for file, text in wanted.items()
                 if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in different:
        if not check:
            write_text(file, wanted[file])
    return different


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 1 if --check finds a difference."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks results",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    args = parser.parse_args(argv)
    try:
        different = write(args.check)
    except (KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in different:
        print(f"{file.name} {'differs' if args.check else 'written'}")
    return int(args.check and bool(different))
