"""Addresses of servers and databases, without the passwords that may stand in them."""
import re
from urllib.parse import unquote, urlsplit

PASSWORD = re.compile(r"(://[^/\s:@]*):[^\s/]*@")               # of scheme://user:password@host
PARAMETER = re.compile(r"(?i)([?&](?:password|token|secret|api_?key)=)[^&\s'\"]+")


def masked(text: str) -> str:
    """The text with *** in place of every password in an address: of its user, or a parameter behind its `?`."""
    return PARAMETER.sub(r"\1***", PASSWORD.sub(r"\1:***@", text))


def without_user(address: str) -> tuple[str, str, str]:
    """An address without user and password, and these two, decoded; empty where there are none."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    return parts._replace(netloc=host).geturl() if at else address, unquote(name), unquote(password)
