"""Make a key for a caller: `python -m local.key NAME`, or `make key NAME=team-a`.

The key is printed once and stored nowhere. The app and Terraform get its SHA-256 only.
"""

import argparse
import hashlib
import secrets
import sys

from relay.callers.settings import NAME

# Recognised by a search for leaked keys: relay_[A-Za-z0-9_-]{43}
_PREFIX = "relay_"
_BYTES = 32  # 256 bits


def new_key() -> str:
    """A key of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_BYTES)


def main(arguments: list[str] | None = None) -> int:
    """Print a key, and the lines by which the app knows it; 2 where the name is none."""
    parser = argparse.ArgumentParser(prog="make key NAME=…", description="Make a key for a caller.")
    parser.add_argument("name", help="the caller's name, such as team-a")
    name = parser.parse_args(arguments).name
    if not NAME.fullmatch(name):
        parser.error("a name has at most 31 letters, digits, '.', '_' and '-'; the first one is a letter or digit")
    key = new_key()
    digest = hashlib.sha256(key.encode()).hexdigest()
    sys.stdout.write(
        f"The key of {name}, which is shown once and stored nowhere. Give it to the caller:\n\n"
        f"  {key}\n\n"
        "For terraform.tfvars (with a second digest in the list, both keys are valid, for a rotation):\n\n"
        f'  callers = {{ "{name}" = {{ key_digests = ["{digest}"] }} }}\n\n'
        "Or for the app setting CALLERS:\n\n"
        f'  {{"{name}": {{"key_digests": ["{digest}"]}}}}\n'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
