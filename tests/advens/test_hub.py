"""timm's pretrained path, against a hub on the loopback interface that serves one tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save

REPO = "timm/test_vit.r160_in1k"


def weights(seed: int = 0) -> bytes:
    """Those of the model that is served, drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model("test_vit", pretrained=False)
    return save({name: value.contiguous() for name, value in net.state_dict().items()})


def serve(
    files: dict[str, bytes], seen: list[str], commit: str = "0" * 40, *, prefix: str = "",
    cuts: list[int] | None = None, promised: bytes | None = None,
) -> ThreadingHTTPServer:  # fmt: skip
    """A server that answers like a model hub for the files of one repository.

    Args:
        seen: what it is asked for, with the ranges of bytes.
        prefix: of all paths, as a mirror may have one.
        cuts: for each download, after how many bytes the connection is cut; none when the list is empty.
        promised: content whose digest is given in place of that of what is sent.
    """

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            asked = self.headers.get("Range", "")
            seen.append(f"{self.path} {asked}".rstrip())
            path = self.path.partition("?")[0]
            # a file is asked for by a branch, and once more by its commit
            name = re.sub(rf"^{prefix}/{REPO}/resolve/(main|{commit})/", "", path)
            content = files.get(name)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
            digest = hashlib.sha256(promised or content).hexdigest()
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{digest}"')
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if body and cuts:
                self.wfile.write(content[first : first + cuts.pop(0)])
                self.wfile.flush()
                self.connection.close()
            elif body:
                self.wfile.write(content[first:])

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str], str]]:
    """URL, requests seen, and the digest of the one model served."""
    from advens.digest import weights_digest

    content = weights()
    seen: list[str] = []
    server = serve({"model.safetensors": content}, seen)
    yield f"http://127.0.0.1:{server.server_port}", seen, weights_digest(load(content))
    server.shutdown()
    server.server_close()


def ask(spec: str, url: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Load a model in a process of its own: the hub client reads its address when imported."""
    script = (
        "import sys, json, advens, huggingface_hub.constants as hub\n"
        "hub.DOWNLOAD_CHUNK_SIZE = 1 << 16\n"  # the model is smaller than a usual piece
        "from advens.errors import InputError\n"
        "try:\n"
        f"    m = advens.load_model({spec!r})\n"
        "    print(json.dumps([m.weights, m.family, m.num_classes, list(m.input_size)]))\n"
        "except InputError as error:\n"
        "    print(error, file=sys.stderr); sys.exit(2)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], env=surroundings(url, home, **more),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def surroundings(url: str, home: Path, **more: str) -> dict[str, str]:
    """Variables of a process that asks this hub and has this cache."""
    return {
        **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
        **more,
    }


def test_pretrained_weights_come_from_the_hub(hub: tuple[str, list[str], str], tmp_path: Path) -> None:
    url, seen, digest = hub
    done = ask("timm:test_vit.r160_in1k", url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [digest, "vit", 1000, [160, 160]]
    assert any("model.safetensors" in path for path in seen)


def test_a_model_the_hub_does_not_have_is_one_line(hub: tuple[str, list[str], str], tmp_path: Path) -> None:
    done = ask("timm:test_resnet.r160_in1k", hub[0], tmp_path)
    assert done.returncode == 2
    assert "pretrained weights could not be had" in done.stderr
    assert "checkpoint=PATH" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def nowhere() -> str:
    """The address of a hub that has gone."""
    server = serve({}, [])
    server.shutdown()
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"


def test_offline_is_one_line_without_further_attempts(nowhere: str, tmp_path: Path) -> None:
    done = ask("timm:test_vit.r160_in1k", nowhere, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"they are not in the cache, and {nowhere} cannot be reached" in line
    assert "checkpoint=PATH" in line


def test_offline_weights_come_from_the_cache(
    hub: tuple[str, list[str], str], nowhere: str, tmp_path: Path
) -> None:
    assert ask("timm:test_vit.r160_in1k", hub[0], tmp_path).returncode == 0
    done = ask("timm:test_vit.r160_in1k", nowhere, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])[0] == hub[2]


def test_offline_torchvision_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is not tried: it would wait for as long as the network lets it."""
    from advens.errors import InputError
    from advens.models import hub, load_model

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(hub, "reachable", lambda url: False)
    with pytest.raises(InputError, match=r"not in the cache, and https://\S+\.pth cannot be reached"):
        load_model("torchvision:squeezenet1_1?weights=IMAGENET1K_V1")


def test_a_proxy_is_asked_in_place_of_the_host(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from advens.models.hub import reachable

    server = serve({}, [])
    try:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        assert reachable("http://hub.invalid")
        monkeypatch.setenv("http_proxy", nowhere)
        assert not reachable("http://hub.invalid")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert reachable(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def command(url: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with this hub and cache."""
    script = "import sys; from advens.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=surroundings(url, home),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_other_weights_of_the_same_name_on_the_hub_are_refused(
    hub: tuple[str, list[str], str], tmp_path: Path
) -> None:
    """What a lock pinned is compared with what another hub, or the same one later, gives."""
    suite = tmp_path / "one.toml"
    suite.write_text(
        'name = "one"\ndata = "digits:test?limit=2"\ntargets = ["timm:test_vit.r160_in1k"]\n'
        '[surrogates]\none = ["digits:resnet"]\n[[attacks]]\nname = "fgsm"\n'
    )
    done = command(hub[0], tmp_path / "cache", "lock", suite)
    assert done.returncode == 0, done.stderr
    assert f"(timm/test_vit.r160_in1k@{'0' * 40})" in done.stdout
    with serving({"model.safetensors": weights(1)}, [], commit="1" * 40) as url:
        done = command(url, tmp_path / "another", "run", suite, "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "one.lock pins: timm:test_vit.r160_in1k (" in line
    assert f"timm/test_vit.r160_in1k@{'0' * 40} is now timm/test_vit.r160_in1k@{'1' * 40}" in line
    assert not (tmp_path / "out").exists()


@contextmanager
def serving(*given: object, **how: object) -> Iterator[str]:
    """The address of a hub that is there for a while."""
    server = serve(*given, **how)  # type: ignore[arg-type]
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ranges(seen: list[str]) -> list[int]:
    """Where the downloads began that did not begin at the start."""
    starts = [int(found[1]) for line in seen if (found := re.search(r" bytes=(\d+)-$", line))]
    return [start for start in starts if start]


def test_offline_by_its_variable(hub: tuple[str, list[str], str], tmp_path: Path) -> None:
    """``HF_HUB_OFFLINE`` takes what is in the cache; the hub, which is there, is not asked."""
    url, seen, digest = hub
    done = ask("timm:test_vit.r160_in1k", url, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "they are not in the cache, and HF_HUB_OFFLINE is set" in line
    assert not seen
    assert ask("timm:test_vit.r160_in1k", url, tmp_path).returncode == 0
    asked = len(seen)
    done = ask("timm:test_vit.r160_in1k", url, tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout.splitlines()[-1])[0] == digest
    assert len(seen) == asked


def test_a_download_from_a_mirror_that_is_cut_goes_on(
    hub: tuple[str, list[str], str], tmp_path: Path
) -> None:
    seen: list[str] = []
    half = len(weights()) // 2
    with serving({"model.safetensors": weights()}, seen, prefix="/mirror", cuts=[half]) as url:
        done = ask("timm:test_vit.r160_in1k", f"{url}/mirror", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[0] == hub[2]
    (start,) = ranges(seen)
    assert 0 < start <= half
    assert all(path.startswith(f"/mirror/{REPO}/") for path in seen)


def test_weights_that_are_not_what_the_hub_promised_are_refused(tmp_path: Path) -> None:
    with serving({"model.safetensors": weights(1)}, [], promised=weights(2)) as url:
        done = ask("timm:test_vit.r160_in1k", url, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    digest = hashlib.sha256(weights(2)).hexdigest()
    assert f"the weights of {REPO} in the cache are damaged" in line
    assert f"their SHA-256 is not the hub's, {digest[:12]}" in line


def test_a_download_that_fails_is_one_line_and_leaves_nothing_half(
    hub: tuple[str, list[str], str], tmp_path: Path
) -> None:
    with serving({"model.safetensors": weights()}, [], cuts=[len(weights()) // 2, *[0] * 50]) as url:
        done = ask("timm:test_vit.r160_in1k", url, tmp_path)
    assert done.returncode == 2
    assert "pretrained weights could not be had" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    done = ask("timm:test_vit.r160_in1k", hub[0], tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])[0] == hub[2]
