"""Texts of given labels, drawn from a model that learned to write a text after its label."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedtune.config.schema import RunConfig
from fedtune.data.formats import label_prompt
from fedtune.errors import InputError, RunFailedError
from fedtune.models.generation import Sampling, draw
from fedtune.models.saved import Loaded

_BATCH = 32
_MOST_DRAWS = 4
"""Draws a wanted text, before a model that writes nothing is given up."""


@dataclass(frozen=True)
class Request:
    """What to write: so many texts of each label, after the prompt that `template` makes of it.

    The number is the asker's. The counts of labels in private rows would be one more release.
    """

    labels: tuple[str, ...]
    per_label: int
    template: str
    sampling: Sampling


@dataclass(frozen=True)
class SyntheticText:
    """A drawn text. `cut`: the limit of tokens ended it, not the model."""

    text: str
    label: str
    cut: bool


def template_of(config: RunConfig, given: str | None) -> str:
    """The prompt that the run learned labels by, or the `given` one if the run doesn't say.

    Raises InputError if there is neither, they differ, or it has no place for a label.
    """
    learned = config.data.label_prompt
    if given is None and learned is None:
        raise InputError(
            "the run's config doesn't say how a label becomes a prompt",
            where="data.label_prompt",
            mend='train with `data.format: text_label` and `data.label_prompt: "label: {label}\\n"`'
            ", or give the prompt of your rows as `--prompt-template`",
        )
    if given is not None and learned is not None and given != learned:
        raise InputError(
            f"the run learned labels by another prompt, {learned!r}",
            where="--prompt-template",
            mend="leave it out",
        )
    template = given if learned is None else learned
    assert template is not None  # noqa: S101 - one of the two is there
    if "{label}" not in template:
        raise InputError("no `{label}`, the place of a label", where="--prompt-template")
    return template


def labels_of(config: RunConfig, given: Sequence[str]) -> tuple[str, ...]:
    """The `given` labels, or those that the run's config names; never read from its rows.

    Raises InputError if there are none, one is empty, or one is there twice.
    """
    labels = tuple(given or config.task.labels)
    if not labels:
        raise InputError(
            "no label is named",
            where="--labels",
            expected="labels that you know without the private rows, such as `asthma,gout`",
            mend="give `--labels`, or train with `task.labels`",
        )
    if not all(label.strip() for label in labels):
        raise InputError("one of the labels is empty", where="--labels")
    if twice := [label for label, times in Counter(labels).items() if times > 1]:
        raise InputError(f"`{twice[0]}` is there twice", where="--labels")
    if config.task.labels and (other := sorted({*labels} - {*config.task.labels})):
        raise InputError(
            f"`{other[0]}` is no label of the run",
            where="--labels",
            expected=f"of {', '.join(config.task.labels)}",
        )
    return labels


def write_texts(
    loaded: Loaded, request: Request, on_text: Callable[[int], None] = lambda count: None
) -> list[SyntheticText]:
    """The texts that `request` asks for, label by label; a label's don't depend on the others.

    `on_text` hears how many more are done. Empty texts are drawn anew. Raises RunFailedError when
    a label's are nearly all empty.
    """
    texts: list[SyntheticText] = []
    for label in request.labels:
        texts += _of_label(loaded, request, label, on_text)
    return texts


def _of_label(
    loaded: Loaded, request: Request, label: str, on_text: Callable[[int], None]
) -> list[SyntheticText]:
    prompt = label_prompt(request.template, label)
    kept: list[SyntheticText] = []
    drawn = 0
    while (missing := request.per_label - len(kept)) > 0:
        if drawn >= _MOST_DRAWS * max(request.per_label, _BATCH):
            raise RunFailedError(
                f"the model wrote {len(kept)} texts that aren't empty in {drawn} draws for the "
                f"label `{label}`; nothing was saved"
            )
        seed = _seed(request.sampling.seed, label, drawn)
        count = min(_BATCH, missing)
        found = draw(loaded, prompt, count, replace(request.sampling, seed=seed))
        usable = [SyntheticText(one.text, label, not one.stopped) for one in found]
        usable = [one for one in usable if one.text.strip()]
        kept, drawn = [*kept, *usable], drawn + count
        on_text(len(usable))
    return kept


def _seed(seed: int, label: str, drawn: int) -> int:
    """A seed of its own for every batch of every label."""
    digest = hashlib.sha256(f"fedtune synthesis {seed} {drawn} {label}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
