"""Addresses of servers and databases, without the passwords that may stand in them."""
import re
from urllib.parse import unquote, urlsplit

# scheme://user:password@host; a password may hold what it should not: a slash, an @, a colon. But behind http://host
# digits and a slash are a port and a path.
PASSWORD = re.compile(r"((?:(?<!http)(?<!https)|(?!://[^/\s:@]*:\d+[/?#]))://[^/\s:@]*):((?:(?!://)\S)*)@")
PARAMETER = re.compile(r"(?i)([?&](?:password|token|secret|api_?key)=)[^&\s'\"]+")


def masked(text: str) -> str:
    """The text with *** in place of every password in an address: of its user, or a parameter behind its `?`."""
    return PARAMETER.sub(r"\1***", PASSWORD.sub(r"\1:***@", text))


def without_user(address: str) -> tuple[str, str, str]:
    """An address without user and password, and these two, decoded; empty where there are none."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    if not at and (found := PASSWORD.search(address)):      # a slash in the password ends what urlsplit takes for it
        name, password = found[1].removeprefix("://"), found[2]
        return f"{parts.scheme}://{address[found.end():]}", unquote(name), unquote(password)
    name, _, password = user.partition(":")
    return parts._replace(netloc=host).geturl() if at else address, unquote(name), unquote(password)
