"""`python -m raystream.cli`."""

from raystream.cli.commands import main

main()
