"""Make the embedded base model: `python -m fedtune_simulations.pretrain_embedded`.

Trains a byte-level BPE tokenizer and a small Llama on text this package generates and on the
standard library's docstrings, and writes both in Hugging Face format. It takes seven minutes on
one core. With the same seed, machine, Python and torch, the weights come out the same.

The loop below stands in for `fedtune.training.Trainer`.
"""

import argparse
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fedtune
from fedtune.data.embedded.clinical import generate_notes
from fedtune.data.embedded.corpus import clinical_documents, docstrings

PAD, END = "<pad>", "<eos>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ASSET = Path(fedtune.__file__).parent / "models" / "embedded"
_log = logging.getLogger("pretrain_embedded")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that encodes any text; digits stand alone, pad is not the stop token."""
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.9 million parameters: float32 weights of 3.5 MB."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.04,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def blocks(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> torch.Tensor:
    """All texts, each ended by the stop token, as one stream cut into rows [rows, length + 1]."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    rows = len(stream) // (length + 1)
    return torch.tensor(stream[: rows * (length + 1)]).view(rows, length + 1)


def fit(
    model: LlamaForCausalLM, rows: torch.Tensor, steps: int, batch_size: int, seed: int
) -> None:
    """AdamW with warm-up and cosine decay; rows are shuffled anew for every pass."""
    order = batches(len(rows), batch_size, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.05)
    model.train()
    start = time.monotonic()
    for step in range(1, steps + 1):
        loss = row_loss(model, rows[next(order)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            took = time.monotonic() - start
            _log.info("step %d of %d: loss %.3f, %.0f s", step, steps, loss.item(), took)


def batches(count: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of row numbers [batch_size], a fixed order for a seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)


def row_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean loss of every next token of rows [batch, length + 1]."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def note_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean loss a token of the completions of demo notes, which pretraining never sees."""
    model.eval()
    total, count = 0.0, 0
    for note in generate_notes(40, seed=1):
        prompt = tokenizer.encode(note["prompt"])
        target = [*tokenizer.encode(note["completion"]), tokenizer.eos_token_id]
        ids = torch.tensor([prompt + target])
        logits = model(input_ids=ids[:, :-1]).logits[0, len(prompt) - 1 :]
        total += cross_entropy(logits, torch.tensor(target), reduction="sum").item()
        count += len(target)
    return total / count


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write all files beside `out` first, then move them in one by one."""
    out.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=out.parent))
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged, save_jinja_files=False)
        for path in staged.iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(staged)


def main() -> None:
    """Make the corpus, the tokenizer and the model, report losses, and save."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    texts = [*clinical_documents(12_000, options.seed), *docstrings(1_000_000, options.seed)]
    random.Random(options.seed).shuffle(texts)
    tokenizer = train_tokenizer(texts, vocab_size=1024)
    rows = blocks(tokenizer, texts, length=128)
    held_out, rows = rows[:100], rows[100:]
    model = new_model(tokenizer, options.seed)
    _log.info("%d tokens, %d parameters", rows.numel(), model.num_parameters())
    _log_losses(model, tokenizer, held_out)
    fit(model, rows, options.steps, options.batch_size, options.seed)
    _log_losses(model, tokenizer, held_out)
    save(model, tokenizer, options.out)
    _log.info("wrote %s", options.out)


def _log_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: torch.Tensor
) -> None:
    with torch.no_grad():
        general = row_loss(model.eval(), held_out).item()
    notes = note_loss(model, tokenizer)
    _log.info("held-out loss a token %.3f, demo notes' completions %.3f", general, notes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the embedded base model.")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 100:  # the schedule's warm-up is a twentieth of the steps
        parser.error(f"--steps is {options.steps}, expected 100 or more")
    return options


if __name__ == "__main__":
    main()
