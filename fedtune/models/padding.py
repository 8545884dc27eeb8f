"""What fills up a short row.

Labels and attention masks leave padding out, so any id serves but the stop token's: were they the
same, a loss that ignores padding would never teach a model to stop. The tokenizer itself is left
alone, so that what a run saves splits text as the base does.
"""

from typing import Any

import torch

from fedtune.errors import InputError

_MEANT_FOR_IT = ("pad", "reserved", "unused")


def filler(tokenizer: Any) -> int:
    """The id to pad with: a spare token, else the unknown token, else any but the stop token."""
    spare, stop = _spare_token(tokenizer), tokenizer.eos_token_id
    if spare is not None:
        return spare
    if tokenizer.unk_token_id not in (None, stop):
        return int(tokenizer.unk_token_id)
    return 1 if stop == 0 else 0


def classifier_filler(tokenizer: Any) -> int:
    """The id to pad a classifier's rows with: a spare token, else the stop token.

    Decoders classify by their last token, which `transformers` finds as the last that is not the
    pad token, so this id must not be in a text; and a classifier never learns to stop. Raises
    InputError if the tokenizer has neither.
    """
    spare = _spare_token(tokenizer)
    if spare is not None:
        return spare
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no token to pad with",
            where="model.path",
            mend="declare a pad token in the tokenizer's files",
        )
    return int(tokenizer.eos_token_id)


def check_classifier_padding(model: Any, tokenizer: Any) -> None:
    """Raise InputError unless the model says the same of a text alone and of a padded one."""
    fill = classifier_filler(tokenizer)
    short, long = (
        [token for token in tokenizer(text)["input_ids"] if token != fill]
        for text in ("one two", "one two three four five six seven")
    )
    padded = short + [fill] * (len(long) - len(short))
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([short])).logits[0].float()
        mask = torch.tensor([[1] * len(short) + [0] * (len(long) - len(short)), [1] * len(long)])
        both = model(input_ids=torch.tensor([padded, long]), attention_mask=mask).logits.float()
    if not torch.allclose(alone, both[0], rtol=2e-2, atol=2e-2 * float(alone.abs().max())):
        raise InputError(
            "this architecture classifies a text otherwise when it is padded on the right",
            where="model.path",
            expected="an encoder, or a decoder that reads its last token",
        )


def _spare_token(tokenizer: Any) -> int | None:
    """An id that no text means: the declared pad token, else a special token kept in reserve."""
    stop = tokenizer.eos_token_id
    if tokenizer.pad_token_id not in (None, stop, tokenizer.unk_token_id):
        return int(tokenizer.pad_token_id)
    for number, token in sorted(tokenizer.added_tokens_decoder.items()):
        kept = any(word in token.content.lower() for word in _MEANT_FOR_IT)
        if token.special and kept and number != stop:
            return int(number)
    return None
