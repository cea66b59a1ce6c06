"""Imported for its effect, by the process that forks workers: a supervisor's SIGTERM to the whole group passes it by.

Were it to end, the daemon would take the workers that are finishing their exposures for dead. It ends with the daemon.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
