"""Checks: what a rewrite must pass to replace the original."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sdft.checks.base import Check


class Leak(Check):
    name: Literal["leak"] = "leak"


class Number(Check):
    name: Literal["number"] = "number"


AnyCheck = Annotated[Leak | Number, Field(discriminator="name")]
