"""A stub of the hub's HTTP API on this machine: repositories are made, files arrive, and it can be made to fail."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class HubServer:
    """`fail[(METHOD, end of the path)]` is a status to answer with, or `cut`, once or (a list) in turn."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        """Name → whether it is private."""
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.fail: dict[tuple[str, str], list[int | str]] = {}
        self.address: str | None = None
        """What it says its repositories' address is, where that is not its own."""
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """Status and JSON of an answer; the methods below are the parts of the hub's API that uploading uses."""
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("visibility") == "private" or asked.get("private") is True
            known = name in self.repositories
            self.repositories.setdefault(name, private)
            return (409 if known else 200), {"url": f"{self.address or self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            said = [
                {
                    "path": file["path"],
                    "uploadMode": mode[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return 200, {"files": said}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(held) for held in json.loads(body)["objects"]]}
        if path.startswith("/objects/"):
            self.objects[parts[-1]] = body
            return 200, {}
        if "/commit/" in path:
            self._commit("/".join(parts[2:4]), body)
            return 200, {"commitUrl": f"{self.url}/{'/'.join(parts[2:4])}/commit/{'a' * 40}", "commitOid": "a" * 40}
        if path.startswith("/api/models/"):
            name = "/".join(parts[2:4])
            if name not in self.repositories:
                return 404, {"error": "Repository not found"}
            return 200, {"id": name, "private": self.repositories[name], "sha": "a" * 40, "siblings": []}
        return 404, {"error": f"no such path: {path}"}

    def _object(self, held: dict) -> dict:
        if held["oid"] in self.objects:
            return held
        return held | {"actions": {"upload": {"href": f"{self.url}/objects/{held['oid']}", "header": {}}}}

    def _commit(self, name: str, body: bytes) -> None:
        import base64

        files = self.files.setdefault(name, {})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]


@contextmanager
def serve() -> Iterator[HubServer]:
    """The stub, on a free port of this machine."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.command, path))
            hub.tokens.add(self.headers.get("Authorization"))
            planned = next((v for (m, end), v in hub.fail.items() if m == self.command and end in path and v), None)
            failure = planned.pop(0) if planned else None
            if failure == "cut":
                self.connection.close()
                return
            if isinstance(failure, int):
                # a hub that repeats the token it was given
                status, said = failure, {"error": f"no, {self.headers.get('Authorization')}"}
            else:
                status, said = hub.answer(self.command, path, body)
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.handle_any()

        def do_POST(self) -> None:
            self.handle_any()

        def do_PUT(self) -> None:
            self.handle_any()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
