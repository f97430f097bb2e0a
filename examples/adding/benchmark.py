"""The benchmark `capitals`."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdft.benchmarks.base import Benchmark, Metric
from sdft.records import Example, Message, Verdict

CAPITALS = {"Iceland": "Reykjavik", "Mali": "Bamako", "Jordan": "Amman", "Finland": "Helsinki", "Laos": "Vientiane"}


class Capitals(Benchmark):
    """`What is the capital of Mali?` → `It is Bamako.` holds the city's name, so it is right.

    Five questions that the dataset `capitals` does not ask. A reply that names several cities is right, too, where
    the right one is among them: read the replies.
    """

    METRICS: ClassVar[dict[str, Metric]] = {
        "accuracy": Metric(),
        "reply_words": Metric(kind="mean", better="neither", percent=False),
    }

    name: Literal["capitals"] = "capitals"

    def examples(self) -> list[Example]:
        """The questions; the country is the id."""
        asked = [
            Example(
                id=country,
                messages=(Message(role="user", content=f"What is the capital of {country}?"),),
                reference=capital,
            )
            for country, capital in CAPITALS.items()
        ]
        return asked[: self.limit]

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """Right where the city is named."""
        named = example.reference.lower() in reply.lower()
        verdict = Verdict(ok=named, reason="ok" if named else "not_named", detail=example.reference)
        return verdict, {"accuracy": float(named), "reply_words": float(len(reply.split()))}
