"""HTTP on this machine: a NIfTI file in, its translation out: python serve.py [PORT] [MODEL].

curl --data-binary @t1.nii.gz http://127.0.0.1:8765/t1.nii.gz -o t1_fine.nii.gz

It listens on the loopback interface and refuses web pages; every account of this machine reaches it.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scorefusion import Pipeline, ScoreFusionError

LARGEST = 512 * 2**20


class Handler(BaseHTTPRequestHandler):
    """Translate the body of a POST request; the path's ending names the format."""

    pipeline: Pipeline
    one_at_a_time = threading.Lock()
    timeout = 60

    def do_POST(self) -> None:
        """Answer with the translated file, or with one line that says what is wrong."""
        own = self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")
        if not own or "Origin" in self.headers:
            return self._answer(403, b"this server answers programs on 127.0.0.1, no web pages\n")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            return self._answer(413, b"send a file of at most 512 MiB with its Content-Length\n")
        ending = ".nii.gz" if self.path.endswith(".gz") else ".nii"
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, f"scan{ending}"), Path(folder, f"translated{ending}")
            source.write_bytes(self.rfile.read(int(length)))
            try:
                with self.one_at_a_time:
                    self.pipeline(source).save(target)
            except ScoreFusionError as error:
                return self._answer(400, f"{error}\n".replace(f"{folder}/", "").encode())
            self._answer(200, target.read_bytes(), "application/octet-stream")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port, model = [*sys.argv[1:], *("8765", "t1-sr4")[len(sys.argv) - 1 :]]
    Handler.pipeline = Pipeline(model)
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
