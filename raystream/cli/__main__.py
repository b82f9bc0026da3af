"""`python -m raystream.cli`."""

from raystream.cli.commands import main

if __name__ == "__main__":
    main()
