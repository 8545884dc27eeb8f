"""Make the embedded base model: `python -m fedtune_simulations.pretrain_embedded`.

Trains a byte-level BPE tokenizer and a small Llama on text this package generates and on the
standard library's docstrings, and writes both in Hugging Face format. It takes seven minutes on
one core. With the same seed, machine, Python and torch, the weights come out the same."""

import argparse
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fedtune
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig
from fedtune.data.embedded.clinical import generate_notes
from fedtune.data.embedded.corpus import clinical_documents, docstrings
from fedtune.tasks.causal_lm import CausalLm
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.task import Encoded, Task
from fedtune.training.events import Event, StepDone
from fedtune.training.trainer import Trainer

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


def blocks(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> list[Encoded]:
    """All texts, each ended by the stop token, as one stream cut into rows of `length` tokens."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    rows = [stream[start : start + length] for start in range(0, len(stream), length)]
    return [Encoded(row, row) for row in rows if len(row) == length]


def pretrain(
    model: LlamaForCausalLM, task: Task, rows: Sequence[Encoded], steps: int, seed: int
) -> None:
    """AdamW with warm-up and cosine decay, on every token."""
    settings = TrainingConfig(
        learning_rate=4e-3,
        weight_decay=0.05,
        lr_schedule="cosine",
        warmup_steps=steps // 20,
        max_steps=steps,
        batch_size=32,
    )
    Trainer(task, settings, seed=seed, listeners=[_tell]).fit(model, rows)


def _tell(event: Event) -> None:
    if isinstance(event, StepDone) and (event.step % 100 == 0 or event.step == event.steps):
        _log.info("step %d of %d: loss %.3f", event.step, event.steps, event.loss)


def token_loss(task: Task, model: LlamaForCausalLM, rows: Sequence[Encoded]) -> float:
    """Mean loss a learned token."""
    return math.log(evaluate(task, model, rows, 32)["perplexity"])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write all files beside `out` first, then move them in one by one."""
    out.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=out.parent))
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged, save_jinja_files=False)
        for path in staged.iterdir():
            path.chmod(0o644)  # part of the package, for everyone to read
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
    task = CausalLm(TaskConfig(loss_on="completion"), tokenizer)
    rows = blocks(tokenizer, texts, length=129)
    held_out, rows = rows[:100], rows[100:]
    # demo notes, which pretraining never sees
    notes = [task.encode({**note, "where": "note"}) for note in generate_notes(40, seed=1)]
    model = new_model(tokenizer, options.seed)
    _log.info("%d rows of 129 tokens, %d parameters", len(rows), model.num_parameters())
    for stage in ("before", "after"):
        if stage == "after":
            pretrain(model, task, rows, options.steps, options.seed)
        losses = token_loss(task, model, held_out), token_loss(task, model, notes)
        _log.info("%s: held-out loss a token %.3f, notes' completions %.3f", stage, *losses)
    save(model, tokenizer, options.out)
    _log.info("wrote %s", options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the embedded base model.")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 100:  # the schedule's warm-up is a twentieth of the steps
        parser.error(f"--steps is {options.steps}, expected 100 or more")
    return options


if __name__ == "__main__":
    main()
