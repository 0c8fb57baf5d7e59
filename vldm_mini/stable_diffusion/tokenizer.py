"""CLIP's tokenizer from its list of merges, for the small Stable Diffusion that is trained here.

Radford et al. 2021. The list (bpe_simple_vocab_16e6.txt.gz, MIT) comes with the package
open_clip_torch; the tokenizer itself is transformers' CLIPTokenizer.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

MERGES = 49152 - 256 - 2        # of CLIP's vocabulary of 49,408 tokens; the file holds more


def byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, in the order of CLIP's vocabulary.

    Printable ones of Latin-1 stand for themselves and come first; the others are moved to code
    points from 256 on (GPT-2's byte-level BPE).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Tokens and their numbers: bytes, bytes that end a word, merged pairs, start, end."""
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def read_merges(file: str | Path, count: int = MERGES) -> list[tuple[str, str]]:
    """The first `count` merges of CLIP's list. Raises ValueError for another file."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        next(lines)                                                        # the version
        merges = [tuple(line.split()) for _, line in zip(range(count), lines)]
    if len(merges) < count or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{file} is no list of {count} merges of pairs")
    return merges


def clip_tokenizer(merges: list[tuple[str, str]], length: int = 77) -> Any:
    """transformers' CLIPTokenizer with these merges; texts are cut to `length` tokens."""
    from transformers import CLIPTokenizer
    return CLIPTokenizer(vocab=clip_vocabulary(merges), merges=merges, model_max_length=length)
