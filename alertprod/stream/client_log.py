"""What librdkafka says, without its repetitions: a broker that is away is several lines a second from each client."""

import logging
import threading
import time
from typing import Final

from confluent_kafka import KafkaError

QUIET_S: Final = 30.0
"""One line in this time of each kind and client: enough to see that it lasts."""


class RepeatFilter(logging.Filter):
    """Lets a line through that has not been said for `QUIET_S`, and says how many were held back since.

    Lines are the same when their format and first two arguments are: for librdkafka's these are facility and client.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._said: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about one line; see `logging.Filter`."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        kind = (record.msg, *arguments[:2])
        now = time.monotonic()
        with self._lock:
            said_at, held_back = self._said.get(kind, (-QUIET_S, 0))
            if now - said_at < QUIET_S:
                self._said[kind] = (said_at, held_back + 1)
                return False
            self._said[kind] = (now, 0)
        if held_back:
            record.msg, record.args = f"{record.getMessage()} (and {held_back} more like it)", ()
        return True


client_log: Final = logging.getLogger("alertprod.stream.librdkafka")
"""Given to every client; librdkafka's own threads write to it."""

client_log.addFilter(RepeatFilter())


def log_client_error(error: KafkaError) -> None:
    """Log an error that librdkafka reports and goes on from by itself: the error callback of every client."""
    client_log.warning("%s: %s", error.name(), error.str())
