"""Names and cases as words within paths, however they are joined there."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


def is_telling(word: str) -> bool:
    """Whether a word is unlikely to stand for something else.

    >>> [is_telling(word) for word in ("testA_1", "2001837", "001", "image", "TCGA-A2-A0T2")]
    [True, True, False, False, True]
    """
    return len(word) >= 6 and any(letter.isdigit() for letter in word)


def own_word(case: str) -> str:
    """The case without its data set's name."""
    return case.partition(":")[2] or case


def pattern(words: str) -> re.Pattern[str]:
    """Finds the words in small letters, with whatever signs between them, but not within a longer number or word.

    >>> [bool(pattern("glas:9").search(text)) for text in ("glas-9", "glas_9/a.png", "glas:91", "bioglas:9")]
    [True, True, False, False]
    >>> [bool(pattern("2001837").search(text)) for text in ("gt2001837-1-400.jpg", "12001837.jpg")]
    [True, False]
    """
    first, *rest = (re.escape(part) for part in re.findall(r"[^\W_]+", words.lower()) or [words])
    letter, digit = r"[^\W\d_]", "[0-9]"
    before, after = (digit if end.isdigit() else letter for end in (first[0], (rest or [first])[-1][-1]))
    # The literal comes first, and only then what may not stand before it: re then searches ten times faster.
    return re.compile(r"[\W_]+".join([f"{first}(?<!{before}{first})", *rest]) + f"(?!{after})")


def seek(patterns: dict[str, re.Pattern[str]], texts: Sequence[str]) -> dict[str, int]:
    """For each pattern that is found in some of the texts the number of the first."""
    lines = [text.lower() for text in texts]
    whole = "\n".join(lines)
    ends = np.cumsum([len(line) + 1 for line in lines]).tolist()
    hits = {name: pattern.search(whole) for name, pattern in patterns.items()}
    return {name: bisect_right(ends, hit.start()) for name, hit in hits.items() if hit}
