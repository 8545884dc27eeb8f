"""The process that answers a SuperNode's messages: one, warm, of this installed release.

Flower starts a process for each message and has it run what the coordinator sent. This one asks the
SuperNode for its tasks as Flower's launcher does, compares the bundle's digest with that of its own
release, never opens it, and runs the node's app that is in memory already. All of Flower's insides
that a node needs (flwr==1.41.0, `flwr.supernode.runtime.run_clientapp`) are touched in this file.
"""

import hashlib
import logging
import threading
from collections.abc import Callable

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedtune.bundle import bundle_digest
from fedtune_client.node import RefusedError

App = Callable[[Message, Context], Message]
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_AWAY_SECONDS = 300.0
_PAUSE_SECONDS = 0.5
_log = logging.getLogger(__name__)


def serve(
    app: App,
    address: str,
    secret: bytes,
    stop: threading.Event,
    at_work: threading.Event,
    *,
    poll_seconds: float = 0.2,
) -> None:
    """Answer the tasks of the SuperNode whose Runtime API is at `address` until `stop`.

    `at_work` is set while there is one.

    `secret` is the one that the SuperNode was started with; without it no other process of this
    machine gets a task.
    """
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    allowed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)
    client = _client(address, [version, allowed], stop)
    try:
        while not stop.is_set():
            wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
            given = client.AcquireTask(wanted)
            if given.HasField("task") and given.token:
                at_work.set()
                _answer(app, address, given.token, stop)
                at_work.clear()
            else:
                stop.wait(poll_seconds)
    except httpx.TransportError:
        if not stop.is_set():
            raise
    finally:
        client.close()


def _answer(app: App, address: str, token: str, stop: threading.Event) -> None:
    """One task: pull its message, answer it, push the answer."""
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    client = _client(address, [version, RuntimeTokenHttpInterceptor(token)], stop)
    heartbeat = HeartbeatSender(lambda: _beat(client))
    heartbeat.start()
    context, state, details = None, SubStatus.FAILED, "the node could not answer"
    try:
        message, context, _, fab = pull_task_input(client)
        given = hashlib.sha256(fab.content).hexdigest()
        answer = answered(app, message, context, given)
        push_message(client, answer, context)
        failed = answer.has_error()
        state = SubStatus.FAILED if failed else SubStatus.COMPLETED
        details = str(answer.error.reason) if failed else ""
    except Exception:  # this message is lost; the node goes on, and the coordinator's deadline too
        _log.exception("a message could not be answered")
    try:
        push_task_output(client=client, context=context, sub_status=state, details=details)
    except Exception:  # the SuperNode has given it up meanwhile: its run was stopped
        _log.warning("a message's end was not heard", exc_info=True)
    if heartbeat.is_running:
        heartbeat.stop()
    client.close()


def _beat(client: RuntimeHttpClient) -> bool:
    """Say that the task is at work. Flower's own sends this process SIGINT where the SuperNode has
    given the task up; here its answer is in vain, and the node goes on.
    """
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.TransportError:
        return False
    except Exception:
        _log.warning("the SuperNode has given a task up")
    return True


def answered(app: App, message: Message, context: Context, bundle: str) -> Message:
    """The answer to `message`, an error where it is refused. `bundle` is the digest of what came.

    What goes out of any other error is its kind alone: its text may quote somebody's row.
    """
    if bundle != bundle_digest():
        _log.error("refused: the coordinator sent a bundle that is not of this release: %s", bundle)
        return _refused(message, "the bundle is not that of this silo's release; nothing of it ran")
    try:
        return app(message, context)
    except RefusedError as error:
        return _refused(message, str(error))
    except Exception as error:
        _log.exception("a message failed")
        return _refused(message, f"{type(error).__name__} (its text stays here)")


def _refused(message: Message, reason: str) -> Message:
    error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
    return Message(error, reply_to=message)


def _client(
    address: str, interceptors: list[ProtobufClientInterceptor], stop: threading.Event
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # on this machine's loopback, with a secret
        root_certificates=None,
        interceptors=interceptors,
        # Flower's own would end this process on a task that the SuperNode has given up
        retry_invoker=RetryInvoker(
            lambda: constant(_PAUSE_SECONDS),
            httpx.TransportError,
            None,
            _AWAY_SECONDS,
            # Python waits for Flower's threads before it ends
            should_giveup=lambda error: stop.is_set(),
        ),
    )
