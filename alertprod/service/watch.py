"""A folder whose camera writes files: which of them are complete and were not sent yet.

A file is complete when it has not changed for a while: cameras write for seconds, and copies over a network pause. What
was sent is kept in a journal, so that a restart sends nothing twice; were the journal lost, the daemon would count
duplicates and do nothing more.
"""

import fnmatch
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alertprod.errors import DiskFull, StoreUnavailable

JOURNAL_NAME: Final = ".alertprod-sent.jsonl"
IMAGE_PATTERNS: Final = ("*.fits", "*.fit", "*.fits.gz", "*.fit.gz", "*.fz")

_Stamp = tuple[int, int]
"""Size and time of writing, nanoseconds."""


@dataclass(slots=True)
class _Seen:
    stamp: _Stamp
    since: float


class FolderWatch:
    """The files of a folder and those below it, each once.

    Parameters
    ----------
    folder
        The folder; it must be there.
    patterns
        Names of images, as the shell matches them. Hidden files are left alone.
    settle_s
        A file that has not changed for so long is complete.
    journal
        File that remembers what was sent; in the folder itself by default.
    clock
        Monotonic seconds.

    Raises
    ------
    StoreUnavailable
        Raised if the folder or the journal cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        patterns: tuple[str, ...] = IMAGE_PATTERNS,
        settle_s: float = 2.0,
        journal: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._patterns, self._settle_s, self._clock = folder, patterns, settle_s, clock
        self._journal = journal or folder / JOURNAL_NAME
        self._seen: dict[str, _Seen] = {}
        if not folder.is_dir():
            raise StoreUnavailable(f"{folder}: no such folder")
        self._done = self._read_journal()

    def scan(self) -> list[Path]:
        """Return the files that are complete and not done with, oldest first.

        Raises
        ------
        StoreUnavailable
            Raised if the folder cannot be read: look again later.
        """
        now, ready = self._clock(), []
        present: dict[str, _Seen] = {}
        for path, stamp in self._files():
            name = str(path.relative_to(self._folder))
            if self._done.get(name) == stamp:
                continue
            seen = self._seen.get(name)
            if seen is None or seen.stamp != stamp:
                seen = _Seen(stamp, now)
            present[name] = seen
            if now - seen.since >= self._settle_s and stamp[0] > 0:
                ready.append((stamp[1], path))
        self._seen = present  # files that are gone are forgotten
        return [path for _, path in sorted(ready)]

    def finish(self, path: Path) -> None:
        """Note that a file is done with, sent or useless, until it changes.

        Raises
        ------
        StoreUnavailable, DiskFull
            Raised if the journal cannot be written to.
        """
        name = str(path.relative_to(self._folder))
        seen = self._seen.pop(name)
        self._done[name] = seen.stamp
        line = json.dumps([name, *seen.stamp]) + "\n"
        try:
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            kind = DiskFull if error.errno == 28 else StoreUnavailable
            raise kind(f"{self._journal}: {error}") from error

    def _files(self) -> Iterator[tuple[Path, _Stamp]]:
        try:
            for path in self._folder.rglob("*"):
                parts = path.relative_to(self._folder).parts
                if any(part.startswith(".") for part in parts):
                    continue
                if not any(fnmatch.fnmatch(path.name, pattern) for pattern in self._patterns):
                    continue
                try:
                    facts = path.stat()
                except FileNotFoundError:  # renamed or removed since it was listed
                    continue
                if path.is_file():
                    yield path, (facts.st_size, facts.st_mtime_ns)
        except OSError as error:
            raise StoreUnavailable(f"{self._folder}: {error}") from error

    def _read_journal(self) -> dict[str, _Stamp]:
        done: dict[str, _Stamp] = {}
        try:
            text = self._journal.read_text(encoding="utf-8") if self._journal.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise StoreUnavailable(f"{self._journal}: {error}") from error
        for line in text.splitlines():
            try:
                name, size, written = json.loads(line)
            except (ValueError, TypeError):  # the last line of a process that was killed
                continue
            done[name] = (size, written)
        return done
