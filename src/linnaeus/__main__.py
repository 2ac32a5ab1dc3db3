"""python -m linnaeus: the command, for torchrun and for where the entry point is not on the path."""

from linnaeus.cli.main import main

if __name__ == "__main__":
    main()
