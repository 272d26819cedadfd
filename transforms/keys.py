"""The secret key: keyed tokens for identifiers, sealing of documents in the quarantine.

A :class:`Key` is a reference. Pickles, pipeline graphs and logs hold the file's path and a fingerprint, never the secret; each
worker reads the file itself and refuses one with another fingerprint.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from headrace.schemas.errors import ConfigError

KEY_FILE_VARIABLE = "HEADRACE_KEY_FILE"
TOKEN_BYTES = 16


def default_key_file() -> Path:
    """Returns ``$HEADRACE_KEY_FILE``, else ``~/.config/headrace/key``."""
    named = os.environ.get(KEY_FILE_VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "headrace" / "key"


class Key:
    """A reference to a secret of 32 bytes or more in a file.

    Args:
        path: the file; ``None`` means :func:`default_key_file`.
        create: make the file (mode 0600, 32 random bytes in hex) if it is missing.

    Raises:
        ConfigError: the file is missing, unreadable or too short.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, create: bool = False) -> None:
        self.path = str(
            Path(path).expanduser().absolute() if path is not None else default_key_file().absolute()
        )
        self.created = create and _create(Path(self.path))
        self._keys = _derive(_read(self.path))
        self.fingerprint = self._keys["print"].hex()[:16]

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path, "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.path, self.fingerprint = state["path"], state["fingerprint"]
        self.created = False
        named = os.environ.get(KEY_FILE_VARIABLE)
        path = self.path if Path(self.path).exists() or not named else named
        self._keys = _derive(_read(path))
        if self._keys["print"].hex()[:16] != self.fingerprint:
            raise ConfigError(
                f"key file {path} on this worker is another key (fingerprint {self._keys['print'].hex()[:16]}) than the "
                f"launcher's ({self.fingerprint}); copy the launcher's key file there or set {KEY_FILE_VARIABLE}"
            )

    def __repr__(self) -> str:
        return f"Key({self.path!r}, fingerprint={self.fingerprint!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def token(self, value: str) -> str:
        """Returns 32 hex characters: keyed BLAKE2b-128 of the UTF-8 value (RFC 7693). Equal values give equal tokens."""
        digest = hashlib.blake2b(
            value.encode("utf-8", "surrogatepass"), digest_size=TOKEN_BYTES, key=self._keys["token"]
        )
        return digest.hexdigest()

    def tokens(self, values: pa.Array) -> pa.Array:
        """Returns the token of each string; null stays null."""
        return pa.array([None if v is None else self.token(v) for v in values.to_pylist()], pa.string())

    def seal(self, documents: Iterable[bytes | None]) -> pa.Array:
        """Encrypts each document with AES-SIV (RFC 5297): deterministic, so that a rerun writes the same bytes. Null stays null."""
        cipher = AESSIV(self._keys["seal"])
        return pa.array(
            [
                None if d is None else cipher.encrypt(d or b"\x00", [b"" if d else b"empty"])
                for d in documents
            ],
            pa.binary(),
        )

    def unseal(self, document: bytes) -> bytes:
        """Decrypts what :meth:`seal` returned.

        Raises:
            ConfigError: it was sealed with another key, or was altered.
        """
        cipher = AESSIV(self._keys["seal"])
        for label, empty in ((b"", False), (b"empty", True)):
            try:
                data = cipher.decrypt(document, [label])
            except InvalidTag:
                continue
            return b"" if empty else data
        raise ConfigError(
            f"document was not sealed with key {self.fingerprint} ({self.path}), or was altered"
        )


def _create(path: Path) -> bool:
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def _read(path: str) -> bytes:
    try:
        secret = Path(path).read_bytes().strip()
    except FileNotFoundError:
        raise ConfigError(
            f"key file {path} does not exist; create one with Key({path!r}, create=True) or `headrace key create`, "
            f"or name yours with --key-file or {KEY_FILE_VARIABLE}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"key file {path} can't be read: {error.strerror}; check its permissions"
        ) from error
    if len(secret) < 32:
        raise ConfigError(f"key file {path} holds {len(secret)} bytes; a key needs 32 or more")
    return secret


def _derive(secret: bytes) -> dict[str, bytes]:
    """Derives one key a purpose: keyed BLAKE2b with the purpose as person string."""
    root = hashlib.sha512(secret).digest()
    return {
        purpose: hashlib.blake2b(
            b"", digest_size=64, key=root, person=b"headrace" + purpose.encode()[:8]
        ).digest()
        for purpose in ("token", "seal", "print")
    }
