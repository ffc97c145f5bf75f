"""A Hugging Face hub on this machine: it serves checkpoint folders by name, and refuses like one.

huggingface_hub asks it over HTTP, as it would the real one, once its `constants.ENDPOINT` is set.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40
# What the hub answers for models that cannot be downloaded: status and `X-Error-Code`.
REFUSALS = {
    "nobody/nothing": (404, "RepoNotFound"),
    "somebody/gated": (403, "GatedRepo"),
    "somebody/down": (503, ""),
}


@contextmanager
def hub(models: dict[str, Path]) -> Iterator[str]:
    """Serve the folders `models` under their names; yields the endpoint."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *arguments: object) -> None:
            pass

        def _answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            for name, (status, code) in REFUSALS.items():
                if path.startswith((f"/{name}/", f"/api/models/{name}")):
                    if path == f"/api/models/{name}" and code == "GatedRepo":
                        return self._send(200, json.dumps({"id": name}).encode())
                    return self._send(status, b"{}", {"X-Error-Code": code})
            for name, folder in models.items():
                if path.startswith(f"/api/models/{name}"):
                    return self._send(200, self._listing(name, folder, path))
                if path.startswith(f"/{name}/resolve/"):
                    file = folder / path.split("/", 5)[5]
                    if not file.is_file():
                        return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                    body = file.read_bytes()
                    etag = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
                    return self._send(200, body, etag | {"X-Repo-Commit": COMMIT}, with_body)
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _listing(self, name: str, folder: Path, path: str) -> bytes:
            files = sorted(file.name for file in folder.iterdir())
            if "/tree/" in path:
                entries = [
                    {
                        "type": "file",
                        "path": f,
                        "size": (folder / f).stat().st_size,
                        "oid": "0" * 40,
                    }
                    for f in files
                    if path.endswith(COMMIT) or path.endswith("main")
                ]
                return json.dumps(entries).encode()
            siblings = [{"rfilename": f} for f in files]
            return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, with_body=True
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body and self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
