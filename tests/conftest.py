import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# Programs compiled once serve all tests and workers of a run: those of a layer with a fault planted
# differ from it on one side only, and so do the dtypes of a case.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="funcprop-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Before JAX starts: eight virtual devices, for the tests of meshes and shard_map; and machine code
# that is not optimised, as most of the time goes into compiling.  `funcprop check` holds the same
# bounds on the code that users run.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_cpu_parallel_codegen_split_count=1"
)
if version("jaxlib").startswith("0.10."):  # the older emitters compile in half the time
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

# Tracing makes many objects that live as long as the caches of JAX do; looking through them again
# and again takes a tenth of the time.
gc.set_threshold(200_000, 20, 20)


@pytest.fixture
def strict():
    """Strict dtype promotion, as all of our own layers, losses and sweeps must survive it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def no_cause(monkeypatch):
    """The cause of a wrong gradient is not looked for, which takes seconds."""
    from funcprop.checking import comparison, functions, layers, models

    for module in (functions, layers, models):
        monkeypatch.setattr(module, "with_findings", lambda report, *_, **__: report)
    monkeypatch.setattr(comparison, "diagnose", lambda *_, **__: ())
