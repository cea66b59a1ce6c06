"""Exit status 0 while the daemon in this container is alive, as /livez says."""

import os
import sys
import urllib.error
import urllib.request

port = os.environ.get("ALERTPROD_HTTP__PORT", "9117")
try:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=4) as answer:
        sys.stdout.write(answer.read().decode())
except urllib.error.HTTPError as error:
    with error:
        sys.stdout.write(error.read().decode())
    sys.exit(1)
except OSError as error:
    sys.stdout.write(f"{error}\n")
    sys.exit(1)
