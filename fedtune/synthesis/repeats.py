"""How many texts repeat a stretch of a training row: a look for memorised rows.

It reads the private rows and its answer is exact, so it is for those who may see them, and not for
publication. Notes of one kind share phrases: compare with what real rows that nobody trained on
share with the training rows.
"""

from collections.abc import Iterable, Sequence

SPAN = 50
"""Characters of a stretch. Shorter texts can't repeat one."""


def repeating_share(texts: Sequence[str], training: Iterable[str], span: int = SPAN) -> float:
    """Share of `texts` that have `span` characters in a row which a row of `training` has too.

    Memory is that of the texts' stretches; training rows are walked through once.
    """
    stretches = {stretch for text in texts for stretch in _stretches(text, span)}
    shared = {s for row in training for s in _stretches(row, span) if s in stretches}
    return sum(any(s in shared for s in _stretches(text, span)) for text in texts) / len(texts)


def _stretches(text: str, span: int) -> Iterable[str]:
    return (text[start : start + span] for start in range(len(text) - span + 1))
