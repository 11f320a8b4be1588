"""`python -m tropism` is the `tropism` command."""

from tropism.cli import main

main()
