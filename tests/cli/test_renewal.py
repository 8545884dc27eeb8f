"""Certificates and keys made anew, by the commands of the two runbooks."""

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from fedtune_client.joining import admission_of, roster_of
from fedtune_server.project import open_project

from fedtune.cli.main import main
from fedtune.identity.certificates import key_digest
from fedtune.identity.expiry import Expiry
from fedtune.identity.keys import load_keys


class Trial:
    """A coordinator and the node `north`, which was let in."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.server, self.node, self.capsys = folder / "trial", folder / "north", capsys
        said = self.fedtune(
            *("server", "init", self.server, "--federation", "Trial", "--host", "old.example")
        )
        consortium = said.split("consortium:")[1].splitlines()[0]
        said = self.fedtune(
            *("client", "init", self.node, "--silo", "north", "--consortium", consortium),
            *("--data", folder / "rows.jsonl"),
        )
        self.identity = said.split("another way:")[1].splitlines()[0]
        self.enroll()
        self.join()

    def fedtune(self, *arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return self.capsys.readouterr().out

    def enroll(self) -> None:
        request = self.node / "request.json"
        self.fedtune("server", "enroll", self.server, request, "--fingerprint", self.identity)

    def join(self) -> None:
        self.fedtune("client", "join", self.node, self.server / "admissions" / "north.json")

    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(
            (self.node / "certificates" / "node.crt").read_bytes()
        )

    def key_is_the_certificate_s(self) -> bool:
        return load_keys(self.node / "keys").tls.public_key() == self.certificate().public_key()

    def in_the_roster(self) -> bool:
        member = open_project(self.server).roster().member("north")
        return member is not None and member.tls_key == key_digest(self.certificate())


@pytest.fixture
def trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Trial:
    return Trial(tmp_path, capsys)


def test_a_node_goes_on_with_its_old_keys_until_the_answer_to_its_new_ones(trial: Trial) -> None:
    old = load_keys(trial.node / "keys")
    trial.fedtune("client", "renew", trial.node)
    assert admission_of(trial.node)  # still good: the node can start
    trial.enroll()
    trial.join()
    new = load_keys(trial.node / "keys")
    assert new.identity.public_key() == old.identity.public_key()
    assert new.tls.public_key() != old.tls.public_key()
    assert new.flower.public_key() != old.flower.public_key()
    assert not (trial.node / "keys.new").exists()
    assert trial.key_is_the_certificate_s()
    assert trial.in_the_roster()
    assert admission_of(trial.node)


def test_a_request_from_before_a_renewal_is_refused_and_changes_nothing(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, request = trial.node / "old.json", trial.node / "request.json"
    request.rename(old)
    monkeypatch.setattr("time.time", lambda: 0.0)  # a clock that was set back
    trial.fedtune("client", "renew", trial.node)
    trial.enroll()
    trial.join()
    before = (trial.server / "roster.json").read_bytes()
    told = "--fingerprint", trial.identity
    assert main(["server", "enroll", str(trial.server), str(old), *told]) == 2
    err = capsys.readouterr().err
    assert "it may be an old file" in err
    assert "`fedtune client renew`" in err
    assert (trial.server / "roster.json").read_bytes() == before
    assert trial.in_the_roster()


def test_keys_that_wait_are_not_made_anew_unasked(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.fedtune("client", "renew", trial.node)
    waiting = (trial.node / "keys.new" / "tls.pem").read_bytes()
    assert main(["client", "renew", str(trial.node)]) == 2
    assert "new keys wait here already" in capsys.readouterr().err
    assert (trial.node / "keys.new" / "tls.pem").read_bytes() == waiting


def test_a_new_certificate_for_the_old_keys_leaves_new_ones_waiting(trial: Trial) -> None:
    before = trial.certificate().serial_number
    trial.enroll()
    trial.fedtune("client", "renew", trial.node)
    trial.join()
    assert trial.certificate().serial_number != before
    assert trial.key_is_the_certificate_s()
    assert (trial.node / "keys.new").exists()


def test_keys_of_which_a_crash_left_only_the_new_ones_are_taken_up(trial: Trial) -> None:
    trial.fedtune("client", "renew", trial.node)
    trial.enroll()
    (trial.node / "keys").rename(trial.node / "gone")
    trial.join()
    assert trial.key_is_the_certificate_s()


def test_the_coordinator_s_certificate_is_renewed_for_the_hosts_of_its_settings(
    trial: Trial,
) -> None:
    place, settings = trial.server / "certificates", trial.server / "server.yaml"
    settings.write_text(settings.read_text().replace("old.example", "new.example"))
    before = (place / "server.pem").read_bytes()
    said = trial.fedtune("server", "renew", trial.server)
    made = x509.load_pem_x509_certificate((place / "server.crt").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["new.example"]
    assert f"good until {made.not_valid_after_utc:%Y-%m-%d}" in said
    assert (place / "server.pem").read_bytes() != before
    assert stat.S_IMODE((place / "server.pem").stat().st_mode) == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.crt", place / "server.pem")  # key and certificate fit


def test_a_node_s_folder_is_its_owner_s_alone_and_names_its_data_wherever_it_is_started(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(trial.node.stat().st_mode) == 0o700
    monkeypatch.chdir(tmp_path)
    consortium = "0123 " * 15 + "4567"
    trial.fedtune(
        *("client", "init", "south", "--silo", "south", "--consortium", consortium),
        *("--data", "rows.jsonl"),
    )
    assert f"- {tmp_path / 'rows.jsonl'}\n" in Path("south/node.yaml").read_text()


def test_a_folder_that_was_there_is_its_owner_s_alone_too(trial: Trial, tmp_path: Path) -> None:
    node, server = tmp_path / "west", tmp_path / "other"
    for folder in (node, server):
        folder.mkdir(mode=0o755)
    trial.fedtune(
        *("client", "init", node, "--silo", "west", "--consortium", "0123 " * 15 + "4567"),
        *("--data", "rows.jsonl"),
    )
    trial.fedtune("server", "init", server, "--federation", "Other", "--host", "other.example")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (node, server)] == [0o700] * 2


def test_a_key_that_is_in_its_safe_is_asked_for(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    (trial.server / "consortium.pem").rename(trial.server / "away")
    assert main(["server", "revoke", str(trial.server), "north"]) == 2
    assert "put it back from its safe for this command" in capsys.readouterr().err
    assert open_project(trial.server).roster().member("north") is not None


def test_an_older_admission_brings_no_older_roster_back(trial: Trial, tmp_path: Path) -> None:
    trial.enroll()
    newer = open_project(trial.server).roster()
    assert newer.version > roster_of(trial.node).version
    (trial.node / "roster.json").write_bytes((trial.server / "roster.json").read_bytes())
    trial.fedtune("client", "join", trial.node, trial.node / "admission.json")
    assert roster_of(trial.node) == newer


def test_a_certificate_s_end_is_told_once_a_day_while_there_is_time(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    expiry = Expiry(trial.node / "certificates" / "node.crt", "renew it")
    end, hour = expiry.good_until, datetime.timedelta(hours=1)
    assert end == trial.certificate().not_valid_after_utc
    told: list[list[str]] = []
    for hours in (24 * 31, 24 * 30 - 1, 24 * 30 - 2, 24 * 29 - 1, 1, -1, -2):
        caplog.clear()
        expiry.check(end - hours * hour)
        told.append([record.getMessage().split("node.crt ")[1] for record in caplog.records])
    assert told == [
        [],
        ["expires in 29 days; renew it"],
        [],
        ["expires in 28 days; renew it"],
        ["expires in 0 days; renew it"],
        ["has expired: nobody takes it; renew it"],
        [],
    ]
