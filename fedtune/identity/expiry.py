"""A certificate's last day, told in the log while there is time to renew it."""

import datetime
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509

WARNED_DAYS = 30
_log = logging.getLogger(__name__)


@dataclass
class Expiry:
    """Of the certificate that `file` holds at first: a running process goes on with that one.

    `mend` says how it is renewed.
    """

    file: Path
    mend: str
    _told: int | None = field(default=None, init=False)

    @cached_property
    def good_until(self) -> datetime.datetime:
        """Its end. Raises ValueError if the file holds no certificate."""
        return x509.load_pem_x509_certificate(self.file.read_bytes()).not_valid_after_utc

    def check(self, now: datetime.datetime | None = None) -> None:
        """Say once a day that it ends within 30 days, or has ended. `now` has a time zone."""
        left = self.good_until - (now or datetime.datetime.now(datetime.UTC))
        if left.days < WARNED_DAYS and left.days != self._told:
            self._told = left.days
            if left.days < 0:
                _log.error("%s has expired: nobody takes it; %s", self.file, self.mend)
            else:
                _log.warning("%s expires in %d days; %s", self.file, left.days, self.mend)
