"""Tests run offline, on few threads, and never write into the course's own folders."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings  # noqa: E402

from utils import profiles  # noqa: E402

profiles.wait_in_passing()  # before a test loads torch

# The same examples every time, and no clock: a busy machine must not fail a property.
settings.register_profile("course", derandomize=True, deadline=None)
settings.load_profile("course")
