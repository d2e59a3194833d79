"""`python -m gptcli` is the `gptcli` command."""

from gptcli.cli import main

main()
