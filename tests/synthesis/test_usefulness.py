"""The classifier on synthetic against real texts: figures worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fedtune.errors import InputError
from fedtune.synthesis.usefulness import Labelled, macro_f1, usefulness

WORDS = {"gout": "swollen toe", "asthma": "wheezing breath"}


def rows(*labels: str, units: tuple[str, ...] = (), said: tuple[str, ...] = ()) -> Labelled:
    """Texts of the conditions `said`, under `labels`."""
    texts = tuple(WORDS[word] for word in said or labels)
    return Labelled(texts, labels, units or tuple(str(i) for i in range(len(labels))))


REAL = rows(*("gout",) * 6, *("asthma",) * 4)
TEST = rows("gout", "gout", "gout", "asthma")


def test_texts_under_the_wrong_label_are_worth_nothing_and_the_same_texts_all():
    wrong = rows(*REAL.labels, said=("asthma",) * 6 + ("gout",) * 4)
    found = usefulness(wrong, REAL, TEST)
    for name in ("accuracy", "macro_f1"):
        assert found.synthetic[name].value == 0.0
        assert found.real[name].value == 1.0
        assert (found.lost[name].low, found.lost[name].high) == (1.0, 1.0)
    assert (found.synthetic_rows, found.real_rows, found.test_rows) == (10, 10, 4)
    assert found.most_common == 0.75
    same = usefulness(REAL, REAL, TEST)
    assert same.lost["accuracy"] == same.lost["macro_f1"]
    assert same.lost["accuracy"].value == 0.0


def test_macro_f1_weighs_labels_alike():
    # every text reads as gout to who learned it so: 3 of 4 right; F1 of gout 6/7, of asthma 0
    always = Labelled(("swollen toe", "wheezing breath", "fever"), ("gout", "gout", "malaria"), ())
    found = usefulness(always, REAL, TEST).synthetic
    assert found["accuracy"].value == 0.75
    assert found["macro_f1"].value == pytest.approx(3 / 7)


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for size in (1, 5, 200):
        truth, guesses = rng.integers(0, 9, size), rng.integers(0, 12, size)
        known = f1_score(truth, guesses, labels=np.unique(truth), average="macro", zero_division=0)
        assert macro_f1(truth, guesses) == pytest.approx(known)


def test_a_unit_s_rows_are_drawn_together():
    # one unit's 50 rows all right, the other's all wrong: drawn whole, accuracy may be 0 or 1
    test = rows(
        *("gout",) * 100,
        units=("a",) * 50 + ("b",) * 50,
        said=("gout",) * 50 + ("asthma",) * 50,
    )
    accuracy = usefulness(REAL, REAL, test).real["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.5, 0.0, 1.0)


def test_labels_that_nobody_wrote_are_named():
    synthetic = Labelled(("swollen toe", "fever"), ("gout", "malaria"), ())
    assert usefulness(synthetic, REAL, TEST).unwritten == ["asthma"]


def test_texts_that_teach_nothing_are_refused():
    with pytest.raises(InputError, match="all synthetic texts have the label `gout`"):
        usefulness(rows("gout", "gout"), REAL, TEST)
    with pytest.raises(InputError, match="hold no word"):
        usefulness(Labelled(("a", "?"), ("gout", "asthma"), ()), REAL, TEST)
