"""What synthetic texts are good for: a classifier learned from them, against one learned from real.

The classifier is plain on purpose: TF-IDF of words and pairs of words, then logistic regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from fedtune.errors import InputError

_RESAMPLES = 1000
_RANGE = (2.5, 97.5)


@dataclass(frozen=True)
class Labelled:
    """Texts, their labels, and for real rows the privacy unit of each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    units: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Score:
    """A figure on held-out rows, and the range of 95 % of bootstrap resamples of their units."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Usefulness:
    """Accuracy and macro F1 of both classifiers on the same held-out real rows.

    `lost` is real minus synthetic, resampled in pairs. `most_common` is the accuracy of always
    saying the real training rows' most common label. `unwritten` are labels of held-out rows that
    no synthetic text has.
    """

    synthetic_rows: int
    real_rows: int
    test_rows: int
    test_units: int
    synthetic: dict[str, Score]
    real: dict[str, Score]
    lost: dict[str, Score]
    most_common: float
    unwritten: list[str]


def usefulness(synthetic: Labelled, real: Labelled, test: Labelled, seed: int = 0) -> Usefulness:
    """Learn from each, score both on `test`. Raises InputError on texts with a single label."""
    guesses = [
        _learned(synthetic, "synthetic texts").predict(test.texts),
        _learned(real, "real training rows").predict(test.texts),
    ]
    # labels as whole numbers: strings are slow to compare
    whole = np.unique(np.concatenate([test.labels, *guesses]), return_inverse=True)[1]
    truth, ours, theirs = np.split(whole, 3)
    names, sizes = np.unique(real.labels, return_counts=True)
    units, owner = np.unique(test.units, return_inverse=True)
    draws = _resamples(owner, len(units), seed)
    return Usefulness(
        synthetic_rows=len(synthetic),
        real_rows=len(real),
        test_rows=len(test),
        test_units=len(units),
        **_scores(truth, ours, theirs, draws),
        most_common=float(np.mean(np.array(test.labels) == names[sizes.argmax()])),
        unwritten=sorted({*test.labels} - {*synthetic.labels}),
    )


def _learned(rows: Labelled, what: str) -> Pipeline:
    if len(set(rows.labels)) < 2:
        raise InputError(
            f"all {what} have the label `{rows.labels[0]}`",
            expected="at least two labels to tell apart",
        )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    try:
        return model.fit(rows.texts, rows.labels)
    except ValueError as error:  # texts of single letters and signs leave no word
        raise InputError(f"the {what} hold no word ({error})") from None


def _resamples(owner: np.ndarray, units: int, seed: int) -> list[np.ndarray]:
    """Row numbers of resamples in which whole units are drawn again: rows of one are alike."""
    rng = np.random.default_rng(seed)
    order = np.argsort(owner, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(owner, minlength=units))[:-1])
    drawn = rng.integers(0, units, size=(_RESAMPLES, units))
    return [np.concatenate([rows_of[unit] for unit in row]) for row in drawn]


def _scores(
    truth: np.ndarray, synthetic: np.ndarray, real: np.ndarray, draws: Sequence[np.ndarray]
) -> dict[str, dict[str, Score]]:
    found: dict[str, dict[str, Score]] = {"synthetic": {}, "real": {}, "lost": {}}
    for name, metric in {"accuracy": _accuracy, "macro_f1": macro_f1}.items():
        ours, theirs = metric(truth, synthetic), metric(truth, real)
        each = np.array(
            [(metric(truth[d], synthetic[d]), metric(truth[d], real[d])) for d in draws]
        )
        found["synthetic"][name] = _score(ours, each[:, 0])
        found["real"][name] = _score(theirs, each[:, 1])
        found["lost"][name] = _score(theirs - ours, each[:, 1] - each[:, 0])
    return found


def _accuracy(truth: np.ndarray, guesses: np.ndarray) -> float:
    return float(np.mean(truth == guesses))


def macro_f1(truth: np.ndarray, guesses: np.ndarray) -> float:
    """Mean F1 over the labels that are there to be found; labels are whole numbers from 0."""
    # counted here: `sklearn.metrics.f1_score` takes 3 ms, and a bootstrap asks 2,000 times
    size = int(max(truth.max(), guesses.max())) + 1
    right = np.bincount(truth[truth == guesses], minlength=size)
    there, said = (np.bincount(labels, minlength=size) for labels in (truth, guesses))
    found = there > 0
    return float(np.mean(2 * right[found] / (there + said)[found]))


def _score(value: float, resampled: np.ndarray) -> Score:
    low, high = np.percentile(resampled, _RANGE)
    return Score(value, float(low), float(high))
