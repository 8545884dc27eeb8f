"""What can't be run is refused by `simulate` and `train`, and by their dry runs in the same words.

Each case is one fault in a sound run: status 2, one message that names the place, no traceback,
and not a file more or less than before.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedtune.cli.main import main
from fedtune.models.base_files import embedded_folder

ROWS = [
    {"id": f"r{i}", "prompt": f"Q{i}?", "completion": f"A{i}", "who": f"p{i}", "silo": "ab"[i % 2]}
    for i in range(12)
]
LABELLED = [
    {"text": f"t{i}", "label": "xy"[i % 2], "silo": "ab"[i // 2 % 2], "who": f"p{i}"}
    for i in range(12)
]
BOTH = ("simulate", "train")
NO_COLUMN = ("federation.partition.column=null",)
Setup = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One fault: what is put on disk, what is set, and what the message must say."""

    name: str
    says: tuple[str, ...]
    rows: Any = None
    settings: tuple[str, ...] = ()
    setup: Setup | None = None
    verbs: tuple[str, ...] = BOTH
    dry: bool = True
    arguments: tuple[str, ...] = field(default=())


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def with_row(number: int, **changes: Any) -> bytes:
    rows = [dict(row) for row in ROWS]
    rows[number - 1] |= changes
    return lines(*({k: v for k, v in row.items() if v is not None} for row in rows))


def model_without(*names: str) -> Setup:
    def setup(folder: Path) -> None:
        shutil.copytree(embedded_folder(), folder / "model")
        for name in names:
            (folder / "model" / name).unlink()

    return setup


def model_with(name: str, content: bytes) -> Setup:
    def setup(folder: Path) -> None:
        shutil.copytree(embedded_folder(), folder / "model")
        (folder / "model" / name).write_bytes(content)

    return setup


def model_cut(folder: Path) -> None:
    shutil.copytree(embedded_folder(), folder / "model")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def model_without_template(folder: Path) -> None:
    shutil.copytree(embedded_folder(), folder / "model")
    path = folder / "model" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["chat_template"]
    path.write_text(json.dumps(settings))


def put(name: str, content: bytes) -> Setup:
    def setup(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return setup


def folder_named(name: str, mode: int = 0o755) -> Setup:
    def setup(folder: Path) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(mode)

    return setup


MODEL = ("model.path={tmp}/model",)
CLASSIFY = ("task.name=sequence_classification",)
PRIVATE = ("privacy.mode=local", "privacy.noise_multiplier=1", "privacy.delta=0.001")
CASES = [
    # data: files
    Case(
        "rows longer than the model reads",
        ("task.max_length", "512"),
        settings=("task.max_length=513",),
    ),
    Case(
        "no room for virtual tokens",
        ("task.max_length", "set it to 496"),
        settings=("task.max_length=512", "adapter.method=prefix_tuning"),
    ),
    Case(
        "no train file",
        ("none.jsonl", "no such file"),
        settings=("data.train_files=[{tmp}/none.jsonl]",),
    ),
    Case(
        "no file fits the pattern",
        ("*.csv", "matches no file"),
        settings=("data.train_files=['{tmp}/*.csv']",),
    ),
    Case("empty file", ("train.jsonl", "no rows"), rows=b""),
    Case("blank lines only", ("train.jsonl", "no rows"), rows=b"\n\n"),
    Case("binary file", ("train.jsonl", "not UTF-8"), rows=b"\xff\xfe\x00\x01\n"),
    Case(
        "a folder that is no data set",
        ("data", "not a `datasets` folder"),
        settings=("data.train_files=[{tmp}/data]",),
        setup=folder_named("data"),
    ),
    Case(
        "unknown kind of file",
        ("train.docx", "unknown kind of file"),
        settings=("data.train_files=[{tmp}/train.docx]",),
        setup=put("train.docx", b"PK"),
    ),
    Case(
        "a Parquet file that is none",
        ("x.parquet", "can't be read"),
        settings=("data.train_files=[{tmp}/x.parquet]",),
        setup=put("x.parquet", b"PAR1 not really"),
    ),
    Case(
        "a gzip file that is none",
        ("x.jsonl.gz", "can't be read"),
        settings=("data.train_files=[{tmp}/x.jsonl.gz]",),
        setup=put("x.jsonl.gz", b"no gzip"),
    ),
    Case(
        "a CSV header that repeats a column",
        ("x.csv:1", "repeats a column"),
        settings=("data.train_files=[{tmp}/x.csv]",),
        setup=put("x.csv", b"prompt,prompt\na,b\n"),
    ),
    # data: rows
    Case(
        "bad JSON in line 3",
        ("train.jsonl:3", "not JSON"),
        rows=lines(*ROWS[:2]) + b"{oops\n" + lines(*ROWS[3:]),
    ),
    Case(
        "a key twice in line 2",
        ("train.jsonl:2", "the key `prompt` stands twice"),
        rows=lines(ROWS[0]) + b'{"prompt": "a", "prompt": "b", "completion": "c", "silo": "a"}\n',
    ),
    Case("a list in line 1", ("train.jsonl:1", "not an object"), rows=b"[1]\n" + lines(*ROWS)),
    Case(
        "a missing completion",
        ("train.jsonl:5", "`completion` is missing"),
        rows=with_row(5, completion=None),
    ),
    Case("an empty prompt", ("train.jsonl:2", "`prompt` is empty"), rows=with_row(2, prompt=" ")),
    Case("a number for text", ("train.jsonl:2", "not text"), rows=with_row(2, prompt=7)),
    Case(
        "a row without a silo", ("train.jsonl:4", "`silo` is missing"), rows=with_row(4, silo=None)
    ),
    Case(
        "a record id used twice",
        ("train.jsonl:2", "used by an earlier row"),
        rows=with_row(2, id="r0"),
        settings=("data.columns.record_id=id",),
    ),
    # data: columns and formats
    Case(
        "columns of no format",
        ("train.jsonl", "fit no format"),
        rows=lines({"a": "b", "silo": "s"}),
    ),
    Case(
        "a column that isn't there",
        ("train.jsonl", "data.columns.prompt", "did you mean `prompt`?"),
        settings=("data.columns.prompt=promt", "data.format=prompt_completion"),
    ),
    Case(
        "no privacy unit column",
        ("train.jsonl", "data.columns.privacy_unit"),
        settings=("data.columns.privacy_unit=patient",),
    ),
    Case(
        "no silo column",
        ("train.jsonl", "federation.partition.column"),
        settings=("federation.partition.column=ward",),
    ),
    Case(
        "preference rows",
        ("train.jsonl", "preference data"),
        rows=lines({"prompt": "p", "chosen": "c", "rejected": "r"}),
    ),
    Case("prompts for a classifier", ("train.jsonl", "text_label"), settings=CLASSIFY),
    Case(
        "chat for a model without a template",
        ("template",),
        rows=lines(
            *(
                {
                    "messages": [
                        {"role": "user", "content": "q"},
                        {"role": "assistant", "content": "a"},
                    ],
                    "silo": "ab"[i % 2],
                }
                for i in range(8)
            )
        ),
        settings=MODEL,
        setup=model_without_template,
    ),
    Case(
        "a message without a role",
        ("train.jsonl:1", "role"),
        rows=lines({"messages": [{"content": "q"}], "silo": "a"}),
    ),
    Case(
        "a label that isn't listed",
        ("6 bad rows", "train.jsonl:2: `label` is none of `task.labels`"),
        rows=lines(*LABELLED),
        settings=(*CLASSIFY, "task.labels=[x, z]"),
    ),
    Case(
        "labels read from private rows",
        ("task.labels", "privacy.mode: local", "[first, second]"),
        rows=lines(*LABELLED),
        settings=(*CLASSIFY, *PRIVATE),
    ),
    *(
        Case(
            f"{setting} where {unit} is the unit",
            (f"`privacy.{setting.split('=')[0]}` needs `privacy.unit: patient`", "default"),
            settings=(*PRIVATE, f"privacy.{setting}", *more),
        )
        for setting in ("max_records_per_unit=2", "unit_reduction=sum")
        for unit, more in (
            ("a row", ()),
            ("a row by choice", ("data.columns.privacy_unit=who", "privacy.unit=record")),
        )
    ),
    Case(
        "a batch where every unit is in every step",
        ("`training.batch_size` can't be used with `privacy.sampling: full`", "default"),
        settings=(*PRIVATE, "privacy.sampling=full"),
    ),
    Case(
        "passes where there are no batches",
        ("`privacy.sampling: full` needs `training.max_steps`",),
        settings=(
            *(*PRIVATE, "privacy.sampling=full"),
            *("training.batch_size=16", "training.max_steps=null"),
        ),
    ),
    Case(
        "a private row with a label that isn't listed",
        ("train.jsonl:3: `label` is none of `task.labels`",),
        rows=lines(*LABELLED[:2], {**LABELLED[2], "label": "rare"}, *LABELLED[3:]),
        settings=(*CLASSIFY, *PRIVATE, "task.labels=[x, y]"),
    ),
    Case(
        "an empty label",
        ("train.jsonl:1", "`label` is empty"),
        rows=lines({**LABELLED[0], "label": ""}, *LABELLED[1:]),
        settings=CLASSIFY,
    ),
    Case(
        "one label only",
        ("data.train_files", "all rows have the label `x`"),
        rows=lines(*(row | {"label": "x"} for row in LABELLED)),
        settings=CLASSIFY,
    ),
    Case(
        "a named column that isn't there, in rows that another format fits",
        ("train.jsonl: no column `prompt`", "data.columns.prompt"),
        rows=lines(*LABELLED),
        settings=("data.columns.prompt=prompt",),
    ),
    Case(
        "a column for a part that the format doesn't have",
        ("data.columns.label: is not used: rows are read as prompt_completion",),
        settings=("data.columns.label=who",),
    ),
    # data: splits and silos
    Case(
        "a train file among the test files",
        ("train.jsonl", "also one of the train files"),
        settings=("data.test_files=[{tmp}/train.jsonl]",),
    ),
    Case(
        "a privacy unit on both sides",
        ("data.test_files", "in both"),
        settings=("data.test_files=[{tmp}/test.jsonl]", "data.columns.privacy_unit=who"),
        setup=put("test.jsonl", lines(ROWS[0])),
    ),
    Case(
        "test rows of another format",
        ("data.test_files", "test rows are"),
        settings=("data.test_files=[{tmp}/test.jsonl]",),
        setup=put("test.jsonl", lines({"text": "t", "silo": "a"})),
    ),
    Case("nothing to hold out", ("data.test_fraction", "no test set"), rows=lines(*ROWS[:2])),
    Case(
        "nothing left to validate on",
        ("data.validation_fraction", "no validation set"),
        rows=lines(*ROWS[:3]),
        settings=("data.validation_fraction=0.5", "training.eval_steps=1"),
        verbs=("train",),
    ),
    Case(
        "no validation file",
        ("none.jsonl", "no such file"),
        settings=("data.validation_files=[{tmp}/none.jsonl]", "training.eval_steps=1"),
        verbs=("train",),
    ),
    Case(
        "a train file among the validation files",
        ("train.jsonl", "also one of the train files"),
        settings=("data.validation_files=[{tmp}/train.jsonl]", "training.eval_steps=1"),
        verbs=("train",),
    ),
    Case(
        "validation in a federation",
        ("training.eval_steps", "is for `train` only", "data.validation_..."),
        settings=("data.validation_fraction=0.5", "training.eval_steps=1"),
        verbs=("simulate",),
    ),
    Case(
        "a patient in two silos, privately",
        ("federation.partition.column", "more than one silo", "train.jsonl:2 in `b`"),
        rows=with_row(2, who=" p0"),
        settings=("data.columns.privacy_unit=who", *PRIVATE),
        verbs=("simulate",),
    ),
    Case(
        "a privacy unit in two silos",
        ("federation.partition.column", "more than one silo"),
        rows=with_row(2, who="p0"),
        settings=("data.columns.privacy_unit=who",),
        verbs=("simulate",),
    ),
    Case(
        "rows that name no silo",
        ("federation.partition.column", "name no silo"),
        settings=("federation.partition.column=null",),
        verbs=("simulate",),
    ),
    Case(
        "more silos than rows",
        ("federation.partition.silos", "privacy units"),
        settings=(*NO_COLUMN, "federation.partition.by=iid", "federation.partition.silos=50"),
        verbs=("simulate",),
    ),
    Case(
        "label skew without labels",
        ("federation.partition.by", "needs labels"),
        settings=(*NO_COLUMN, "federation.partition.by=dirichlet", "federation.partition.silos=2"),
        verbs=("simulate",),
    ),
    Case(
        "a quorum that can't be",
        ("federation.min_silos",),
        settings=("federation.min_silos=3",),
        verbs=("simulate",),
    ),
    # model
    Case("no model folder", ("model.path", "there is no folder"), settings=MODEL),
    *(
        Case(
            f"no model folder {path}",
            (f"model.path: there is no folder `{path}`",),
            settings=(f"model.path={path}",),
        )
        for path in ("./nope", "../models/nope", "/abs/nope", "nope/", "a/b/nope", "a\\nope", "~/n")
    ),
    Case(
        "a revision of a folder",
        ("model.revision", "is a folder, which has no revisions"),
        settings=(*MODEL, "model.revision=v1"),
        setup=model_without(),
    ),
    Case(
        "a model folder without a config",
        ("model.path",),
        settings=MODEL,
        setup=model_without("config.json"),
    ),
    Case(
        "a model config that is no JSON",
        ("model.path",),
        settings=MODEL,
        setup=model_with("config.json", b"{oops"),
    ),
    Case(
        "a model of unknown kind",
        ("model.path",),
        settings=MODEL,
        setup=model_with("config.json", b'{"model_type": "nonesuch"}'),
    ),
    Case(
        "no tokenizer",
        ("model.path",),
        settings=MODEL,
        setup=model_without("tokenizer.json", "tokenizer_config.json"),
    ),
    Case(
        "a tokenizer that is no JSON",
        ("model.path",),
        settings=MODEL,
        setup=model_with("tokenizer.json", b"{oops"),
    ),
    Case(
        "no weights",
        ("model.path",),
        settings=MODEL,
        setup=model_without("model.safetensors"),
        dry=False,
    ),
    Case("cut-off weights", ("model.path",), settings=MODEL, setup=model_cut, dry=False),
    Case(
        "weights that are none",
        ("model.path",),
        settings=MODEL,
        setup=model_with("model.safetensors", b"x"),
        dry=False,
    ),
    Case(
        "unknown target modules",
        ("adapter.target_modules", "nonesuch"),
        settings=("adapter.target_modules=[nonesuch]",),
    ),
    Case(
        "no saved adapter to start from",
        ("adapter.init_from",),
        settings=("adapter.init_from={tmp}/none",),
    ),
    # output folder and resume
    Case("the output folder is a file", ("run", "is a file"), setup=put("run", b"")),
    Case(
        "the output folder is below a file",
        ("taken", "is a file"),
        settings=("output.dir={tmp}/taken/run",),
        setup=put("taken", b""),
    ),
    Case(
        "the folder holds another run",
        ("run", "--resume"),
        setup=put("run/config.yaml", b"seed: 1\n"),
    ),
    Case(
        "the output folder is nothing",
        ("command line: output.dir", "at least 1 character"),
        settings=("output.dir=''",),
    ),
    *(
        Case(
            f"an output folder that can't be named {name[:8]!a}",
            ("output.dir: ", why),
            settings=(f'output.dir="{{tmp}}/{name}"',),
        )
        for name, why in (
            ("a\\0b", "NUL character"),
            ("\\ud800", "half a surrogate pair"),
            ("x" * 300, "longer than 255 bytes"),
            ("x/" * 2000, "longer than 3000 bytes"),
        )
    ),
    Case(
        "an unknown user's home",
        ("output.dir: ", "home"),
        settings=("output.dir=~nobody-of-this-name/x",),
    ),
    Case(
        "a data file whose name is too long",
        ("no such file",),
        settings=(f"data.train_files=[{'x' * 300}.jsonl]",),
    ),
    Case(
        "a model path that is too long",
        ("model.path: there is no folder",),
        settings=(f"model.path={'x' * 300}",),
    ),
    Case(
        "the output folder is the current one, with other files",
        ("the folder is no run's and holds other files (`run.yaml`)", "output.dir"),
        settings=("output.dir=.",),
    ),
    Case(
        "the output folder holds another's files",
        ("run: the folder is no run's and holds other files (`thesis.tex`)",),
        setup=put("run/thesis.tex", b""),
    ),
    *(
        Case(
            f"what another run left in the folder: {left}",
            (f"the folder is no run's and holds other files (`{left.partition('/')[0]}`)",),
            setup=put(f"run/{left}", b"{}"),
        )
        for left in (
            "checkpoints/step-00000001/progress.json",
            "checkpoints/round-000001/round.json",
            "adapter/adapter_config.json",
            "metrics.jsonl",
            "partition.json",
        )
    ),
    Case("nothing to resume", ("run", "no run to resume"), arguments=("--resume",)),
    Case(
        "resumed with other settings",
        ("config.yaml", "other settings"),
        setup=put("run/config.yaml", b"seed: 1\n"),
        arguments=("--resume",),
    ),
    # command line
    Case(
        "a misspelt override",
        ("command line", "did you mean `training.learning_rate`?"),
        settings=("training.learning_rat=1",),
    ),
    Case(
        "an override without a value",
        ("command line", "is not an override"),
        settings=("training.learning_rate",),
    ),
    Case(
        "an override of the wrong kind",
        ("command line", "whole number"),
        settings=("federation.rounds=many",),
    ),
    Case(
        "settings that contradict",
        ("fedtune: command line: `model.load_in_4bit` needs an adapter",),
        settings=("model.load_in_4bit=true", "adapter.method=full"),
    ),
    Case(
        "settings of two sections that contradict",
        ("fedtune: command line: `federation.aggregation: svd` needs `adapter.method: lora`",),
        settings=("federation.aggregation=svd", "adapter.method=ia3"),
    ),
    *(
        Case(
            f"a rate of {value}",
            ("command line: training.learning_rate: ", f"{value.strip('.')}", "number"),
            settings=(f"training.learning_rate={value}",),
        )
        for value in ("nan", ".nan", ".inf")
    ),
    Case(
        "noise so little that its epsilon can't be told",
        ("privacy.noise_multiplier: noise of 0.001", "above 700", "expected: at least 0.0"),
        settings=(*PRIVATE, "privacy.noise_multiplier=0.001"),
    ),
    Case(
        "noise so little that its square is no number",
        ("privacy.noise_multiplier: noise of 1e-200", "above 700", "expected: at least 0.0"),
        settings=(*PRIVATE, "privacy.noise_multiplier=1e-200"),
    ),
    Case(
        "noise on silos' sum so little that its epsilon can't be told",
        ("privacy.noise_multiplier: noise of 0.01", "above 700", "expected: at least 0.0"),
        settings=("privacy.mode=central", "privacy.noise_multiplier=0.01", "privacy.delta=0.001"),
        verbs=("simulate",),
    ),
    Case(
        "an epsilon that the chosen accountant can't tell",
        ("privacy.accountant: the prv accountant can't count this",),
        settings=(*PRIVATE, "privacy.noise_multiplier=2000", "privacy.accountant=prv"),
    ),
    Case(
        "a target that is more than an epsilon can be",
        ("privacy.target_epsilon: of 1e+06", "expected: at most 700"),
        settings=(
            "privacy.mode=local",
            "privacy.target_epsilon=1e6",
            "privacy.delta=0.001",
        ),
    ),
    Case(
        "noise in shares without secure sums",
        ("needs `secure_aggregation: true`", "mode: distributed"),
        settings=(
            "privacy.mode=distributed",
            "privacy.unit=silo",
            "privacy.target_epsilon=8",
            "privacy.delta=0.001",
        ),
    ),
]


def sound_run(folder: Path, case: Case) -> list[str]:
    """A run without a fault, then the fault; gives the command's arguments but the verb."""
    rows = lines(*ROWS) if case.rows is None else case.rows
    (folder / "train.jsonl").write_bytes(rows)
    settings = {
        "data": {"source": "files", "train_files": [str(folder / "train.jsonl")]},
        "training": {"max_steps": 1, "batch_size": 4},
        "federation": {"rounds": 1, "partition": {"column": "silo"}},
        "output": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    if case.setup:
        case.setup(folder)
    overrides = [setting.format(tmp=folder) for setting in case.settings]
    return [str(folder / "run.yaml"), *overrides, *case.arguments]


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in paths
    }


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("FEDTUNE_LEDGER", str(folder / "ledger.sqlite"))  # a charge is a file more
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_refused_by_the_run_and_by_its_dry_run(
    case: Case, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = sound_run(work, case)
    before = contents(work)
    for verb in case.verbs:
        messages = []
        for more in (["--dry-run"], []) if case.dry else ([],):
            assert main([verb, *arguments, *more]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith("fedtune: ")
            assert err.count("fedtune: ") == 1
            assert "Traceback" not in err
            for words in case.says:
                assert words in err
            messages.append(err)
            assert contents(work) == before
        assert len(set(messages)) == 1


def test_there_are_forty_cases_and_without_a_fault_the_run_is_accepted(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(CASES) >= 40
    arguments = sound_run(work, Case("none", ()))
    for verb in BOTH:
        assert main([verb, *arguments, "--dry-run"]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_named("locked", 0o555)(work)
    arguments = [*sound_run(work, Case("none", ())), f"output.dir={work}/locked/run"]
    for verb in BOTH:
        for more in (["--dry-run"], []):
            assert main([verb, *arguments, *more]) == 2
            assert "locked: can't be written" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_by_resume_and_its_dry_run(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, pattern in (("simulate", "round-*"), ("train", "step-*")):
        arguments = [*sound_run(work, Case("none", ())), f"output.dir={work / verb}"]
        assert main([verb, *arguments]) == 0
        capsys.readouterr()
        assert main([verb, *arguments, "--resume", "seed=5"]) == 2
        assert "seed: 0 then, 5 now" in capsys.readouterr().err
        latest = sorted((work / verb / "checkpoints").glob(pattern))[-1]
        state = next(latest.glob("[as]*.safetensors"))
        state.write_bytes(state.read_bytes()[:-4] + b"\0\0\0\0")
        before = contents(work)
        for more in (["--dry-run"], []):
            capsys.readouterr()
            assert main([verb, *arguments, "--resume", *more]) == 2
            err = capsys.readouterr().err
            assert "damaged" in err
            assert str(latest) in err
            assert contents(work) == before


@pytest.mark.parametrize(
    ("verb", "name", "content", "says"),
    [
        ("train", "metrics.jsonl", "[1]\n", "metrics.jsonl:1: is damaged"),
        ("train", "metrics.jsonl", '{"step": "x"}\n', "metrics.jsonl:1: is damaged"),
        ("train", "metrics.jsonl", '{"step": 1}\noops\n{"step": 2}\n', "metrics.jsonl:2: is"),
        ("train", "checkpoints/step-abc/progress.json", "{}", "step-abc: is no checkpoint"),
        ("train", "checkpoints/step-99999999/progress.json", "[]", "step-99999999: checkpoint is"),
        ("simulate", "checkpoints/round-abc/round.json", "{}", "round-abc: is no checkpoint"),
        ("simulate", "checkpoints/round-999999/round.json", "[]", "round-999999: checkpoint is"),
    ],
)
def test_damage_in_a_run_folder_is_refused_by_resume_and_its_dry_run(
    verb: str, name: str, content: str, says: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*sound_run(work, Case("none", ())), *(["--no-compare"] * (verb == "simulate"))]
    assert main([verb, *arguments]) == 0
    put(f"run/{name}", content.encode())(work)
    before = contents(work)
    for more in (["--dry-run"], []):
        capsys.readouterr()
        assert main([verb, *arguments, "--resume", *more]) == 2
        assert says in capsys.readouterr().err
        assert contents(work) == before


def test_the_output_folder_may_be_in_the_home_folder(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(work / "home"))
    arguments = [*sound_run(work, Case("none", ())), "output.dir=~/runs/a"]
    assert main(["train", *arguments]) == 0
    assert (work / "home/runs/a/adapter").is_dir()
    assert not (work / "~").exists()


def test_a_run_goes_on_under_the_command_that_began_it(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, other in (BOTH, BOTH[::-1]):
        arguments = [*sound_run(work, Case("none", ())), f"output.dir={work / verb}"]
        assert main([verb, *arguments]) == 0
        before = contents(work)
        for more in (["--dry-run"], []):
            capsys.readouterr()
            assert main([other, *arguments, "--resume", *more]) == 2
            assert f"the run was started with `fedtune {verb}`" in capsys.readouterr().err
            assert contents(work) == before


def test_a_run_does_not_go_on_over_other_data(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in BOTH:
        arguments = [*sound_run(work, Case("none", ())), f"output.dir={work / verb}"]
        assert main([verb, *arguments]) == 0
        (work / "train.jsonl").write_bytes(with_row(3, completion="another"))
        before = contents(work)
        for more in (["--dry-run"], []):
            capsys.readouterr()
            assert main([verb, *arguments, "--resume", *more]) == 2
            assert "other data" in capsys.readouterr().err
            assert contents(work) == before


def test_a_run_does_not_go_on_over_an_edited_base_model(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = work / "model" / "model.safetensors"
    for verb in BOTH:
        shutil.rmtree(work / "model", ignore_errors=True)
        case = Case("none", (), settings=MODEL, setup=model_without())
        arguments = [*sound_run(work, case), f"output.dir={work / verb}"]
        assert main([verb, *arguments]) == 0
        sound = weights.read_bytes()
        weights.write_bytes(sound[:-4] + b"\1\0\0\0")
        before = contents(work)
        for more in (["--dry-run"], []):
            capsys.readouterr()
            assert main([verb, *arguments, "--resume", *more]) == 2
            err = capsys.readouterr().err
            assert f"the base model `{work}/model` is not what it was when the run began" in err
            assert contents(work) == before
        weights.write_bytes(sound)
        (work / "model" / "README.md").write_text("a word on it")  # no part of the model
        assert main([verb, *arguments, "--resume"]) == 0


def test_a_run_does_not_go_on_from_an_edited_adapter(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = sound_run(work, Case("none", ()))
    assert main(["train", *sound, f"output.dir={work / 'first'}"]) == 0
    start = work / "first" / "adapter"
    for verb in BOTH:
        arguments = [*sound, f"adapter.init_from={start}", f"output.dir={work / verb}"]
        assert main([verb, *arguments]) == 0
        weights = (start / "adapter_model.safetensors").read_bytes()
        (start / "adapter_model.safetensors").write_bytes(weights[:-4] + b"\1\0\0\0")
        before = contents(work)
        for more in (["--dry-run"], []):
            capsys.readouterr()
            assert main([verb, *arguments, "--resume", *more]) == 2
            err = capsys.readouterr().err
            assert f"the adapter `{start}` is not what it was when the run began" in err
            assert contents(work) == before
        (start / "adapter_model.safetensors").write_bytes(weights)
        (start / "README.md").write_text("a word on it")  # no part of what is loaded
        assert main([verb, *arguments, "--resume"]) == 0
