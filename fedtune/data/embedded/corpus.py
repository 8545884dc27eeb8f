"""General text to pretrain the embedded model on: chart-like prose, and Python's docstrings.

Symptoms, measures, diagnoses and plans appear, so that their words are known, but findings are
drawn apart from diagnoses and never share a document with one: what a finding means is left to
fine-tuning.
"""

import ast
import random
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedtune.data.embedded.clinical import measured
from fedtune.data.embedded.diagnoses import (
    DIAGNOSES,
    LABS,
    SPECIALTIES,
    SYMPTOMS,
    VITALS,
    Measure,
)

_NAMES = tuple(d.name for d in DIAGNOSES)
_PLANS = tuple(plan for d in DIAGNOSES for plan in d.plans)
_PEOPLE = ("man", "woman", "teacher", "farmer", "driver", "nurse", "clerk", "student")
_SPANS = ("two days", "a week", "two weeks", "a month", "several months", "a year")
_WISHES = ("advice", "a second opinion", "a routine check", "travel vaccines", "a repeat letter")
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}


def clinical_documents(count: int, seed: int) -> Iterator[str]:
    """`count` short documents of chart-like prose; the same seed gives the same ones."""
    rng = random.Random(f"fedtune corpus {seed}")
    for _ in range(count):
        write = rng.choices((_chart, _ward_round, _letter), (6, 3, 1))[0]
        yield write(rng)


def docstrings(limit_characters: int, seed: int) -> list[str]:
    """ASCII docstrings of this Python's standard library, shuffled, up to a total length.

    Sources are parsed, not imported. Another Python version has other text.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = (p for p in sorted(root.rglob("*.py")) if not _SKIPPED & {*p.relative_to(root).parts})
    found = sorted({text for path in sources for text in _docstrings_of(path)})
    random.Random(f"fedtune docstrings {seed}").shuffle(found)
    chosen, total = [], 0
    for text in found:
        total += len(text)
        if total > limit_characters:
            break
        chosen.append(text)
    return chosen


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):  # the library keeps some broken files
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) > 40 and text.isascii():
                yield text[:1500]


def _chart(rng: random.Random) -> str:
    """Findings at random; no diagnosis."""
    opening = rng.choice(
        (
            "{age}-year-old {person} with {symptoms} for {span}.",
            "{age}-year-old {person} seen for {symptoms}, over {span}.",
            "{age}-year-old {person}: {symptoms} for {span}.",
            "A {person} aged {age} came for {wish} and mentions {symptoms}.",
        )
    )
    filled = opening.format(
        age=rng.randint(18, 90),
        person=rng.choice(_PEOPLE),
        symptoms=_some(SYMPTOMS, rng, 4),
        span=rng.choice(_SPANS),
        wish=rng.choice(_WISHES),
    )
    denied = (
        f" Denies {rng.choice(SYMPTOMS)} or {rng.choice(SYMPTOMS)}." if rng.random() < 0.4 else ""
    )
    vitals = f" Vitals: {_values(VITALS, rng, 4)}."
    labs = f" Labs: {_values(LABS, rng, 4)}." if rng.random() < 0.7 else " No labs."
    return filled + denied + vitals + labs


def _ward_round(rng: random.Random) -> str:
    """Diagnoses and plans at random, each in its own sentence; no finding."""
    sentences = [
        f"On the {rng.choice(SPECIALTIES)} list today: {_some(_NAMES, rng, 4)}.",
        f"Assessment: {rng.choice(_NAMES)}.",
        f"Plan: {rng.choice(_PLANS)}.",
        f"The team of {rng.choice(SPECIALTIES)} will {rng.choice(_PLANS)}.",
        f"{rng.choice(_NAMES)}. Plan: {rng.choice(_PLANS)}.",
    ]
    return " ".join(rng.sample(sentences, rng.randint(2, 4)))


def _letter(rng: random.Random) -> str:
    return (
        f"Dear colleague, thank you for seeing this {rng.choice(_PEOPLE)} aged "
        f"{rng.randint(18, 90)} in {rng.choice(SPECIALTIES)} for {rng.choice(_WISHES)}. "
        f"The next visit is in {rng.choice(_SPANS)}. With kind regards."
    )


def _some(phrases: Sequence[str], rng: random.Random, most: int) -> str:
    chosen = rng.sample(phrases, rng.randint(1, most))
    return ", ".join(chosen[:-1]) + " and " + chosen[-1] if len(chosen) > 1 else chosen[0]


def _values(measures: Mapping[str, Measure], rng: random.Random, most: int) -> str:
    """Some measures, each usual, or low or high whatever the others are."""
    shown = []
    for name in rng.sample(sorted(measures), rng.randint(1, most)):
        measure = measures[name]
        odd = rng.choice((None, None, measure.low * 0.8, measure.high * rng.uniform(1.1, 2)))
        shown.append(measured(name, measure, rng, odd))
    return ", ".join(shown)
