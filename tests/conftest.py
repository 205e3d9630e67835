"""Workers of pytest-xdist share the processors: each, and what it starts, computes in one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
