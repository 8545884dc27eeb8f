"""Synthetic clinical notes: patients of eight specialties, findings drawn from a diagnosis.

The way from findings to diagnosis is probabilistic: typical symptoms may be missing, measures
overlap, and every note has findings that mean nothing. No real person's data is in it.
"""

import random
from collections.abc import Iterator, Mapping

from fedtune.data.embedded.diagnoses import (
    DIAGNOSES,
    LABS,
    SPECIALTIES,
    SYMPTOMS,
    VITALS,
    Diagnosis,
    Measure,
)

# Every specialty comes once before any comes twice; silos then differ in size, up to fourfold.
_TURNS = (
    *SPECIALTIES,
    *("cardiology", "pulmonology", "gastroenterology", "neurology"),
    *("cardiology", "pulmonology", "infectious disease", "cardiology"),
)
_TYPICAL = (0.8, 0.6, 0.45, 0.35)  # chance of a diagnosis's first, second, ... symptom
_SAME_PROBLEM = 0.65  # chance that a later note is about the patient's first problem
_LAB_SHOWN = 0.8  # chance that a lab which the diagnosis shifts was ordered
_DURATIONS = ("two days", "four days", "a week", "two weeks", "a month", "several months")
_HISTORIES = (
    "No regular medicines.",
    "Takes a statin.",
    "Former smoker.",
    "Lives alone.",
    "No known allergies.",
    "Family history not contributory.",
    "Works in an office.",
    "Penicillin allergy.",
)


def generate_notes(patients: int, seed: int) -> Iterator[dict[str, str]]:
    """One to five notes for each of `patients` patients; the same seed gives the same notes.

    Rows have `record_id`, `patient_id`, `specialty`, `prompt` (the note and "Assessment:"),
    `completion` (diagnosis and plan), `text` (the note alone), `note` (the same) and `label`.
    A patient belongs to one specialty. The first n patients don't depend on how many follow.
    """
    for number in range(patients):
        yield from _patient_notes(number, random.Random(f"fedtune notes {seed} {number}"))


def specialty_diagnoses(specialty: str) -> list[Diagnosis]:
    """What patients of a specialty come with."""
    return [d for d in DIAGNOSES if specialty in d.specialties]


def _patient_notes(number: int, rng: random.Random) -> Iterator[dict[str, str]]:
    specialty = _TURNS[number % len(_TURNS)]
    possible = specialty_diagnoses(specialty)
    problem = rng.choice(possible)
    age = max(18, min(95, round(rng.gauss(problem.age, 9))))
    person = f"{age}-year-old {rng.choice(('man', 'woman'))}"
    for visit in range(rng.randint(1, 5)):
        again = visit == 0 or rng.random() < _SAME_PROBLEM
        diagnosis = problem if again else rng.choice(possible)
        note = _note(person, diagnosis, rng)
        patient = f"p{number:05d}"
        yield {
            "record_id": f"{patient}-{visit + 1}",
            "patient_id": patient,
            "specialty": specialty,
            "prompt": f"{note}\nAssessment:",
            "completion": f" {diagnosis.name}. Plan: {rng.choice(diagnosis.plans)}.",
            "text": note,
            "note": note,
            "label": diagnosis.name,
        }


def _note(person: str, diagnosis: Diagnosis, rng: random.Random) -> str:
    present = _present(diagnosis, rng)
    absent = rng.sample([s for s in SYMPTOMS if s not in present], rng.randint(0, 2))
    opening = rng.choice(("{} with {} for {}.", "{} seen for {}, over {}.", "{}: {} for {}."))
    parts = [opening.format(person, _listed(present), rng.choice(_DURATIONS))]
    if absent:
        parts.append(f"Denies {' or '.join(absent)}.")
    if rng.random() < 0.5:
        parts.append(rng.choice(_HISTORIES))
    parts.append(f"Vitals: {_vitals(diagnosis.shifted, rng)}.")
    labs = _labs(diagnosis.shifted, rng)
    return " ".join([*parts, f"Labs: {labs}." if labs else "No labs."])


def _present(diagnosis: Diagnosis, rng: random.Random) -> list[str]:
    """One symptom or more of the diagnosis, and sometimes one that means nothing."""
    own = [s for s, p in zip(diagnosis.symptoms, _TYPICAL, strict=True) if rng.random() < p]
    chosen = own or [rng.choice(diagnosis.symptoms)]
    if rng.random() < 0.4:
        chosen.append(rng.choice([s for s in SYMPTOMS if s not in chosen]))
    rng.shuffle(chosen)
    return chosen


def _vitals(shifted: Mapping[str, float], rng: random.Random) -> str:
    shown = ["BP", "HR", *(v for v in ("temp", "RR", "SpO2") if v in shifted or rng.random() < 0.3)]
    return ", ".join(measured(name, VITALS[name], rng, shifted.get(name)) for name in shown)


def _labs(shifted: Mapping[str, float], rng: random.Random) -> str:
    ordered = [lab for lab in LABS if lab in shifted and rng.random() < _LAB_SHOWN]
    others = rng.sample([lab for lab in LABS if lab not in shifted], rng.randint(0, 2))
    shown = rng.sample(ordered + others, len(ordered + others))
    return ", ".join(measured(name, LABS[name], rng, shifted.get(name)) for name in shown)


def measured(name: str, measure: Measure, rng: random.Random, shifted: float | None = None) -> str:
    """A measured value as a chart shows it, marked when out of range: `CRP 88 high`.

    Around the usual mean, or around `shifted` with a spread that also covers milder cases.
    """
    if shifted is None:
        value = rng.gauss(measure.mean, measure.spread)
    else:
        value = shifted + rng.gauss(0.0, 0.25) * (shifted - measure.mean)
    shown = f"{max(value, 0.0):.{measure.decimals}f}"
    mark = " high" if float(shown) > measure.high else " low" if float(shown) < measure.low else ""
    return f"{name} {shown}{mark}"


def _listed(phrases: list[str]) -> str:
    return ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
