"""`ray-snake data fetch` as the entry point of a Ray job: data sets land where the job runs.

ray job submit -- python jobs/fetch_data.py cifar10 --out /shared/cifar10
"""

import sys

from ray_snake.cli.main import main

if __name__ == "__main__":
    main(["data", "fetch", *sys.argv[1:]])
