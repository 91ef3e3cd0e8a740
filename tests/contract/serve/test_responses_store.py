"""What is kept of responses stays within its bounds, and who holds the most gives up first."""

from __future__ import annotations

from subsecond.serve.responses_store import ResponseStore

SAID = [{"role": "user", "content": "x" * 80}]


def test_the_longest_unused_goes_first() -> None:
    store = ResponseStore(max_responses=3)
    for number in "abc":
        assert store.put("ada", number, b"{}", SAID)
    assert store.get("ada", "a") is not None
    store.put("ada", "d", b"{}", SAID)
    assert [number for number in "abcd" if store.get("ada", number)] == ["a", "c", "d"]
    assert store.num_responses == 3


def test_bytes_are_bounded_messages_included() -> None:
    store = ResponseStore(max_bytes=1000)
    for number in range(50):
        assert store.put("ada", str(number), b"y" * 50, SAID)
        assert store.num_bytes <= 1000
    assert 3 < store.num_responses < 10
    assert not store.put("ada", "large", b"y" * 1001, [])
    assert store.get("ada", "large") is None
    assert store.get("ada", "49") is not None


def test_who_holds_the_most_gives_up() -> None:
    store = ResponseStore(max_bytes=1000)
    store.put("bob", "his", b"y" * 50, SAID)
    for number in range(50):
        store.put("ada", str(number), b"y" * 50, SAID)
    assert store.get("bob", "his") is not None


def test_tenants_are_apart_and_nothing_is_left_behind() -> None:
    store = ResponseStore()
    store.put("ada", "a", b"{}", SAID)
    assert store.get("bob", "a") is None
    assert not store.drop("bob", "a")
    assert store.drop("ada", "a")
    assert not store.drop("ada", "a")
    assert (store.num_responses, store.num_bytes) == (0, 0)


def test_what_is_kept_comes_back_as_it_was() -> None:
    store = ResponseStore()
    store.put("ada", "a", b'{"id":"a"}', SAID)
    kept = store.get("ada", "a")
    assert kept is not None
    assert (kept.body, kept.messages) == (b'{"id":"a"}', tuple(SAID))
