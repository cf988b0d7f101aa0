"""A key that encrypts and signs what lies in a store: AES-256-GCM (NIST SP 800-38D).

A sealed file: `ELSEALED`, the key's id (8 bytes, from its SHA-256), a nonce (12 bytes, random), the encrypted content
with its tag of 16 bytes. What the content is for, as "ann, version 3", is signed with it: nobody can put one person's
file in another's place. The package `cryptography` is imported when a key is first used.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from edgelora.errors import EdgeLoraError, StoreError

MAGIC = b"ELSEALED"
_ID, _NONCE, _SECRET = 8, 12, 32


class DamagedSeal(Exception):
    """What lies there is not what was sealed for this purpose."""


class Key:
    """A secret of 32 bytes. Two keys of the same secret are equal in effect."""

    def __init__(self, secret: bytes) -> None:
        """`secret` must be random: `openssl rand -hex 32`.

        Raises:
            StoreError: another length. EdgeLoraError: the package `cryptography` is missing.
        """
        if len(secret) != _SECRET:
            raise StoreError(f"a key has {_SECRET} bytes, not {len(secret)}; make one: openssl rand -hex {_SECRET}")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise EdgeLoraError('a store with a key needs: pip install "edgelora[encrypt]"') from error
        self.id = hashlib.sha256(b"edgelora key id" + secret).digest()[:_ID]
        self._cipher: Any = AESGCM(secret)

    @classmethod
    def read(cls, path: str | Path) -> Key:
        """The key in a file: 64 hexadecimal digits, or 32 bytes.

        Raises:
            StoreError: the file cannot be read or holds no key.
        """
        try:
            with Path(path).open("rb") as file:
                content = file.read(1024)
        except OSError as error:
            raise StoreError(f"{path}: the key cannot be read ({error.strerror or error})") from error
        if len(content) == _SECRET:
            return cls(content)
        try:
            return cls(bytes.fromhex(content.decode("ascii")))
        except ValueError:
            raise StoreError(f"{path}: holds no key: {2 * _SECRET} hexadecimal digits, or {_SECRET} bytes") from None

    def seal(self, content: bytes, purpose: str) -> bytes:
        """The content, encrypted and signed together with what it is for."""
        head, nonce = MAGIC + self.id, os.urandom(_NONCE)
        return head + nonce + self._cipher.encrypt(nonce, content, head + purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """The content.

        Raises:
            StoreError: sealed with another key. DamagedSeal: altered, cut, or sealed for another purpose.
        """
        head, rest = sealed[: len(MAGIC) + _ID], sealed[len(MAGIC) + _ID :]
        if is_sealed(sealed) and len(head) == len(MAGIC) + _ID and head[len(MAGIC) :] != self.id:
            raise StoreError(f"{purpose}: it was encrypted with another key; give that one")
        try:
            return self._cipher.decrypt(rest[:_NONCE], rest[_NONCE:], head + purpose.encode())
        except Exception as error:  # the package has an exception for each way to be wrong
            raise DamagedSeal(f"{purpose}: it was altered or is damaged: its signature is not the key's") from error


def is_sealed(content: bytes) -> bool:
    """Whether a file was sealed with some key."""
    return content.startswith(MAGIC)


def sealed(key: Key | None, content: bytes, purpose: str) -> bytes:
    """The content, sealed if there is a key."""
    return content if key is None else key.seal(content, purpose)


def unsealed(key: Key | None, content: bytes, purpose: str) -> bytes:
    """What `sealed` was given.

    Raises:
        StoreError: it is encrypted and there is no key or another one, or there is a key and it is not encrypted.
        DamagedSeal: altered.
    """
    if key is None:
        if is_sealed(content):
            raise StoreError(f"{purpose}: it is encrypted; give the key (--key-file)")
        return content
    if not is_sealed(content):
        raise StoreError(f"{purpose}: it is not encrypted, and with a key only what the key signed is read")
    return key.open(content, purpose)
