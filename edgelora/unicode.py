"""Text that can be written as UTF-8: JSON may hold halves of surrogate pairs, and a command line other bytes."""

from __future__ import annotations

NOT_UNICODE = "not valid Unicode (bytes that are not UTF-8, or half of a surrogate pair)"


def is_unicode(text: str) -> bool:
    """Whether every character of the text is one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
