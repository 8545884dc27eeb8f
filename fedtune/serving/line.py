"""What both ends of the line between a node and the coordinator hold to."""

MAX_BODY_BYTES = 64 * 2**20
"""The largest body of a call; Flower cuts what is larger into pieces."""

SMALLEST_REPLY_BYTES = 2**20
"""What a silo may send in one reply while no run says of more."""

NODE_HEADER = "fedtune-node"
"""Header that names the process of a node: a number that it draws at its start."""

PIECES = {
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(2**20),
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "2",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "2",
}
"""Environment in which Flower cuts tensors into pieces of 1 MiB, of which two travel at a time.

A SuperNode gives a call 30 seconds and then begins it anew: two pieces of Flower's own 5 MiB would
never get through a line of 1 Mbit/s. What has arrived of a message is not sent again.
"""
