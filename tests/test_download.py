"""Downloads from a server on this machine: kept only if whole, right and not too large."""

import functools
import hashlib
import http.server
import pathlib
import threading
import zipfile

import pytest

from recjax import errors, spec
from recjax.data import download, prepare

BODY = bytes(range(256)) * 40
MD5 = hashlib.md5(BODY).hexdigest()
CONFIG = str(pathlib.Path(__file__).resolve().parent.parent / "configs/data/ml1m.py")


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves BODY in good and bad ways; other paths are files of `folder`."""

  def __init__(self, *args, folder, **kwargs):
    self.folder = folder
    super().__init__(*args, **kwargs)

  def do_GET(self):  # noqa: N802, the name that http.server looks for
    if self.path == "/none":
      return self.send_error(404)
    own = self.folder / self.path[1:]
    body = own.read_bytes() if own.is_file() else BODY
    self.send_response(200)
    if self.path != "/unannounced":
      self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body[:1000] if self.path == "/broken" else body)

  def log_message(self, *args):
    pass


@pytest.fixture
def server(tmp_path):
  folder = tmp_path / "served"
  folder.mkdir()
  handler = functools.partial(Handler, folder=folder)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()


@pytest.mark.parametrize("path", ["/good", "/unannounced"])
def test_good_file(server, tmp_path, path):
  target = tmp_path / "new" / "file.bin"
  assert download.fetch(server + path, target, md5=MD5, max_bytes=len(BODY)) == target
  assert target.read_bytes() == BODY
  assert [p.name for p in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("path, fields, message", [
  ("/good", dict(max_bytes=len(BODY) - 1), "larger than 10,239 bytes"),
  ("/unannounced", dict(max_bytes=len(BODY) - 1), "larger than 10,239 bytes"),
  ("/good", dict(md5="0" * 32), f"has md5 {MD5}, expected 000"),
  ("/broken", {}, "the connection broke|IncompleteRead"),
  ("/none", {}, "404"),
])
def test_bad_file_is_not_kept_and_replaces_nothing(server, tmp_path, path, fields, message):
  target = tmp_path / "new" / "file.bin"
  target.parent.mkdir()
  target.write_bytes(b"old")
  with pytest.raises(errors.UserError, match=message):
    download.fetch(server + path, target, **{"md5": MD5, "max_bytes": 10**6, **fields})
  assert [p.read_bytes() for p in target.parent.iterdir()] == [b"old"]


def test_nobody_there_and_other_schemes(tmp_path):
  for url, message in (("http://127.0.0.1:1/x", "cannot be downloaded"),
                       ("file:///etc/hostname", "is not an http or https address")):
    with pytest.raises(errors.UserError, match=message):
      download.fetch(url, tmp_path / "x", md5=MD5, max_bytes=10**6)


def test_movielens_is_fetched_once_and_only_on_request(server, tmp_path):
  archive = tmp_path / "served" / "ml-1m.zip"
  with zipfile.ZipFile(archive, "w") as out:
    out.writestr("ml-1m/ratings.dat", "".join(f"1::{m}::3::{m}\n" for m in (1, 2, 3)))
    out.writestr("ml-1m/movies.dat", "1::A::Drama\n2::B::War\n3::C::War\n")
  config = spec.load_config(CONFIG)
  spec.override(config, {"check": False, "url": f"{server}/ml-1m.zip",
                         "md5": hashlib.md5(archive.read_bytes()).hexdigest()})
  folders = dict(raw_dir=tmp_path / "raw", data_dir=tmp_path / "out")
  run = lambda: prepare.prepare(config, **folders, log=str)
  with pytest.raises(errors.UserError, match="--config.download=true"):
    run()
  config.download = True
  assert run()["ml1m"]["interactions"] == 3
  archive.unlink()
  config.download = False
  assert run()["ml1m"]["interactions"] == 3
