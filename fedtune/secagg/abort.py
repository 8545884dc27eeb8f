"""Why a party's part in a round ended."""

from typing import Literal

Reason = Literal[
    "terms",  # the round's terms are not what this party agrees to
    "order",  # a step that isn't due: repeated, skipped or after the end
    "malformed",  # a message that can't be read, or of the wrong size
    "context",  # a message of another round, run or attempt
    "signature",  # not signed by the rostered identity
    "members",  # a silo that isn't in the terms, is named twice, or is missing where it must be
    "too few",  # fewer silos than the threshold or quorum
    "share",  # a share that can't be decrypted or that fits no secret
    "sets",  # survivor sets that contradict what was said before
    "noise",  # a share of noise that was drawn before, for other sums
    "range",  # a sum that no honest vectors have
]


class AbortError(ValueError):
    """This party takes no further part in the round. `reason` is fit for logs and tests; the text
    says who or what, and holds no secret.
    """

    def __init__(self, reason: Reason, told: str) -> None:
        super().__init__(f"{reason}: {told}")
        self.reason = reason
