"""A model hub on this machine: folders of models and datasets over the paths that huggingface_hub asks.

    with local_hub(folder) as (address, asked): ...     # folder/models/ORG/NAME, folder/datasets/ORG/NAME

asked: the path of each request so far.
"""

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+(?:/(.*))?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


@contextlib.contextmanager
def local_hub(folder):
    """The hub's address, for HF_ENDPOINT, and what it was asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        hub.folder, hub.asked = folder, []
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{hub.server_port}", hub.asked
        hub.shutdown()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer(urllib.parse.parse_qs(body).get("paths") or json.loads(body)["paths"])

    def log_message(self, *of_request):
        self.server.asked.append(self.path)

    def answer(self, paths=()):
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path)
        if found := API.fullmatch(path):
            kind, name, question, below = found.groups()
            self.tell(self.server.folder / kind / name, question, below or "", "recursive=true" in url.query, paths)
        elif found := FILE.fullmatch(path):
            self.give(self.server.folder / ("datasets" if found[1] else "models") / found[2], found[3])
        else:
            self.send(404)

    def tell(self, root, question, below, deep, paths):
        """What a repository holds."""
        if not (root / below).exists():
            return self.missing(root)
        if question == "tree":
            content = [entry(root, place) for place in sorted((root / below).glob("**/*" if deep else "*"))]
        elif question == "paths-info":
            content = [entry(root, root / place) for place in paths if (root / place).exists()]
        else:
            files = [str(place.relative_to(root)) for place in sorted(root.rglob("*")) if place.is_file()]
            content = {"id": root.name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        self.send(200, json.dumps(content).encode(), Content_Type="application/json")

    def give(self, root, name):
        """A file, or the part of it that is asked for."""
        if not (root / name).is_file():
            return self.missing(root)
        content, told = (root / name).read_bytes(), {"X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        told["ETag"] = f'"{entry(root, root / name)["oid"]}"'
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            told["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(206, content[first : last + 1], **told)
        self.send(200, content, **told)

    def missing(self, root):
        self.send(404, X_Error_Code="EntryNotFound" if root.is_dir() else "RepoNotFound")

    def send(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(root, place):
    """What the hub says of a file or folder in a repository."""
    path = str(place.relative_to(root))
    if place.is_dir():
        return {"type": "directory", "path": path, "size": 0, "oid": COMMIT}
    content = place.read_bytes()
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
