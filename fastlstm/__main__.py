"""``python -m fastlstm``: the same as the command ``fastlstm``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
