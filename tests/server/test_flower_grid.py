"""A reply through Flower's own Grid, of which some pieces or none have come."""

import time

from fedtune_client.app import reply
from fedtune_client.update import LocalUpdate
from fedtune_server.flower_grid import pieces_until
from fedtune_server.messages import instruction
from fedtune_simulations.grid import InProcessGrid
from flwr.app import Context, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid
from torch import zeros

from fedtune.tensors import TensorSet

STATE = TensorSet({"w": zeros(2)})


class SuperLink:
    """What the Grid speaks to: it has the first word of a silo's reply, and its pieces or not."""

    def __init__(self, whole: bool) -> None:
        def answer(message: Message, context: Context) -> Message:
            return reply(message, LocalUpdate(STATE, 1))

        silos = InProcessGrid(answer, ["a"])
        asked = silos.push_messages([Message(instruction(STATE, 1, "run"), 2, "train")])
        (given,) = silos.pull_messages(asked)
        vars(given.metadata)["_message_id"] = given.object_id
        self.tree, self.whole = get_object_tree(given), whole
        self.pieces = {k: piece.deflate() for k, piece in get_all_nested_objects(given).items()}
        self.first = message_to_proto(remove_content_from_message(given))

    def PullMessages(self, _: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        return PullAppMessagesResponse(messages_list=[self.first], message_object_trees=[self.tree])

    def PullObject(self, asked: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        content = self.pieces[asked.object_id] if self.whole else b""
        return PullObjectResponse(
            object_found=True, object_available=self.whole, object_content=content
        )

    def ConfirmMessageReceived(  # noqa: N802
        self, _: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()


def pulled(superlink: SuperLink, seconds: float) -> Message:
    grid = HttpGrid(token="one")
    grid.set_run(Run.create_empty(1))
    vars(grid)["_client"] = superlink
    with pieces_until(time.monotonic() + seconds):
        (message,) = grid.pull_messages(["asked"])
    return message


def test_a_reply_that_never_gets_whole_is_waited_for_until_the_deadline() -> None:
    began = time.monotonic()
    assert pulled(SuperLink(whole=False), 0.5).has_error()
    assert 0.5 <= time.monotonic() - began < 10


def test_a_reply_that_is_whole_counts_also_after_the_deadline() -> None:
    assert pulled(SuperLink(whole=True), -1.0).has_content()
