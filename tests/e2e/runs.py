"""Runs of some seconds, begun and waited for."""

from tests.e2e.conftest import Federation, until

ENDED = ("finished", "failed", "stopped")
RUN = """\
task: {max_length: 48}
training: {max_steps: 20, batch_size: 8}
federation: {rounds: 3, round_timeout_seconds: 150}
"""


def begin(federation: Federation, name: str, **changes: str) -> None:
    """Start a run of three rounds of some seconds and don't wait."""
    file = federation.folder / f"{name}.yaml"
    file.write_text(RUN)
    given = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    federation.said("server", "run", federation.server, file, *given, "--name", name, "--detach")


def end(federation: Federation, name: str, state: str = "finished") -> dict[str, object]:
    """Wait until a run has ended, which must be in `state`."""
    told = dict(
        until(
            lambda: (told := federation.status(name)).get("state") in ENDED and told,
            f"{name} to end",
        )
    )
    assert told["state"] == state, told
    return told


def adapter(federation: Federation, name: str) -> bytes:
    return (
        federation.server / "runs" / name / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
