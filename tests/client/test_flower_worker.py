"""The process that answers a SuperNode's messages."""

import socket
import threading

from fedtune_client.flower_worker import serve


def test_a_node_that_is_told_to_end_does_not_wait_for_a_supernode_that_is_gone() -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{gone.getsockname()[1]}"
        stop, failed = threading.Event(), []

        def work() -> None:
            try:
                serve(lambda message, context: message, address, b"s" * 32, stop, threading.Event())
            except Exception as error:
                failed.append(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(1)
        assert worker.is_alive()  # it may come back
        stop.set()
        worker.join(3)
        assert not worker.is_alive()
        assert not failed
