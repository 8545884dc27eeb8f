"""Drawing texts: what a model without words is told, and texts that the limit cut."""

import pytest

from fedtune.config.model import ModelConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.models.base import load_base
from fedtune.models.generation import Sampling, draw
from fedtune.models.saved import Loaded
from fedtune.synthesis.texts import Request, write_texts


@pytest.fixture
def loaded() -> Loaded:
    base = load_base(ModelConfig(), "causal_lm")
    return Loaded(base.model.eval(), base.tokenizer, "causal_lm", (), ModelConfig())


def request(**sampling: float) -> Request:
    return Request(("Gout",), 5, "label: {label}\n", Sampling(4, 1.0, **sampling))


def test_a_model_that_only_stops_is_given_up(loaded: Loaded):
    loaded.model.generation_config.eos_token_id = list(range(len(loaded.tokenizer)))
    with pytest.raises(RunFailedError, match="wrote 0 texts that aren't empty in 130 draws"):
        write_texts(loaded, request())


def test_more_texts_than_a_batch_holds_all_differ(loaded: Loaded):
    heard: list[int] = []
    texts = write_texts(loaded, Request(("Gout",), 70, "{label}:", Sampling(16, 1.0)), heard.append)
    assert len(texts) == sum(heard) == 70
    assert len({one.text for one in texts}) > 60  # a batch drawn from the last one's seed repeats


def test_texts_that_the_limit_ended_are_counted(loaded: Loaded):
    assert all(one.cut for one in write_texts(loaded, request()))


def test_every_word_can_be_drawn(loaded: Loaded):
    """`transformers` draws from the likeliest 50 tokens unless it is told not to."""
    found = draw(loaded, "Gout", 400, Sampling(1, 1000.0))
    assert len({one.text for one in found}) > 100


def test_a_draw_needs_a_temperature(loaded: Loaded):
    with pytest.raises(InputError, match="at temperature 0"):
        draw(loaded, "Gout", 2, Sampling(1, 0.0))
