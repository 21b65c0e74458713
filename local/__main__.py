"""The command `python -m local`, which `make start` runs; see `local.session`."""

import sys


def main() -> int:
    """Run, and take Ctrl-C at any moment, also while modules are imported, for what it is."""
    if sys.platform == "win32":
        print("This needs Linux or macOS. On Windows, run it in WSL: https://aka.ms/wsl", file=sys.stderr)
        return 1
    try:
        from local.command import run

        return run()
    except KeyboardInterrupt:
        print("\nStopped.", flush=True)
        return 0


if __name__ == "__main__":
    sys.exit(main())
