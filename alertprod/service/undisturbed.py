"""Imported for its effect, by the process that forks workers: signals to the whole group pass it by.

It ends with the daemon. Were it to end before, nobody would know with which status workers end.
"""

import signal

for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_IGN)
