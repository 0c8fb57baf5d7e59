"""What `lab.check` returns: a table with a row for each check."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

OK, FAIL, NOTE = "ok", "FAIL", "note"
WIDTH = 98


@dataclass(frozen=True)
class Finding:
    """One row: `result` is "ok", "FAIL" or "note"; what the check means, what was seen, what to do
    about it."""

    check: str
    result: str
    means: str
    seen: str = ""
    todo: str = ""

    def __str__(self) -> str:
        rows = [f"{self.check:<24}{self.result:<6}{self.means}"]
        for word, text in (("seen: ", self.seen), ("do:   ", self.todo)):
            rows += textwrap.wrap(text, WIDTH, initial_indent=" " * 30 + word,
                                  subsequent_indent=" " * 36)
        return "\n".join(rows)


@dataclass(frozen=True)
class Report:
    """What `check` returns; print it. `ok`: nothing failed. `failed`, `notes`: names of checks.
    `report[name]`: the Finding of a check."""

    layer: str
    findings: tuple[Finding, ...]
    parameters: int
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        return [finding.check for finding in self.findings if finding.result == FAIL]

    @property
    def notes(self) -> list[str]:
        return [finding.check for finding in self.findings if finding.result == NOTE]

    def __getitem__(self, check: str) -> Finding:
        return {finding.check: finding for finding in self.findings}[check]

    def __str__(self) -> str:
        end = "a temporal layer like any other"
        if not self.ok:
            end = f"{len(self.failed)} failed: {', '.join(self.failed)}"
        head = f"{self.layer}: {self.parameters:,} parameters, checked in {self.seconds:.1f} s"
        rule = "-" * WIDTH
        return "\n".join([head, rule, *map(str, self.findings), rule, f"{self.layer}: {end}"])

    __repr__ = __str__
