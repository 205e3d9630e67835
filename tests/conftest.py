"""Workers of pytest-xdist share the processors: each, and what it starts, computes in one thread."""

import os
import signal

from hypothesis import settings

# The suite tests the processor, so that it runs the same where there are GPUs; `benchmark.measure.gpu` tests those.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Tests that run git are told nothing by the user's settings, and never touch the repository of a hook that runs the suite.
for name in [name for name in os.environ if name.startswith("GIT_")]:
    del os.environ[name]
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
# What a script starts in the background ignores Ctrl-C, and what nohup starts a terminal's end; so would what a test starts.
for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, handler)

settings.register_profile("suite", derandomize=True, deadline=None)  # the same cases every time
settings.load_profile("suite")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
