"""Weights that are downloaded say how far they are, by lines and in the run's folder."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from fruitlib.core import progress
from fruitlib.training import downloads

PARTS, PART = 8, b"x" * 1_000_000


class Slow(BaseHTTPRequestHandler):
    """A file of 8 MB, a tenth of a second for each."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(PARTS * len(PART)))
        self.end_headers()
        for _ in range(PARTS):
            self.wfile.write(PART)
            time.sleep(0.1)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/net-0.pth"
    server.shutdown()
    server.server_close()


def by_torch(address, path):
    torch.hub.download_url_to_file(address, str(path), progress=True)


def by_hub(address, path):
    from huggingface_hub.file_download import http_get

    with path.open("wb") as file:
        http_get(address, file, expected_size=PARTS * len(PART))


@pytest.mark.parametrize("download", [by_torch, by_hub])
def test_a_download_says_how_far_it_is(download, address, tmp_path, monkeypatch, capfd):
    noted, write = [], progress.files.write_json
    monkeypatch.setattr(progress.files, "write_json", lambda path, facts: (noted.append(facts), write(path, facts)))
    monkeypatch.setattr(progress, "NOTE_EVERY", 0.05)
    monkeypatch.setattr(downloads, "meter", lambda what, **how: progress.meter(what, every=0.2, **how))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", len(PART))  # it tells of 10 MB at a time
    bar = torch.hub.tqdm
    with progress.recorded(tmp_path), downloads.limited():
        download(address, tmp_path / "net.pth")
    assert torch.hub.tqdm is bar and (tmp_path / "net.pth").stat().st_size == PARTS * len(PART)
    printed, drawn = capfd.readouterr()
    assert "downloading weights: " in printed and " of 8 MB, " in printed and "%" not in drawn
    shares = [facts["share"] for facts in noted]
    assert {facts["what"] for facts in noted} == {"downloading weights"}
    assert shares == sorted(shares) and shares[0] < 0.6
    assert not (tmp_path / progress.FILE).exists()


def test_a_long_epoch_is_noted_and_a_short_one_is_not(tmp_path, monkeypatch):
    with progress.recorded(tmp_path):
        assert list(progress.through_epoch(range(5), 1, 5)) == [0, 1, 2, 3, 4]
        assert not (tmp_path / progress.FILE).exists()
        monkeypatch.setattr(progress, "NOTE_EVERY", 0.0)
        for _ in progress.through_epoch(range(5), 4, 5):
            pass
        assert json.loads((tmp_path / progress.FILE).read_text()) == {"what": "epoch", "share": 0.8, "number": 4}
    assert not (tmp_path / progress.FILE).exists()
