"""The characters that the readers know, numbered as VietOCR's published weights have them.

    0 padding, 1 start, 2 end, 3 masked, then 229 characters: letters with all their marks, digits, punctuation

A text is in NFC, where each letter is one character with its marks.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable

PADDING, START, END, MASKED = range(4)
SPECIAL = 4
TONES = ("", "\u0300", "\u0309", "\u0303", "\u0301", "\u0323")  # none, grave, hook, tilde, acute, dot below
LETTERS = "".join(
    unicodedata.normalize("NFC", case + tone)
    for letter in "aăâbcdđeêfghijklmnoôơpqrstuưvwxyz"
    for tone in (TONES if letter in "aăâeêioôơuưy" else ("",))
    for case in (letter, letter.upper())
)
CHARACTERS = LETTERS + string.digits + string.punctuation + " "
SIZE = SPECIAL + len(CHARACTERS)
NUMBERS = {character: SPECIAL + i for i, character in enumerate(CHARACTERS)}


def encode(text: str) -> list[int]:
    """The numbers of a text's characters. ValueError names those that the readers don't know."""
    text = unicodedata.normalize("NFC", text)
    if unknown := unknown_in(text):
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown)
        raise ValueError(f"{text!r} has characters that the vocabulary lacks: {shown}")
    return [NUMBERS[character] for character in text]


def unknown_in(text: str) -> list[str]:
    """The characters of a text in NFC that the vocabulary lacks, each once."""
    return sorted(set(unicodedata.normalize("NFC", text)) - NUMBERS.keys())


def decode(numbers: Iterable[int]) -> str:
    """The text that the numbers stand for, up to the first end; paddings, starts and masks are left out."""
    text = []
    for number in numbers:
        if number == END:
            break
        if number >= SPECIAL:
            text.append(CHARACTERS[number - SPECIAL])
    return "".join(text)
