"""What may be shown of addresses and messages: everything but the secrets in them.

Addresses of servers and storage come from the environment, and with them their passwords. Whatever is logged,
tagged, recorded or shown passes through here first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
_LOGIN = re.compile(r"(?<=//)[^/\s'\"]+@")
_IN_QUERY = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|secret|token|signature|credential|api_?key)[\w.-]*=)[^&\s'\"]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|TOKEN|KEY|SALT|CREDENTIALS?|AUTH)(?:_|$)")
_PLACE_NAME = re.compile(r"_(?:FILE|PATH|DIR|URL|URI)$")  # says where a secret is, and is none
_SHORTEST = 6  # a shorter value is more likely a setting, and hiding it would garble every text


def shown(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without what nobody else may read.

    Hidden are logins in URLs (``//user:password@``), parameters with a name such as ``token=``, and, wherever
    they stand, the values of environment variables with a name such as ``MLFLOW_TRACKING_PASSWORD`` or
    ``AWS_SECRET_ACCESS_KEY`` and the passwords of addresses in the environment.

    Args:
        text: a message, a tag, an address.
        environment: where secrets come from.
    """
    for secret in _secrets(environment):
        text = text.replace(secret, HIDDEN)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _LOGIN.sub(f"{HIDDEN}@", text))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Values to hide, the longest first, so that none is left in part."""
    found = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name.upper()) and not _PLACE_NAME.search(name.upper()):
            found.add(value)
        elif "://" in value and "@" in value:
            password = _password(value)
            found |= {password, unquote(password)}
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:  # not an address after all
        return ""
