"""What fills up a short row.

Labels and attention masks leave padding out, so any id serves but the stop token's: were they the
same, a loss that ignores padding would never teach a model to stop. The tokenizer itself is left
alone, so that what a run saves splits text as the base does.
"""

from typing import Any

from fedtune.errors import InputError

_MEANT_FOR_IT = ("pad", "reserved", "unused")


def spare_token(tokenizer: Any) -> int | None:
    """An id that no text means: the declared pad token, else a special token kept in reserve."""
    stop = tokenizer.eos_token_id
    if tokenizer.pad_token_id not in (None, stop, tokenizer.unk_token_id):
        return int(tokenizer.pad_token_id)
    for number, token in sorted(tokenizer.added_tokens_decoder.items()):
        kept = any(word in token.content.lower() for word in _MEANT_FOR_IT)
        if token.special and kept and number != stop:
            return int(number)
    return None


def filler(tokenizer: Any) -> int:
    """The id to pad with: a spare token, else the unknown token, else any but the stop token."""
    spare, stop = spare_token(tokenizer), tokenizer.eos_token_id
    if spare is not None:
        return spare
    if tokenizer.unk_token_id not in (None, stop):
        return int(tokenizer.unk_token_id)
    return 1 if stop == 0 else 0


def filler_for_classifier(tokenizer: Any, model: Any) -> int:
    """The id to pad with. Raises InputError if the model would take it for the end of a text.

    Decoders classify by their last token, which `transformers` finds as the last that is not the
    pad token: a text that ends with the filler would be read one token short.
    """
    if hasattr(model, "score") and spare_token(tokenizer) is None:
        raise InputError(
            "the tokenizer has no token to pad with that a text can't hold, and this model "
            "classifies by the last token that isn't padding",
            where="model.path",
            mend="declare a pad token in the tokenizer's files, or choose an encoder",
        )
    return filler(tokenizer)
