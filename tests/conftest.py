"""Tests compile quickly, share what they compile, and check every shape annotation."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # set in the first process, for all it starts
    _compiled = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Most of a test's time is compiling: XLA's older emitters of fusions compile four times as fast.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import filelock
import jax
import jaxtyping
import pytest

# A shell that runs the tests in its background has turned Ctrl-C off, also for what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
jaxtyping.install_import_hook("mmrec_jax", "typechecker.check")
if not os.environ.get("JAX_PLATFORMS", "cpu").startswith("cuda"):
    jax.config.update("jax_num_cpu_devices", 8)  # runs use one unless a test says otherwise


@pytest.fixture(scope="session", autouse=True)
def exact_products():
    """GPUs would round the factors of float32 products to TF32."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    """A separate cache of token files for the tests."""
    folder = tmp_path_factory.mktemp("token_cache")
    os.environ["MMREC_CACHE_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """The workdir of a small run of one epoch, trained once for all workers; not to be changed."""
    from mmrec_jax.training.loop import train
    from small_runs import config

    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            train(config(train__num_epochs=1), path)
    return path


@pytest.fixture
def optimized():
    """Compiles as outside of the tests."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
