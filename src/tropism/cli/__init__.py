"""The command line: parse, call one public function, print. Nothing heavy is imported before it is needed."""

from tropism.cli.app import app, main

__all__ = ["app", "main"]
