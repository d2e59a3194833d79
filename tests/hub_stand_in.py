"""A stand-in for the Hugging Face hub on this machine, so that tests ask no real host."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubStandIn:
    """A running hub; `root` holds models/OWNER/NAME/FILE and datasets/OWNER/NAME/FILE."""

    root: Path
    address: str
    requests: list[str] = field(default_factory=list)
    """Such as "GET /api/models/someone/tiny-gpt2"."""

    def add(self, kind: str, name: str, files: Iterable[Path]) -> None:
        """Add a repository of kind "models" or "datasets"."""
        folder = self.root / kind / name
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)

    def environment(self, cache: Path) -> dict[str, str]:
        """Return what sends a process to this hub and nowhere else, with a hub cache of its own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            # A request to another host would come here too, as CONNECT, and be refused.
            "HTTP_PROXY": self.address,
            "HTTPS_PROXY": self.address,
            "ALL_PROXY": self.address,
            "NO_PROXY": "127.0.0.1",
        }


class _Server(ThreadingHTTPServer):
    hub: HubStandIn


@contextmanager
def running_hub(root: Path) -> Iterator[HubStandIn]:
    """Serve the repositories below `root` on a free port; no request may be for another host."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = server.hub = HubStandIn(root, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not [request for request in hub.requests if request.startswith("CONNECT")]


class _Handler(BaseHTTPRequestHandler):
    """Answers what huggingface_hub and datasets ask for (https://huggingface.co/docs/hub/api)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        match unquote(urlsplit(self.path).path).strip("/").split("/"):
            case ["api", ("models" | "datasets") as kind, owner, name, *rest]:
                self._answer_api(kind, f"{owner}/{name}", rest, body)
            case ["datasets", owner, name, "resolve", _, file]:
                self._answer_file("datasets", f"{owner}/{name}", file)
            case [owner, name, "resolve", _, file]:
                self._answer_file("models", f"{owner}/{name}", file)
            case _:
                self._refuse("EntryNotFound")

    do_HEAD = do_POST = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    @property
    def _hub(self) -> HubStandIn:
        return cast(_Server, self.server).hub

    def _answer_api(self, kind: str, name: str, rest: list[str], body: str) -> None:
        folder = self._hub.root / kind / name
        if not folder.is_dir():
            self._refuse("RepoNotFound")
            return
        files = sorted(folder.iterdir())
        match rest:
            case [] | ["revision", _]:
                siblings = [{"rfilename": file.name} for file in files]
                self._send_json({"id": name, "sha": COMMIT, "tags": [], "siblings": siblings})
            case ["tree", _]:
                self._send_json([_facts(file) for file in files])
            case ["paths-info", _]:
                paths = parse_qs(body).get("paths", [])
                self._send_json([_facts(file) for file in files if file.name in paths])
            case _:
                self._refuse("EntryNotFound")

    def _answer_file(self, kind: str, name: str, file_name: str) -> None:
        folder = self._hub.root / kind / name
        file = folder / file_name
        if not folder.is_dir():
            self._refuse("RepoNotFound")
        elif not file.is_file():
            self._refuse("EntryNotFound")
        else:
            headers = {"ETag": f'"{_facts(file)["oid"]}"', "X-Repo-Commit": COMMIT}
            self._send(HTTPStatus.OK, file.read_bytes(), headers)

    def _send_json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT}
        self._send(HTTPStatus.NOT_FOUND, b"", headers)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _facts(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file.name, "size": len(content), "oid": oid}
