"""Workers of pytest-xdist share the processors: each, and what it starts, computes in one thread."""

import os

# The suite is of the processor, so that it runs the same where there are GPUs; `benchmark.measure.gpu` is of those.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hypothesis import settings

settings.register_profile("suite", derandomize=True, deadline=None)  # the same cases every time
settings.load_profile("suite")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
