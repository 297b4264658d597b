"""Is a server well? `python infra/healthy.py URL` ends with 0 if it answers 2xx within five seconds, else with 1.

Standard library only, and never through a proxy: on a cluster `http_proxy` would catch addresses of this machine too.
"""
import sys
import urllib.request


def main(url: str) -> int:
    """0 if `url` answers 2xx, else 1 with the reason on standard error."""
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
