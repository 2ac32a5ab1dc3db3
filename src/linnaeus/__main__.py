"""Entry point: the `linnaeus` command, also as `python -m linnaeus`, for torchrun and where it is not on the path."""

import atexit
import gc
import os
import signal
import sys

ALLOCATIONS = 10_000  # new objects after which garbage is collected; Python's default is 700


def run() -> None:
    """Run the command line. Ctrl-C during the imports, or after the last line of output, prints no traceback."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        # Python decodes names before any code runs, and classes would be called ros\udcc3\udca9 instead of rosé.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # A umask such as 777 would forbid this process the files and folders that it makes, and to remove them again.
    os.umask(os.umask(0o077) & 0o077)
    # All charts become files, and matplotlib cannot be imported with a backend that it does not know.
    os.environ["MPLBACKEND"] = "agg"
    # torch and matplotlib make some 100,000 objects that live as long as the process. By default each import looks at
    # them again and again, for a tenth of the time of a short run.
    gc.set_threshold(ALLOCATIONS)
    atexit.register(gc.freeze)  # and once more at the end, for half a second: nothing needs to be freed then
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # `main` handles it itself; between, there is nothing to clean up
    from linnaeus.cli.main import main

    main()


if __name__ == "__main__":
    run()
