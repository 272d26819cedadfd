"""What a process remembers between bundles."""

from headrace.transforms.index_cache import IndexCache


def test_an_index_is_taken_once_and_only_under_its_version():
    cache: IndexCache[str] = IndexCache()
    cache.put(("step", 1), b"v1", "one")
    assert cache.take(("step", 2), b"v1") is None
    assert cache.take(("other", 1), b"v1") is None
    assert cache.take(("step", 1), b"v1") == "one"
    assert cache.take(("step", 1), b"v1") is None


def test_an_index_of_another_version_is_dropped():
    cache: IndexCache[str] = IndexCache()
    cache.put(("step", 1), b"v2", "two")
    assert cache.take(("step", 1), b"v1") is None
    assert cache.take(("step", 1), b"v2") is None
    assert len(cache) == 0


def test_the_last_one_put_counts():
    cache: IndexCache[str] = IndexCache()
    cache.put(("step", 1), b"v1", "one")
    cache.put(("step", 1), b"v2", "two")
    assert len(cache) == 1
    assert cache.take(("step", 1), b"v2") == "two"


def test_shards_that_moved_away_are_dropped_and_those_in_use_are_not():
    cache: IndexCache[int] = IndexCache(stale_after=100)
    cache.put(("gone", 0), b"v", -1)
    for round_ in range(20):
        for shard in range(8):
            if round_:
                assert cache.take(("step", shard), b"v") == shard
            cache.put(("step", shard), b"v", shard)
        assert len(cache) == (9 if round_ < 12 else 8)
    assert cache.take(("gone", 0), b"v") is None
