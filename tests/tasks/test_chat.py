"""Conversations: which tokens are learned, that the stop token always is, and what is refused."""

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from fedtune.cli.main import main
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.errors import InputError
from fedtune.models.base import load_tokenizer
from fedtune.tasks import build_task
from fedtune.tasks.task import IGNORED

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Cough?"},
    {"role": "assistant", "content": "Asthma."},
    {"role": "user", "content": "Fever?"},
    {"role": "assistant", "content": "Flu."},
]
HEAD = "{% for m in messages %}{{ '<|user|>' if m.role != 'assistant' else '<|assistant|>' }}"
ASK = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = HEAD + "{{ m.content }}{{ eos_token }}\n" + ASK
MARKED = (
    HEAD + "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content + eos_token }}{% endif %}\n" + ASK
)


def encoder(template=None, **settings):
    tokenizer = load_tokenizer(ModelConfig())
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer, build_task(TaskConfig(**settings), tokenizer)


def row(messages=TALK, context=0):
    return {"messages": messages, "context": context, "where": "x.jsonl:7"}


def learned(tokenizer, example):
    """The learned stretches as text, each on its own."""
    shown = "".join("|" if t == IGNORED else tokenizer.decode([t]) for t in example.labels)
    return [part for part in shown.split("|") if part]


@pytest.mark.parametrize("template", [None, PLAIN, MARKED])
def test_assistant_turns_and_their_stop_tokens_are_learned(template):
    tokenizer, task = encoder(template)
    example = task.encode(row())
    assert learned(tokenizer, example) == ["Asthma.<eos>", "Flu.<eos>"]
    whole = tokenizer.apply_chat_template(TALK, tokenize=True)["input_ids"]
    assert example.input_ids == whole
    padded = task.collate([example, task.encode(row(TALK[:3]))])
    assert (padded["input_ids"][1][padded["attention_mask"][1] == 0] != 1).all()


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_turns_of_a_prompt_are_read_not_learned(template):
    tokenizer, task = encoder(template)
    assert learned(tokenizer, task.encode(row(context=4))) == ["Flu.<eos>"]
    assert learned(tokenizer, task.encode(row(context=2))) == ["Asthma.<eos>", "Flu.<eos>"]


def test_a_turn_that_ends_otherwise_than_a_text_is_told(caplog):
    tokenizer, task = encoder(PLAIN.replace("{{ eos_token }}", "<|system|>"))
    said = [token for token in task.encode(row()).labels if token != IGNORED]
    assert tokenizer.decode(said) == "Asthma.<|system|>Flu.<|system|>"
    assert "turns end with <|system|>, which is not the tokenizer's stop token" in caplog.text
    caplog.clear()
    encoder(PLAIN)[1].encode(row())
    assert not caplog.text


def test_every_token_is_learned_on_request():
    _, task = encoder(loss_on="all")
    example = task.encode(row())
    assert example.labels == example.input_ids


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "has none"),
        (HEAD + "{{ m.content }}\n" + ASK, "no stop token"),
        (MARKED.replace("m.content + eos_token }}{% endg", "m.content }}{% endg"), "no stop token"),
        (
            HEAD + "{{ m.content if loop.last else '...' }}{{ eos_token }}" + ASK,
            "otherwise when more follows",
        ),
        (
            HEAD + "{% if loop.last or m.role != 'assistant' %}{{ m.content }}{% endif %}"
            "{{ eos_token }}" + ASK,
            "otherwise when more follows",
        ),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_that_can_not_be_learned_from_is_refused(template, says):
    _, task = encoder(template)
    with pytest.raises(InputError, match=says) as refused:
        task.encode(row())
    assert "to mend:" in str(refused.value)
    assert "x.jsonl:7" in str(refused.value) or "model.path" in str(refused.value)


def test_a_conversation_cut_before_its_first_stop_token_is_refused():
    tokenizer, task = encoder(max_length=25)
    stop = task.encode(row()).input_ids.index(tokenizer.eos_token_id)
    cut = encoder(max_length=stop + 1)[1].encode(row())
    assert cut.labels[-1] == tokenizer.eos_token_id
    assert cut.cut == len(encoder()[1].encode(row()).input_ids) - stop - 1
    with pytest.raises(InputError, match=r"stop token is token \d+, beyond `task.max_length`"):
        encoder(max_length=stop)[1].encode(row())


def test_tokens_that_the_tokenizer_adds_come_once():
    tokenizer, _ = encoder()
    begin, stop = tokenizer.convert_tokens_to_ids("<|system|>"), tokenizer.eos_token_id
    tokenizer.bos_token = "<|system|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A <eos>", special_tokens=[("<|system|>", begin), ("<eos>", stop)]
    )
    task = build_task(TaskConfig(), tokenizer)
    rows = [{"text": t, "where": "x:1"} for t in ("note", "<|system|>note")]
    rows += [{"prompt": "no", "completion": "te", "where": "x:3"}]
    for example in (task.encode(row) for row in rows):
        assert example.input_ids[0] == begin
        assert example.input_ids[-1] == example.labels[-1] == stop
        assert [t for t in example.input_ids[1:-1] if t in (begin, stop)] == []
    short = build_task(TaskConfig(max_length=8), tokenizer)
    example = short.encode({"prompt": "a b c d e f g h i", "completion": " z", "where": "x:4"})
    assert len(example.input_ids) == 8
    assert example.cut > 0
    assert example.input_ids[0] == begin
    assert tokenizer.decode(example.input_ids[1:]).endswith("i z<eos>")


def test_too_long_conversations_are_counted_with_their_places(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    rows = [{"messages": TALK[1:3], "site": f"s{i % 2}"} for i in range(20)]
    for i in (3, 9):
        rows[i] = {**rows[i], "messages": [{"role": "user", "content": "word " * 300}, TALK[2]]}
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {
        "data": {"source": "files", "train_files": [str(file)], "test_files": []},
        "federation": {"partition": {"column": "site"}, "rounds": 1},
        "training": {"max_steps": 1},
        "output": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    assert main(["simulate", str(tmp_path / "c.yaml"), "--no-compare"]) == 2
    told = capsys.readouterr().err
    assert "talks.jsonl:4: its first stop token is token" in told
    assert "talks.jsonl:10: its first stop token is token" in told
    assert not (tmp_path / "run").exists()
