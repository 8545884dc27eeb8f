"""Flower 1.41's own SecAgg+ clients, asked message by message as a coordinator would ask them."""

from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.supercore.task_identity import TaskIdentity

CLIPPING, TARGET, MODULUS = 8.0, 1 << 22, 1 << 32  # what Flower's workflow has by default
_MAX_WEIGHT = 1000.0

Keys = dict[str, list[bytes]]


@dataclass
class FlowerSilo:
    """One client. Each method is a stage: what the coordinator sends, and what comes back."""

    node: int
    _context: Context = field(init=False)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._context = Context(
            run_id=1, node_id=self.node, node_config={}, state=RecordDict(), run_config={}
        )

    def setup(self, silos: int, threshold: int) -> list[bytes]:
        """Its two public keys."""
        keys = self._ask(
            Stage.SETUP,
            {
                Key.SAMPLE_NUMBER: silos,
                Key.SHARE_NUMBER: silos,
                Key.THRESHOLD: threshold,
                Key.CLIPPING_RANGE: CLIPPING,
                Key.TARGET_RANGE: TARGET,
                Key.MOD_RANGE: MODULUS,
                Key.MAX_WEIGHT: _MAX_WEIGHT,
            },
        )
        return [keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2]]

    def share(self, keys: Keys) -> dict[int, bytes]:
        """Its encrypted shares, by receiver."""
        said = self._ask(Stage.SHARE_KEYS, dict(keys))
        return dict(zip(said[Key.DESTINATION_LIST], said[Key.CIPHERTEXT_LIST], strict=True))

    def mask(self, shares: dict[int, bytes], vector: np.ndarray) -> list[bytes]:
        """Its masked parameters: weight and vector, each as a NumPy file."""
        asked = {Key.CIPHERTEXT_LIST: list(shares.values()), Key.SOURCE_LIST: list(shares)}
        said = self._ask(Stage.COLLECT_MASKED_VECTORS, asked, vector)
        return list(said[Key.MASKED_PARAMETERS])

    def unmask(self, alive: list[int], dropped: list[int]) -> list[tuple[int, bytes]]:
        """The shares that it reveals, and whose they are."""
        asked = {Key.ACTIVE_NODE_ID_LIST: alive, Key.DEAD_NODE_ID_LIST: dropped}
        said = self._ask(Stage.UNMASK, asked)
        return list(zip(said[Key.NODE_ID_LIST], said[Key.SHARE_LIST], strict=True))

    def _ask(self, stage: str, said: dict, vector: np.ndarray | None = None) -> ConfigRecord:
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({Key.STAGE: stage, **said})})
        message = Message(content=content, dst_node_id=self.node, message_type="train")

        def trained(asked: Message, _: Context) -> Message:
            parameters = ndarrays_to_parameters([vector])
            result = FitRes(Status(Code.OK, ""), parameters, int(_MAX_WEIGHT), {})
            return Message(fitres_to_recorddict(result, keep_input=True), reply_to=asked)

        reply = secaggplus_mod(message, self._context, trained)
        return reply.content.config_records[RECORD_KEY_CONFIGS]


def shared(silos: list[FlowerSilo], threshold: int) -> tuple[Keys, dict[int, dict[int, bytes]]]:
    """An honest coordinator's first two stages: all keys, and for each silo the shares it holds."""
    keys = {str(silo.node): silo.setup(len(silos), threshold) for silo in silos}
    dealt = {silo.node: silo.share(keys) for silo in silos}
    return keys, {
        silo.node: {src: shares[silo.node] for src, shares in dealt.items() if silo.node in shares}
        for silo in silos
    }
