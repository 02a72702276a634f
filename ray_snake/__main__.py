"""`python -m ray_snake`: the command line, where its script is not on the path."""

from ray_snake.cli.main import main

main()
