"""A model hub on loopback: what `huggingface_hub` asks of one, over folders."""

import contextlib
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "c0ffee" * 6 + "cafe"


@contextlib.contextmanager
def served_hub(folder: Path):
    """Serve `folder/OWNER/NAME` as the model OWNER/NAME; give the address and what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(sends=False)

        def do_GET(self):
            self.answer(sends=True)

        def answer(self, *, sends):
            path = self.path.partition("?")[0].strip("/")
            asked.append(path)
            parts = path.removeprefix("api/models/").split("/")
            model = folder / "/".join(parts[:2])
            if path.startswith("api/models/") and model.is_dir():
                names = sorted(one.name for one in model.iterdir())
                if "tree" in parts:
                    facts = [
                        {
                            "type": "file",
                            "path": name,
                            "oid": digest(model / name)[:40],
                            "size": (model / name).stat().st_size,
                        }
                        for name in names
                    ]
                else:
                    facts = {
                        "id": "/".join(parts[:2]),
                        "sha": COMMIT,
                        "siblings": [{"rfilename": name} for name in names],
                    }
                self.send(200, json.dumps(facts).encode(), sends, {})
            elif len(parts) == 5 and parts[2] == "resolve" and (model / parts[4]).is_file():
                content = (model / parts[4]).read_bytes()
                headers = {"ETag": f'"{digest(model / parts[4])}"', "X-Repo-Commit": COMMIT}
                self.send(200, content, sends, headers)
            else:
                self.send(404, b"{}", sends, {"X-Error-Code": "RepoNotFound"})

        def send(self, status, content, sends, headers):
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, text)
            self.end_headers()
            if sends:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
