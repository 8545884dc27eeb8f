"""Bad input through the command line: status 2, one message, no traceback, nothing written."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from fedtune.cli.main import main

# (what the file holds, what the message must say)
FILES = [
    ("", "empty"),
    ("[" * 3000, "nested too deeply"),
    ("a: " + "{a: " * 3000, "nested too deeply"),
    ("base: &b {learning_rat: 1}\ntraining:\n  <<: *b\n", "run.yaml:1: training.learning_rat: unk"),
    ("data: {train_files: [*.jsonl]}\n", "in quotes: ['*.jsonl']"),
    ('task: {labels: ["\\ud800"]}\n', "task.labels: half a surrogate pair"),
    ("- a\n", "holds a list"),
    ("words\n", "single value"),
    ("model: [1\n", "run.yaml:"),
    ("seed: 1\nseed: 2\n", "duplicate key"),
    ("model: {path: a, path: b}\n", "duplicate key"),
    ("modle: {}\n", "did you mean `model`?"),
    ("learning_rate: 1\n", "did you mean `training.learning_rate`?"),
    ("training: {learning_rat: 1}\n", "did you mean `training.learning_rate`?"),
    ("adapter: {lora_rank: 4}\n", "adapter.lora_rank: unknown field"),
    ("training:\n", "training: nothing (null)"),
    ("training: 3\n", "section"),
    ("seed: -1\n", "greater than or equal to 0"),
    ("seed: 1.5\n", "whole number"),
    ("seed: 4294967296\n", "less than"),
    ("training: {batch_size: 0}\n", "greater than 0"),
    ("training: {batch_size: '8'}\n", "whole number"),
    ("training: {learning_rate: high}\n", "a number"),
    ("training: {optimizer: adam}\n", "did you mean `adamw`?"),
    ("training: {precision: fp16}\n", "training.precision"),
    ("training: {micro_batch_size: 32}\n", "larger than"),
    ("training: {early_stopping_patience: 2}\n", "eval_steps"),
    ("training: {eval_steps: 2}\n", "`data.validation_fraction` (0.1, say)"),
    ("data: {validation_fraction: 0.1}\n", "needs `training.eval_steps`"),
    ("data: {validation_fraction: 0.0}\n", "greater than 0"),
    ("data: {validation_files: [v.jsonl]}\n", "need `source: files`"),
    (
        "data: {source: files, train_files: [a.jsonl], validation_files: [b.jsonl]}\n",
        "`data.validation_files` needs `training.eval_steps`",
    ),
    (
        "data: {source: files, train_files: [a.jsonl], validation_files: [b.jsonl], "
        "validation_fraction: 0.1}\n",
        "can't be used with `validation_files`",
    ),
    ("training: {momentum: 0.9}\n", "optimizer: sgd"),
    ("adapter: {lora_r: 0}\n", "adapter.lora_r"),
    ("adapter: {lora_dropout: 1.0}\n", "less than 1"),
    ("adapter: {method: lorra}\n", "did you mean `lora`?"),
    ("adapter: {method: ia3, use_dora: true}\n", "needs `method: lora`"),
    ("adapter: {target_modules: 3}\n", "text or a list"),
    ("data: {source: files}\n", "data.train_files"),
    ("data: {source: hub}\n", "data.hub_id"),
    ("data: {train_files: [a.jsonl]}\n", "source: files"),
    ("data: {train_files: a.jsonl}\n", "a list"),
    ("data: {test_fraction: 1.0}\n", "less than 1"),
    ("data: {columns: {promt: q}}\n", "did you mean `data.columns.prompt`?"),
    ("task: {labels: [a]}\n", "sequence_classification"),
    ("task: {name: sequence_classification, packing: true}\n", "causal_lm"),
    ("model: {load_in_4bit: yes}\n", "true or false"),
    ("model: {load_in_4bit: true}\nadapter: {method: full}\n", "needs an adapter"),
    ("federation: {aggregation: svd}\nadapter: {freeze_a: true}\n", "freeze_a"),
    ("federation: {silo_ranks: {a: 4}}\n", "aggregation: svd"),
    ("training: {learning_rate: .inf}\n", "training.learning_rate"),
    ("task: {max_length: 1}\n", "greater than or equal to 2"),
    ("training: {num_epochs: .inf}\n", "training.num_epochs"),
    ("federation: {round_timeout_seconds: .inf}\n", "federation.round_timeout_seconds"),
    ("adapter: {lora_alpha: .nan}\n", "adapter.lora_alpha"),
    ("training: {max_steps: 2, num_epochs: 3}\n", "`num_epochs` needs `max_steps: null`"),
    ("model: {revision: main}\n", "`revision` can't be used with `path: embedded`"),
    ("data: {hub_split: test}\n", "`hub_split` needs `source: hub`"),
    ("data: {source: hub, hub_id: a, embedded_patients: 9}\n", "needs `source: embedded`"),
    (
        "data: {source: files, train_files: [a], test_files: [b], test_fraction: 0.2}\n",
        "`test_fraction` can't be used with `test_files`",
    ),
    (
        "task: {name: sequence_classification, loss_on: all}\n",
        "`loss_on` needs `name: causal_lm`",
    ),
    ("task: {name: sequence_classification, labels: [a, a]}\n", "names a label twice"),
    ("federation: {partition: {silos: 3}}\n", "needs `by: iid or dirichlet or quantity`"),
    ("federation: {partition: {by: iid, alpha: 3.0}}\n", "needs `by: dirichlet or quantity`"),
    ("federation: {partition: {by: iid, column: a}}\n", "`column` needs `by: column`"),
    ("federation: {server_optimizer: {learning_rate: 0.5}}\n", "not `name: none`"),
    (
        "federation: {server_optimizer: {name: fedavgm, beta1: 0.5}}\n",
        "`beta1` needs `name: fedadam`",
    ),
    ("federation: {server_optimizer: {name: fedadam, beta1: 1.0}}\n", "less than 1"),
    ("federation: {rounds: 0}\n", "federation.rounds"),
    ("federation: {fraction: 0}\n", "federation.fraction"),
    ("privacy: {mode: distributed}\n", "needs one of `target_epsilon` and `noise_multiplier`"),
    ("privacy: {epsilon: 1}\n", "privacy.epsilon: unknown field"),
    ("secure_aggregation: {max_weight: 9}\n", "`max_weight` needs `enabled: true`"),
    ("secure_aggregation: true\n", "`secure_aggregation.bound` is to be set"),
    (
        "secure_aggregation: {enabled: true, bound: 0.1}\n"
        "privacy: {mode: central, noise_multiplier: 1.0}\n",
        "clips single deltas",
    ),
    ("federation: {hostile_silos: 2}\n", "needs `aggregation: trimmed_mean or multi_krum`"),
    ("federation: {norm_bound: 2.0}\n", "needs `aggregation: norm_bounding`"),
    ("federation: {aggregation: norm_bounding}\n", "needs `norm_bound`"),
    ("federation: {aggregation: norm_bounding, norm_bound: 0.0}\n", "greater than 0"),
    ("federation: {aggregation: median}\n", "`min_silos` of at least 3"),
    (
        "federation: {aggregation: trimmed_mean, hostile_silos: 2, min_silos: 4}\n",
        "`min_silos` of at least 5 to outvote 2 hostile, not 4",
    ),
    (
        "federation: {aggregation: multi_krum, hostile_silos: 2, min_silos: 6}\n",
        "`min_silos` of at least 7",
    ),
    *(
        (
            f"secure_aggregation: true\nfederation: {{aggregation: {rule}}}\n",
            f"`federation.aggregation: {rule}` needs single deltas, which "
            "`secure_aggregation` hides",
        )
        for rule in ("fedex", "svd", "median", "trimmed_mean", "multi_krum", "norm_bounding")
    ),
    *(
        (
            f"secure_aggregation: true\nfederation: {{delta_encoding: {encoding}}}\n",
            f"`federation.delta_encoding: {encoding}` can't be used with `secure_aggregation`",
        )
        for encoding in ("bfloat16", "int8")
    ),
    (
        "secure_aggregation: true\nfederation: {aggregation: norm_bounding}\n",
        "each silo bounds its own",
    ),
    *(
        (
            "privacy: {mode: central, noise_multiplier: 1.0}\n"
            f"federation: {{aggregation: {rule}, min_silos: 5{more}}}\n",
            f"needs `federation.aggregation: fedavg`, not `{rule}`",
        )
        for rule, more in (
            *((name, "") for name in ("median", "trimmed_mean", "multi_krum")),
            ("norm_bounding", ", norm_bound: 1.0"),
        )
    ),
]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(("text", "says"), FILES)
def test_a_bad_config_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    err = refused(capsys, "config", "show", str(path))
    assert says in err
    assert str(path) in err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.train_files=[*.jsonl]", "in quotes: ['*.jsonl']"),
        ("data.columns.prompt=#x", "`#` begins a comment"),
        ("data.columns.prompt=a #x", "`#` begins a comment"),
        ("task.labels=[a, b] # two", "`#` begins a comment"),
    ],
)
def test_what_yaml_takes_otherwise_is_refused(
    capsys: pytest.CaptureFixture[str], override: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 0\n")
    assert says in refused(capsys, "config", "show", str(path), override)
    assert main(["config", "show", str(path), "data.columns.prompt='a #x'"]) == 0
    assert '"a #x"' in capsys.readouterr().out


def test_a_starter_file_that_can_not_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("/proc/x.yaml", str(tmp_path / ("x" * 300)), str(tmp_path / "none" / "x.yaml")):
        assert "can't be written" in refused(capsys, "config", "init", "lora", "--out", name)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedtune {importlib.metadata.version('fedtune')}\n"


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1", "seed=[1", "trainin.seed=1"])
def test_a_bad_override_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 0\n")
    assert "command line" in refused(capsys, "config", "show", str(path), override)


def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no such file" in refused(capsys, "config", "show", str(tmp_path / "none.yaml"))
    assert "is a folder" in refused(capsys, "config", "show", str(tmp_path))
    assert "UTF-8" in refused(capsys, "config", "show", str(tmp_path / "binary.yaml"))
    assert "unknown case" in refused(capsys, "config", "init", "nonsense")
    assert "nope" in refused(capsys, "data", "inspect", str(tmp_path / "nope.jsonl"))
    refused(capsys, "trian")


def test_a_real_process_exits_2_with_one_message(tmp_path: Path) -> None:
    code = "import sys; from fedtune.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "config", "show", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fedtune: ")
    assert "Traceback" not in done.stderr


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom fedtune.cli.main import main\nassert main(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'flwr', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
