"""Demo notes: the same for a seed, by patient and specialty, learnable but not given away."""

import os
import subprocess
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from fedtune.data.embedded.clinical import generate_notes, specialty_diagnoses
from fedtune.data.embedded.corpus import clinical_documents, docstrings
from fedtune.data.embedded.diagnoses import DIAGNOSES, SPECIALTIES, SYMPTOMS

ROOT = Path(__file__).parents[2]
NOTES = list(generate_notes(320, seed=0))
DIGEST = (
    "import hashlib, json; from fedtune.data.embedded.clinical import generate_notes; "
    "print(hashlib.sha256(json.dumps(list(generate_notes(30, 5))).encode()).hexdigest())"
)


def values_by(key: str, value: str) -> dict[str, set[str]]:
    found = defaultdict(set)
    for note in NOTES:
        found[note[key]].add(note[value])
    return found


def test_the_same_seed_gives_the_same_notes_in_any_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_another_seed_gives_other_notes() -> None:
    assert list(generate_notes(5, seed=1)) != list(generate_notes(5, seed=2))


def test_more_patients_leave_the_first_ones_as_they_were() -> None:
    few = list(generate_notes(10, seed=3))
    assert list(islice(generate_notes(50, seed=3), len(few))) == few


def test_patients_have_one_to_five_notes_and_most_have_several() -> None:
    counts = [len(notes) for notes in values_by("patient_id", "record_id").values()]
    assert len(counts) == 320
    assert set(counts) == {1, 2, 3, 4, 5}
    assert sum(count > 1 for count in counts) > 320 / 2


def test_record_ids_are_unique_and_no_patient_is_in_two_specialties() -> None:
    assert len({note["record_id"] for note in NOTES}) == len(NOTES)
    assert all(len(s) == 1 for s in values_by("patient_id", "specialty").values())


def test_even_eight_patients_give_every_specialty() -> None:
    assert {note["specialty"] for note in generate_notes(8, seed=9)} == set(SPECIALTIES)


def test_rows_are_short_and_their_parts_agree() -> None:
    for note in NOTES:
        assert note["prompt"] == note["text"] + "\nAssessment:"
        assert note["completion"].startswith(f" {note['label']}. Plan: ")
        assert len((note["prompt"] + note["completion"]).split()) < 90


def test_the_note_does_not_name_its_diagnosis_or_specialty() -> None:
    for note in NOTES:
        text = note["text"].lower()
        assert note["label"].lower() not in text
        assert note["specialty"] not in text


@pytest.mark.parametrize("specialty", SPECIALTIES)
def test_a_specialty_has_about_five_diagnoses_and_some_are_shared(specialty: str) -> None:
    assert 5 <= len(specialty_diagnoses(specialty)) <= 6
    seen = values_by("specialty", "label")[specialty]
    assert seen == {d.name for d in specialty_diagnoses(specialty)}
    assert any(len(d.specialties) > 1 for d in specialty_diagnoses(specialty))


def test_every_diagnosis_has_four_findings_and_known_specialties() -> None:
    for diagnosis in DIAGNOSES:
        assert len(diagnosis.symptoms) == 4
        assert set(diagnosis.specialties) <= set(SPECIALTIES)


def test_diagnoses_can_be_learned_from_notes_but_not_perfectly() -> None:
    """Logistic regression on words and pairs of words, judged on patients it never saw."""
    texts, labels = (np.array([note[key] for note in NOTES]) for key in ("text", "label"))
    patients = np.array([int(note["patient_id"][1:]) for note in NOTES])
    test = patients % 5 == 0
    words = CountVectorizer(ngram_range=(1, 2))
    judge = LogisticRegression(max_iter=1000).fit(words.fit_transform(texts[~test]), labels[~test])
    accuracy = judge.score(words.transform(texts[test]), labels[test])
    assert 0.75 < accuracy < 0.99


def test_pretraining_text_never_joins_a_finding_to_a_diagnosis() -> None:
    documents = [text.lower() for text in clinical_documents(3000, seed=0)]
    with_finding = [t for t in documents if any(s in t for s in SYMPTOMS)]
    with_diagnosis = [t for t in documents if any(d.name.lower() in t for d in DIAGNOSES)]
    assert len(with_finding) > 1000
    assert len(with_diagnosis) > 500
    assert not {*with_finding} & {*with_diagnosis}


def test_pretraining_text_is_the_same_for_a_seed_and_within_its_limit() -> None:
    assert list(clinical_documents(20, seed=4)) == list(clinical_documents(20, seed=4))
    chosen = docstrings(50_000, seed=4)
    assert chosen == docstrings(50_000, seed=4)
    assert 40_000 < sum(map(len, chosen)) <= 50_000
