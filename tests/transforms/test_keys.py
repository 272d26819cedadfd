"""The key: a reference that never carries the secret, tokens that join, seals that open only with it."""

import hashlib
import os
import pickle
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.schemas.errors import ConfigError
from headrace.transforms.keys import KEY_FILE_VARIABLE, Key, default_key_file


@pytest.fixture
def key(tmp_path):
    return Key(tmp_path / "key", create=True)


def test_a_new_key_is_private_and_random(tmp_path):
    one, two = Key(tmp_path / "a" / "key", create=True), Key(tmp_path / "b", create=True)
    assert one.created and two.created and one.fingerprint != two.fingerprint
    assert stat.S_IMODE(os.stat(one.path).st_mode) == 0o600
    again = Key(one.path, create=True)
    assert not again.created and again == one


def test_pickles_and_reprs_hold_no_secret(key):
    secret = Path(key.path).read_bytes().strip()
    for text in (pickle.dumps(key), repr(key).encode()):
        assert secret not in text and bytes.fromhex(secret.decode()) not in text
    assert pickle.loads(pickle.dumps(key)).token("x") == key.token("x")


def test_another_key_on_the_worker_is_refused(key, tmp_path):
    pickled = pickle.dumps(key)
    os.unlink(key.path)
    with pytest.raises(ConfigError, match="does not exist"):
        pickle.loads(pickled)
    Key(key.path, create=True)
    with pytest.raises(ConfigError, match="another key"):
        pickle.loads(pickled)


def test_a_worker_may_keep_the_key_elsewhere(key, tmp_path, monkeypatch):
    pickled, elsewhere = pickle.dumps(key), tmp_path / "elsewhere"
    os.rename(key.path, elsewhere)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(elsewhere))
    assert default_key_file() == elsewhere
    assert pickle.loads(pickled) == key


def test_tokens_join_under_one_key_only(key, tmp_path):
    tokens = key.tokens(pa.array(["bob", None, "bob", ""])).to_pylist()
    assert tokens[0] == tokens[2] == key.token("bob") and tokens[1] is None
    assert len(tokens[0]) == 32 and len({*tokens}) == 3
    other = Key(tmp_path / "other", create=True)
    assert other.token("bob") != key.token("bob")
    assert key.token("bob") != hashlib.blake2b(b"bob", digest_size=16).hexdigest()


def test_seals_are_deterministic_and_open_only_with_the_key(key, tmp_path):
    documents = [b"{}", b"", None, b"\x00", b"x" * 100_000]
    sealed = key.seal(documents)
    assert sealed.equals(key.seal(documents))
    assert [None if s is None else key.unseal(s) for s in sealed.to_pylist()] == documents
    other = Key(tmp_path / "other", create=True)
    with pytest.raises(ConfigError, match=other.fingerprint):
        other.unseal(sealed[0].as_py())
    altered = bytearray(sealed[0].as_py())
    altered[-1] ^= 1
    with pytest.raises(ConfigError, match="altered"):
        key.unseal(bytes(altered))


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist; create one"), (b"short", "holds 5 bytes")]
)
def test_unusable_key_files_say_the_fix(tmp_path, content, said):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        Key(path)


def test_a_directory_is_no_key(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        Key(tmp_path)
