"""`ray-snake evaluate` as the entry point of a Ray job.

ray job submit --working-dir . -- python jobs/evaluate.py URI/RUN
"""

import sys

from ray_snake.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
