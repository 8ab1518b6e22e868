"""`python -m madang.cli`: the same as the `madang` command, where no script is installed."""

from madang.cli.main import main

main()
