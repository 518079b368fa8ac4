"""Whether the gate of this container answers: exit 0, or 1 with a line that says why not."""

import os
import ssl
import sys
import urllib.request

host = os.environ["TIDEGATE_HOST"]
# What listens everywhere is asked here.
address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
scheme = "https" if os.environ.get("TIDEGATE_TLS_CERT") else "http"
# The certificate is for the gate's name, and this is the loopback.
trust = ssl.create_default_context()
trust.check_hostname = False
trust.verify_mode = ssl.CERT_NONE
url = f"{scheme}://{address}:{os.environ['TIDEGATE_PORT']}/livez"
try:
    urllib.request.urlopen(url, timeout=2, context=trust).close()  # noqa: S310
except OSError as error:
    sys.exit(f"{url}: {error}")
