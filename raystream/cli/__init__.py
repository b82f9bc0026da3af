"""The command line: `raystream`, one function a command. It reads what is asked, calls `raystream.run`, and prints what came out."""

from raystream.cli.commands import app, main

__all__ = ["app", "main"]
