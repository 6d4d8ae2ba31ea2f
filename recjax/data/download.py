"""Fetches one published file: bounded in size, checked, and never half there."""

import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.parse
import urllib.request

from recjax import errors

BLOCK = 1 << 20


def fetch(url, path, *, md5, max_bytes, timeout_s=60):
  """Downloads `url` to `path` and returns the path; only a good file ever stands there.

  Args:
    url: http or https.
    path: where the file goes; its folder is made.
    md5: the publisher's checksum in hex. It guards against accidents on the way; https against
      others.
    max_bytes: the transfer stops beyond this size, whatever the server announces.
    timeout_s: of a silent connection.
  """
  if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
    raise errors.UserError(f"{url!r} is not an http or https address")
  path = pathlib.Path(path)
  draft = path.with_name(f".{path.name}.{os.getpid()}.part")
  digest, size = hashlib.md5(usedforsecurity=False), 0
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=timeout_s) as response, open(draft, "wb") as out:
      announced = int(response.headers.get("Content-Length") or 0)
      while announced <= max_bytes and (block := response.read(BLOCK)):
        size += len(block)
        if size > max_bytes:
          break
        digest.update(block)
        out.write(block)
    if max(size, announced) > max_bytes:
      raise errors.UserError(f"{url}: larger than {max_bytes:,} bytes; see config.max_bytes")
    if size < announced:
      raise errors.UserError(f"{url}: the connection broke after {size:,} of {announced:,} bytes")
    if digest.hexdigest() != md5:
      raise errors.UserError(f"{url}: has md5 {digest.hexdigest()}, expected {md5}; not kept")
    os.replace(draft, path)
  except (OSError, ValueError, http.client.HTTPException) as error:
    raise errors.UserError(f"{url}: cannot be downloaded to {path} ({error})") from error
  finally:
    draft.unlink(missing_ok=True)
  return path
