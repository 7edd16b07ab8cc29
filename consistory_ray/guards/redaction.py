"""Secrets, and what would move a terminal, taken out of text that people and files will see. Pure."""

from __future__ import annotations

import re

HIDDEN = "***"

_SECRET_NAMES = (
    r"sig|signature|token|access_token|auth_token|password|passwd|pwd|secret|api_?key|awsaccesskeyid|googleaccessid"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token)|sharedaccesssignature|accountkey"
    r"|aws_secret_access_key|aws_session_token|hf_token|ray_auth_token"
)
_SECRETS = (
    (re.compile(r"(://)[^/@\s'\"]+@"), rf"\1{HIDDEN}@"),  # user:password@host
    (re.compile(rf"((?<![\w-])(?:{_SECRET_NAMES})['\"]?\s*[=:]\s*['\"]?)[^\s&;,'\"<>)\]}}]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"(\b(?:bearer|basic)\s+)[\w.+/=~-]{8,}", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,})\b"), HIDDEN),
)


def redacted(text: str) -> str:
    """``text`` without passwords in URLs, signatures of presigned URLs and SAS tokens, and well-known kinds of keys."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


_MOVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LINES = re.compile("[\t\n]")


def visible(text: str, *, lines: bool = False) -> str:
    """``text`` with characters that control a terminal, or the direction of writing, written out as ``\\x1b``.

    Args:
        text: what may come from outside.
        lines: whether line ends and tabs are left as they are.
    """
    text = _MOVING.sub(_written_out, text)
    return text if lines else _LINES.sub(_written_out, text)


def visible_json(text: str) -> str:
    """JSON with such characters escaped as JSON does it."""
    return _MOVING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _written_out(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
