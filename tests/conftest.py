"""Checks every shape annotation of the package while tests run, and only then."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jaxtyping

jaxtyping.install_import_hook("mmrec_jax", "typechecker.check")
