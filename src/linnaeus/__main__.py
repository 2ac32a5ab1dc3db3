"""The command: `linnaeus`, and python -m linnaeus for torchrun and for where the entry point is not on the path."""

import os
import signal
import sys


def run() -> None:
    """Run the command line. Ctrl-C during the imports, or after the last line of output, prints no traceback."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        # Python decodes names before any code runs, and classes would be called ros\udcc3\udca9 instead of rosé.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # `main` handles it itself; between, there is nothing to clean up
    from linnaeus.cli.main import main

    main()


if __name__ == "__main__":
    run()
