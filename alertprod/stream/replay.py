"""Alerts published again: marked as such, on a topic of their own, with the bytes they had."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from alertprod.errors import ConfigError
from alertprod.stream.dead_letter import REPLAY_HEADER
from alertprod.stream.records import OutgoingMessage

STORED_ALERT: Final = b"stored-alert"
"""Value of `REPLAY_HEADER` on an alert that was published before: a reader of two topics can tell which is which."""


def mark_replay(message: OutgoingMessage) -> OutgoingMessage:
    """Return a stored alert's message with one header more: key, value and what it had stay as they are."""
    return replace(message, headers=(*message.headers, (REPLAY_HEADER, STORED_ALERT)))


def check_replay_topic(topic: str, *, in_use: Collection[str]) -> None:
    """Make sure that nobody takes a replay for news.

    Raises
    ------
    ConfigError
        Raised if the topic is one of those that are in use.
    """
    if topic in in_use:
        problem = f"{topic!r} is in use: its readers would take a replay for news; replays have a topic of their own"
        raise ConfigError("command line", "topic", problem)
