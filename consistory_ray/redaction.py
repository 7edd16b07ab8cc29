"""Secrets taken out of text that people and files will see. Pure."""

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
