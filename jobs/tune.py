"""`ray-snake tune` as the entry point of a Ray job.

ray job submit --working-dir . -- python jobs/tune.py jobs/configs/NAME.toml --storage URI
"""

import sys

from ray_snake.cli.main import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
