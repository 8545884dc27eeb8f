"""Loaded by Python at the start of a process that has this folder on its path: hostile parties.

A node is the product's own up to what it sends. Its reply to round N of the run `hostile` is the
Nth case; in the run `large` it is far too large. A coordinator sends each instruction twice. A
clock on the wall is off; libfaketime would do the same to a process, but breaks `time.sleep`.
"""

import datetime
import gzip
import io
import os
import pickle
import sys
import time
import types

CASES = (
    "not a number",
    "infinite",
    "wrong names",
    "wrong shapes",
    "wrong dtype",
    "compressed",
    "a pickle",
    "an array of objects",
    "no examples",
    "nothing",
)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["FEDTUNE_TEST_TRAP"],)


def changed(case, message, reply):
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    content = reply.content
    array = content["delta"]["tensors"]
    values = np.frombuffer(array.data, dtype="<f4").copy()
    names, shapes = (list(content["layout"][key]) for key in ("names", "shapes"))

    def sent(data, dtype=array.dtype, shape=array.shape, stype=array.stype):
        content["delta"] = ArrayRecord({"tensors": Array(dtype, shape, stype, data)})

    if case == "not a number":
        values[-1] = float("nan")
        sent(values.tobytes())
    elif case == "infinite":
        values[0] = -float("inf")
        sent(values.tobytes())
    elif case == "wrong names":
        content["layout"] = ConfigRecord({"names": ["../../evil", *names[1:]], "shapes": shapes})
    elif case == "wrong shapes":
        content["layout"] = ConfigRecord({"names": names, "shapes": ["9999x-1", *shapes[1:]]})
    elif case == "wrong dtype":
        sent(values.astype("<f8").tobytes(), dtype="float64")
    elif case == "compressed":
        sent(gzip.compress(bytes(64 * 2**20)))
    elif case == "a pickle":
        sent(pickle.dumps(Trap()))
    elif case == "an array of objects":
        out = io.BytesIO()
        np.save(out, np.array([Trap()], dtype=object), allow_pickle=True)
        sent(out.getvalue(), stype="numpy.ndarray")
    elif case == "no examples":
        content["numbers"] = MetricRecord({"examples": -5, "loss": float("nan")})
    elif case == "nothing":
        return type(reply)(RecordDict(), reply_to=message)
    elif case == "too large":
        sent(array.data * 1000, shape=(array.shape[0] * 1000,))
    return reply


def be_a_hostile_node():
    from fedtune_client.node import Node, read_asked

    answer = Node.answer

    def hostile(self, message):
        run, number = read_asked(message).run, message.content["round"]["number"]
        reply = answer(self, message)
        case = {"hostile": CASES[min(number, len(CASES)) - 1], "large": "too large"}.get(run)
        return reply if case is None else changed(case, message, reply)

    Node.answer = hostile


def be_a_coordinator_that_repeats_itself():
    import fedtune_server.collect

    push = fedtune_server.collect._push

    def twice(grid, message):
        push(grid, message)
        told = message.metadata
        again = type(message)(  # the same one would have the same id, and Flower knows that
            message.content,
            told.dst_node_id,
            told.message_type,
            ttl=told.ttl,
            group_id=told.group_id,
        )
        return push(grid, again)

    fedtune_server.collect._push = twice


def have_a_wrong_clock(off):
    """For all that reads the time of day: Flower, messages' ages, and the node's own signatures."""
    import flwr.supercore.date

    true_time, true_now = time.time, flwr.supercore.date.now
    time.time = lambda: true_time() + off
    flwr.supercore.date.now = lambda: true_now() + datetime.timedelta(seconds=off)

    import fedtune_client.connector

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=off)

    shown = types.SimpleNamespace(
        **{name: getattr(datetime, name) for name in ("UTC", "timedelta")}, datetime=Wrong
    )
    fedtune_client.connector.datetime = shown


started = " ".join(sys.orig_argv)
if "FEDTUNE_TEST_TRAP" in os.environ and " client start " in f"{started} ":
    be_a_hostile_node()
if "FEDTUNE_TEST_TWICE" in os.environ and "flwr-serverapp" in started:
    be_a_coordinator_that_repeats_itself()
if "FEDTUNE_TEST_CLOCK" in os.environ:
    have_a_wrong_clock(float(os.environ["FEDTUNE_TEST_CLOCK"]))
