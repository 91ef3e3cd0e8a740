"""Models of other programs: found in their stores, named without doubt, never changed; nothing there is trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from subsecond.core.errors import InputError
from subsecond.models import foreign_layouts, foreign_stores, store

HEAD = b"GGUF\x03\x00\x00\x00"
REVISION = "a" * 40
MODEL_LAYER = "application/vnd.ollama.image.model"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def gguf_bytes(num_bytes: int = 100) -> bytes:
    return HEAD + bytes(num_bytes - len(HEAD))


def add_hub_file(repository: str, name: str, content: bytes | None = None, revision: str = REVISION) -> Path:
    """A file as the hub's client stores it: a blob, and a link to it in the snapshot of a revision."""
    folder = foreign_stores.hugging_face_folder() / f"models--{repository.replace('/', '--')}"
    content = gguf_bytes() if content is None else content
    blob = write(folder / "blobs" / f"{len(list(folder.rglob('*'))):064}", content)
    link = folder / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def add_ollama_model(
    name: str, digit: str = "1", *, owner: str = "registry.ollama.ai/library", content: bytes | None = None
) -> Path:
    folder = foreign_stores.ollama_folder()
    content = gguf_bytes() if content is None else content
    digest = digit * 64
    layers = [
        {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": len(content)},
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "f" * 64, "size": 5},
    ]
    manifest = {"schemaVersion": 2, "config": {}, "layers": layers}
    write(folder / "manifests" / owner / name.replace(":", "/"), json.dumps(manifest).encode())
    return write(folder / "blobs" / f"sha256-{digest}", content)


def add_lm_studio_file(name: str, content: bytes | None = None) -> Path:
    path = foreign_stores.lm_studio_folders()[0] / name
    return write(path, gguf_bytes() if content is None else content)


def names() -> list[str]:
    return [model.name for model in foreign_stores.list_foreign()]


def test_nothing_is_there_without_stores() -> None:
    assert store.list_models() == ()


def test_every_store_is_listed_with_its_origin(home: Path) -> None:
    own = write(store.model_path("mine"), b"GGUF")
    hub = add_hub_file("owner/Tiny-GGUF", "tiny.Q4_0.gguf")
    ollama = add_ollama_model("llama3.2:1b")
    studio = add_lm_studio_file("Publisher/Small-GGUF/small.gguf", gguf_bytes(50))
    old = write(home / ".cache" / "lm-studio" / "models" / "publisher" / "old" / "old.gguf", gguf_bytes())
    assert [(model.name, model.origin, model.path, model.file_bytes) for model in store.list_models()] == [
        ("mine", "subsecond", own, 4),
        ("hf:owner/Tiny-GGUF", "hugging face", hub, 100),
        ("lmstudio:Publisher/Small-GGUF", "lm studio", studio, 50),
        ("lmstudio:publisher/old", "lm studio", old, 100),
        ("ollama:llama3.2:1b", "ollama", ollama, 100),
    ]


def test_stores_follow_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign_stores.hugging_face_folder() == home / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert foreign_stores.hugging_face_folder() == home / "xdg" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert foreign_stores.hugging_face_folder() == home / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "cache"))
    assert foreign_stores.hugging_face_folder() == home / "cache"
    assert foreign_stores.ollama_folder() == home / ".ollama" / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "models"))
    assert foreign_stores.ollama_folder() == home / "models"


@pytest.mark.parametrize(
    "name",
    [
        "hf:owner/Tiny-GGUF",
        "hf:owner/tiny-gguf",
        "hf:owner/Tiny-GGUF/tiny.Q4_0.gguf",
        "owner/Tiny-GGUF",
        "Tiny-GGUF",
        "tiny-gguf",
        "tiny.q4_0",
    ],
)
def test_a_model_of_the_hub_has_full_and_short_names(name: str) -> None:
    path = add_hub_file("owner/Tiny-GGUF", "tiny.Q4_0.gguf")
    assert store.resolve(name) == path


@pytest.mark.parametrize("name", ["ollama:llama3.2:1b", "llama3.2:1b", "ollama:llama3.2", "llama3.2"])
def test_a_model_of_ollama_has_full_and_short_names(name: str) -> None:
    path = add_ollama_model("llama3.2:1b")
    assert store.resolve(name) == path


def test_ollama_takes_the_latest_tag_when_none_is_given() -> None:
    latest, other = add_ollama_model("qwen:latest", "1"), add_ollama_model("qwen:3b", "2")
    assert store.resolve("ollama:qwen") == store.resolve("qwen") == latest
    assert store.resolve("qwen:3b") == other


def test_ollama_models_of_others_and_of_other_registries() -> None:
    add_ollama_model("phi:mini", owner="registry.ollama.ai/somebody")
    add_ollama_model("Tiny-GGUF:Q4_0", owner="hf.co/owner")
    assert names() == ["ollama:hf.co/owner/Tiny-GGUF:Q4_0", "ollama:somebody/phi:mini"]
    assert store.resolve("ollama:somebody/phi:mini") == store.resolve("somebody/phi:mini")


def test_lm_studio_names() -> None:
    path = add_lm_studio_file("Publisher/Small-GGUF/small.gguf")
    for name in ("lmstudio:publisher/small-gguf", "Publisher/Small-GGUF", "small"):
        assert store.resolve(name) == path


def test_a_repository_with_several_files_needs_the_name_of_one() -> None:
    small = add_hub_file("owner/tiny", "tiny-Q4_0.gguf")
    add_hub_file("owner/tiny", "sub/tiny-Q8_0.gguf")
    assert names() == ["hf:owner/tiny/sub/tiny-Q8_0.gguf", "hf:owner/tiny/tiny-Q4_0.gguf"]
    for name in ("hf:owner/tiny", "owner/tiny", "tiny"):
        with pytest.raises(InputError, match=r"several models; give one of: hf:owner/tiny/sub/tiny-Q8_0\.gguf, hf:own"):
            store.resolve(name)
    assert store.resolve("hf:owner/tiny/tiny-Q4_0.gguf") == store.resolve("tiny-q4_0") == small


def test_equal_names_in_two_stores_are_ambiguous_and_prefixes_are_not() -> None:
    hub, studio = add_hub_file("owner/tiny", "tiny.gguf"), add_lm_studio_file("owner/tiny/tiny.gguf")
    with pytest.raises(InputError, match=r"give one of: hf:owner/tiny, lmstudio:owner/tiny"):
        store.resolve("owner/tiny")
    assert (store.resolve("hf:owner/tiny"), store.resolve("lmstudio:owner/tiny")) == (hub, studio)


def test_own_models_and_the_catalogue_come_first() -> None:
    own = write(store.model_path("tiny"), b"GGUF")
    add_hub_file("owner/tiny", "a.gguf")
    add_hub_file("owner/smollm2-360m", "b.gguf")
    assert store.resolve("tiny") == own
    with pytest.raises(InputError, match="subsecond pull smollm2-360m"):
        store.resolve("smollm2-360m")


def test_what_a_store_does_not_have_is_said_with_what_it_has() -> None:
    add_ollama_model("llama3.2:1b")
    with pytest.raises(InputError, match=r"no model 'ollama:nothing' in the store .*; there are: ollama:llama3.2:1b"):
        store.resolve("ollama:nothing")
    with pytest.raises(InputError, match="there are: none"):
        store.resolve("hf:owner/none")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("ollama:llama3.2:1b", "ollama rm llama3.2:1b"),
        ("llama3.2:1b", "ollama rm llama3.2:1b"),
        ("hf:owner/tiny", "hf cache rm model/owner/tiny"),
        ("tiny", "hf cache rm model/owner/tiny"),
        ("lmstudio:publisher/small", "delete publisher/small in LM Studio"),
    ],
)
def test_models_of_others_are_not_deleted(name: str, command: str) -> None:
    paths = [
        add_ollama_model("llama3.2:1b"),
        add_hub_file("owner/tiny", "t.gguf"),
        add_lm_studio_file("publisher/small/s.gguf"),
    ]
    with pytest.raises(InputError, match=command):
        store.remove(name)
    assert all(path.exists() for path in paths)
    with pytest.raises(InputError, match="read where it lies"):
        store.model_folder("hf:owner/tiny")


def test_the_newest_main_revision_comes_first() -> None:
    add_hub_file("owner/tiny", "tiny.gguf", revision="b" * 40)
    wanted = add_hub_file("owner/tiny", "tiny.gguf")
    only_there = add_hub_file("owner/tiny", "other.gguf", revision="b" * 40)
    folder = foreign_stores.hugging_face_folder() / "models--owner--tiny"
    write(folder / "refs" / "main", REVISION.encode())
    os.utime(folder / "snapshots" / REVISION, (1, 1))
    assert store.resolve("hf:owner/tiny/tiny.gguf") == wanted
    assert store.resolve("hf:owner/tiny/other.gguf") == only_there


def test_a_model_in_several_files_is_listed_once_and_only_when_complete() -> None:
    first = add_hub_file("owner/big", "big-00001-of-00002.gguf", gguf_bytes(30))
    assert names() == []
    add_hub_file("owner/big", "big-00002-of-00002.gguf", gguf_bytes(50))
    (model,) = foreign_stores.list_foreign()
    assert (model.name, model.path, model.file_bytes) == ("hf:owner/big", first, 80)


@pytest.mark.parametrize(
    ("files", "file_bytes"),
    [
        ({"model.safetensors": 30}, 30),
        ({"model-00001-of-00002.safetensors": 30, "model-00002-of-00002.safetensors": 12}, 42),
        ({"model-00001-of-00002.safetensors": 30}, None),
        ({"adapter_model.safetensors": 30}, None),
        ({"pytorch_model.bin": 30}, None),
        ({}, None),
    ],
)
def test_folders_of_safetensors_are_listed_when_complete(files: dict[str, int], file_bytes: int | None) -> None:
    config = add_hub_file("owner/base", "config.json", b'{"model_type": "llama"}')
    for name, num_bytes in files.items():
        add_hub_file("owner/base", name, bytes(num_bytes))
    found = [(model.name, model.path, model.file_bytes) for model in foreign_stores.list_foreign()]
    assert found == ([] if file_bytes is None else [("hf:owner/base", config.parent, file_bytes)])


@pytest.mark.parametrize(
    "config", [b"", b"[1]", b"{}", b"\xff", b'{"model_type": 3}', b"[" * 100_000, b" " * (3 << 20)]
)
def test_folders_with_an_unusable_config_are_not_listed(config: bytes) -> None:
    add_hub_file("owner/base", "config.json", config)
    add_hub_file("owner/base", "model.safetensors", bytes(3))
    assert names() == []


def test_files_that_are_no_models_are_not_listed(home: Path) -> None:
    add_hub_file("owner/a", "mmproj-model-f16.gguf")
    add_hub_file("owner/b", "other.gguf", b"GGML" + bytes(50))
    add_hub_file("owner/c", "old.gguf", b"GGUF\x01\x00\x00\x00")
    add_hub_file("owner/d", ".hidden.gguf")
    add_hub_file("owner/e", "bell\x07.gguf")
    add_hub_file("owner/f", "gone.gguf").resolve().unlink()
    cache = foreign_stores.hugging_face_folder()
    write(cache / "datasets--owner--g" / "snapshots" / REVISION / "data.gguf", gguf_bytes())
    write(cache / "models--owner--h--i--j" / "snapshots" / REVISION / "model.gguf", gguf_bytes())
    outside = write(home / "outside.gguf", gguf_bytes())
    link = cache / "models--owner--k" / "snapshots" / REVISION / "link.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    (link.parent / "loop.gguf").symlink_to("loop.gguf")
    os.mkfifo(link.parent / "pipe.gguf")
    (cache / "models--owner--l").symlink_to(
        write(home / "m" / "snapshots" / REVISION / "m.gguf", gguf_bytes()).parents[2]
    )
    assert names() == []


LAYER: dict[str, Any] = {"mediaType": MODEL_LAYER, "digest": "sha256:" + "1" * 64, "size": 100}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"layers": 3}',
        b'{"layers": [3]}',
        b'{"layers": []}',
        b'{"layers": ' + b" " * (3 << 20) + b"[]}",
        json.dumps({"layers": [LAYER, LAYER]}).encode(),
        json.dumps({"layers": [LAYER, {"mediaType": "application/vnd.ollama.image.adapter"}]}).encode(),
        *(
            json.dumps({"layers": [{**LAYER, **change}]}).encode()
            for change in (
                {"digest": 3},
                {"digest": "sha256:../../../../etc/passwd"},
                {"digest": "sha256-" + "1" * 64},
                {"digest": "sha256:" + "2" * 64},
                {"digest": "sha256:" + "1" * 64 + "\n"},
                {"size": 101},
                {"size": "100"},
                {"size": True},
                {"mediaType": ["x"]},
            )
        ),
    ],
)
def test_manifests_that_do_not_fit_are_not_listed(manifest: bytes) -> None:
    add_ollama_model("good:latest")
    folder = foreign_stores.ollama_folder() / "manifests" / "registry.ollama.ai" / "library"
    write(folder / "bad" / "latest", manifest)
    assert names() == ["ollama:good:latest"]


def test_a_broken_manifest_is_told_where_its_store_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    hub = add_hub_file("owner/tiny", "tiny.gguf")
    add_ollama_model("good:latest")
    write(foreign_stores.ollama_folder() / "manifests" / "registry.ollama.ai" / "library" / "bad" / "latest", b"{")
    assert store.resolve("hf:owner/tiny") == store.resolve("tiny") == hub
    with pytest.raises(InputError, match="there is no model 'zzz'"):
        store.resolve("zzz")
    assert not caplog.records
    store.list_models()
    store.resolve("ollama:good")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("name", "num_reads"), [("hf:owner/none", 1), ("ollama:none", 1), ("none", 4)])
def test_each_store_is_read_at_most_once(monkeypatch: pytest.MonkeyPatch, name: str, num_reads: int) -> None:
    folders = []

    def read(folder: Path, _: object) -> tuple[()]:
        folders.append(folder)
        return ()

    monkeypatch.setattr(foreign_stores, "_READERS", dict.fromkeys(foreign_stores._READERS, read))
    with pytest.raises(InputError, match="there is no model"):
        store.resolve(name)
    assert len(folders) == len(set(folders)) == num_reads


def test_links_in_the_store_of_ollama_do_not_leave_it(home: Path) -> None:
    blob = add_ollama_model("model:latest")
    blob.unlink()
    blob.symlink_to(write(home / "outside", gguf_bytes()))
    assert names() == []


def test_the_number_of_entries_that_are_looked_at_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(20):
        add_lm_studio_file(f"publisher/model{index:02}/model.gguf")
    monkeypatch.setattr(foreign_layouts, "MAX_ENTRIES", 10)
    assert len(names()) < 10
    assert "more than 10 files and folders" in caplog.text


def test_a_folder_that_cannot_be_read_is_said(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(home / ".ollama" / "models" / "manifests", b"a file where a folder should be")
    add_lm_studio_file("publisher/model/model.gguf")
    assert names() == ["lmstudio:publisher/model"]
    assert "manifests are not listed" in caplog.text
