"""Run the `must` command as a module, as torchrun does: `python -m cli run RECIPE`."""

from cli.main import main

main()
