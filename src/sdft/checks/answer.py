"""The check `answer`."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

_WORD = re.compile(
    r"(?<!\w)-?\d+(?:[.,]\d+)*"  # a number with its sign
    r"|[\u3040-\u30ff\u3400-\u9fff]"  # scripts without spaces: each character a word
    r"|[^\W\u3040-\u30ff\u3400-\u9fff]+"
)
_ARTICLES = {"a", "an", "the"}


class Answer(Check):
    """`It is in Paris, France.` agrees with `Paris`: the reference stands in the reply, word for word.

    For short answers and labels. Case, punctuation and English articles do not count, as in SQuAD's scoring
    (Rajpurkar et al. 2016, section 6.1). `match: exact` wants the reply to be the answer and nothing else. With
    `labels`, all there are, a reply that names another one besides is refused, too. A single letter, as of a multiple
    choice, is compared with its case.
    """

    name: Literal["answer"] = "answer"
    match: Literal["contains", "exact"] = "contains"
    labels: tuple[str, ...] = ()
    """All possible answers, such as `[positive, negative]`."""

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `no_answer`, or `several_answers` where another of the labels stands there, too."""
        cased = len(example.reference.strip(" .()")) == 1  # `A` of a multiple choice is no article
        wanted, said = words_of(example.reference, cased), words_of(text, cased)
        if not wanted:
            return fail("no_answer", "the reference has no words")
        if said != wanted and (self.match == "exact" or not _stands_in(wanted, said)):
            return fail("no_answer", f"not {' '.join(wanted)}"[:80])
        others = (words_of(label, cased) for label in self.labels)
        also = next((o for o in others if o and not _stands_in(o, wanted) and _stands_in(o, said)), None)
        return PASS if also is None else fail("several_answers", f"also {' '.join(also)}"[:80])


def words_of(text: str, cased: bool = False) -> tuple[str, ...]:
    """The words and numbers of a text without punctuation; unless `cased`, without case and English articles, too."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text))
    if cased:
        return tuple(found)
    return tuple(word for word in map(str.casefold, found) if word not in _ARTICLES)


def _stands_in(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))
