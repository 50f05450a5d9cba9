"""Image sets fetched from a hub: a server on 127.0.0.1 that answers as it does, and the real client."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from adamwprune.data import fashion_mnist
from adamwprune.data.imaging.shipped import read_images
from tests.helpers.image_sets import write_hub

pytest.importorskip("datasets")

HUB = fashion_mnist.HUB
CODE = """
from adamwprune.data import fashion_mnist
from adamwprune.data.imaging import hub_images
train, test, origin = hub_images.read_hub(fashion_mnist.HUB, None)
print(train.images.shape, test.images.shape, train.labels.tolist(), int(train.images.sum()), origin)
"""


@pytest.fixture
def server(tmp_path):
    """Serves a folder as the hub serves a data set; `asked` are the paths, `refuse` a status to give."""
    train, test = read_images("fashion3k.npz")
    parts = {
        "train": (train.images[:6], train.labels[:6]),
        "test": (test.images[:3], test.labels[:3]),
    }
    folder = write_hub(tmp_path / "served", HUB, parts, split_files=2)
    (folder / "other.bin").write_bytes(b"not asked for")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
    ]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.server.refuse:
                return self.answer(b"{}", self.server.refuse)
            info = {
                "id": HUB.hub_id,
                "sha": HUB.revision,
                "siblings": [{"rfilename": name} for name in files],
            }
            if "/tree/" in self.path:
                return self.answer(json.dumps(tree).encode())
            if self.path.startswith("/api/"):
                return self.answer(json.dumps(info).encode())
            content = files[self.path.partition(f"/resolve/{HUB.revision}/")[2].partition("?")[0]]
            return self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

        do_HEAD = do_GET

        def answer(self, content, status=200, **headers):
            self.send_response(status)
            for name, value in {
                "X-Repo-Commit": HUB.revision,
                "Content-Length": len(content),
                **headers,
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.refuse, server.parts = asked, None, parts
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def read(server, tmp_path, endpoint=None):
    """In a process of its own, as the client reads its settings when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": endpoint or f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=100
    )


@pytest.mark.slow
def test_files_are_fetched_at_the_revision_and_kept(server, tmp_path):
    """Only those that are needed; the second time nobody is asked, and the hub may be gone."""
    done = read(server, tmp_path)
    images, labels = server.parts["train"]
    expected = f"(6, 1, 28, 28) (3, 1, 28, 28) {labels.tolist()} {int(images.sum())} {HUB.origin}\n"
    assert done.stdout == expected, done.stderr
    about_data = [path for path in server.asked if HUB.hub_id in path]
    assert about_data
    assert all(HUB.revision in path for path in about_data)
    assert not any("other.bin" in path for path in server.asked)
    server.asked.clear()
    assert read(server, tmp_path).stdout == expected
    assert not any(HUB.hub_id in path for path in server.asked)
    assert read(server, tmp_path, "http://127.0.0.1:9").stdout == expected


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 404, 500])
def test_refusal_of_the_hub_is_one_line(server, tmp_path, status):
    """A gate, a missing revision, a fault: what it was, how large, the command."""
    server.refuse = status
    last = read(server, tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith("adamwprune.data.files.cache.NotThere: zalando-datasets/fashion_mnist (36 MB)")
    assert str(status) in last
    assert "hf download zalando-datasets/fashion_mnist" in last
