"""One thread a process: tests run in as many processes as there are cores; tiny models gain nothing from threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; programs that tests start inherit it
