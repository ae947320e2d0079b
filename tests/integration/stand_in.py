"""A small process for tests of the supervisor: answers /readyz on a port, or ends at once with an exit code."""

import http.server
import os
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = os.environ.get("STAND_IN", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main() -> None:
    what, argument = sys.argv[1], sys.argv[2]
    if what == "serve":
        print("stand-in serves", flush=True)
        http.server.HTTPServer(("127.0.0.1", int(argument)), Handler).serve_forever()
    elif what == "exit":
        sys.exit(f"stand-in ends with {argument}") if argument == "message" else sys.exit(int(argument))
    elif what == "exit-until":
        # Ends at once until a file exists.
        if not Path(argument).exists():
            sys.exit(7)
        http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()


main()
