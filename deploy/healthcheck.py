"""The health check of the service's image: exit status 0 when the service is ready."""

from __future__ import annotations

import http.client
import os
import sys

_SECONDS = 2.5


def main() -> int:
    """Ask /health/ready on this machine."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("CTR_PORT", "8000")), timeout=_SECONDS
    )
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        print(answer.read().decode(errors="replace"))
    except OSError as error:
        print(f"the service does not answer: {error}")
        return 1
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
