"""A folder for the Hugging Face Hub, and its upload by their own client to a server that keeps what it gets."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from sparsify.architectures import build
from sparsify.hub import HubError, export_folder, push
from sparsify.sources import open_source


@pytest.fixture
def server():
    """A stand-in for the Hub, on this machine: it takes a commit and keeps its files."""
    kept: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path.endswith("/repos/create"):
                answer = {"url": f"{address}/me/model"}
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitOid": "0" * 40, "commitUrl": f"{address}/me/model/commit/{'0' * 40}"}
            else:
                answer = {}
            self.answer(answer)

        def do_GET(self) -> None:
            self.answer({})

        def answer(self, content: dict) -> None:
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{listening.server_port}"
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield address, kept
    listening.shutdown()
    listening.server_close()


def test_a_folder_that_their_tools_read(finished_run, tmp_path):
    """Weights load into the network by name; the card parses, and its figures are those of the run."""
    hub = pytest.importorskip("huggingface_hub")
    written = export_folder(finished_run, tmp_path / "digits", packed=True)
    assert set(written.files) == {"README.md", "config.json", "model.safetensors", "model.sparse.safetensors"}
    record = open_source(finished_run).metadata
    assert written.digest == record.mask_digest
    module = build("lenet", {}, (1, 8, 8), 10)
    module.load_state_dict(load_file(written.path / "model.safetensors"), strict=True)
    config = json.loads((written.path / "config.json").read_text())
    assert config["model_type"] == "sparsify" and config["mask_digest"] == record.mask_digest
    card = hub.ModelCard.load(written.path / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type) == ("digits", "accuracy")
    assert result.metric_value == record.training["test_accuracy"]
    assert f"{sum(layer.nonzeros for layer in record.layers.values()):,}" in card.text
    with pytest.raises(HubError, match="exists and is not an empty folder"):
        export_folder(finished_run, tmp_path / "digits")


def test_what_is_not_known_is_not_in_the_card(tmp_path):
    """A recipe was never trained; another program's checkpoint says nothing, but keeps its own configuration."""
    card = (export_folder("lenet-300-100-digits", tmp_path / "fresh").path / "README.md").read_text()
    assert "initialised" in card and "accuracy" not in card
    other = tmp_path / "other"
    other.mkdir()
    save_file({"w": np.ones((30, 40), np.float32)}, other / "model.safetensors")
    (other / "config.json").write_text('{"model_type": "theirs", "hidden": 40}')
    written = export_folder(other, tmp_path / "pruned", prune=0.75)
    assert json.loads((written.path / "config.json").read_text()) == {"model_type": "theirs", "hidden": 40}
    card = (written.path / "README.md").read_text()
    assert "75.0000% of 1,200 weights" in card and "method" not in card


def test_a_folder_is_uploaded(server, sparsify, tmp_path):
    pytest.importorskip("huggingface_hub")
    address, kept = server
    settings = {
        "HF_ENDPOINT": address,
        "HF_TOKEN": "test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    command = ["export", "lenet-300-100-digits", "--out", "digits", "--push-to-hub", "me/model", "--force", "--json"]
    done = sparsify(*command, **settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].endswith("me/model")
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "digits").iterdir()}
    with pytest.raises(HubError, match="could not be uploaded to not/a/name"):
        push(tmp_path / "digits", "not/a/name")
