"""Types of command-line arguments whose error messages name the value and say what is wanted."""
import argparse
import sys
from collections.abc import Callable


def mistake(error: object) -> int:
    """Print an error as one line on stderr. Returns exit code 2."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """argparse whose error messages look like all others: one line."""

    def error(self, message: str) -> None:
        sys.exit(mistake(f"{message}; see {self.prog} -h"))


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for argparse: a whole number from `least` to `most` (None: no upper end)."""
    wanted = f"of {least} or more" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        is_number = text.isascii() and text.isdecimal() and len(text) < 40
        if not is_number or int(text) < least or most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
        return int(text)
    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """A type for argparse: a number from `least` to `most`."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return value
    return parse


def label(text: str) -> tuple[str, str]:
    """A type for argparse: NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


positive = whole(1)
seed = whole(0, 2 ** 63 - 1)
