"""The command: `linnaeus`, and python -m linnaeus for torchrun and for where the entry point is not on the path."""

import signal


def run() -> None:
    """Run the command line. Ctrl-C during the imports, or after the last line of output, prints no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # `main` handles it itself; between, there is nothing to clean up
    from linnaeus.cli.main import main

    main()


if __name__ == "__main__":
    run()
