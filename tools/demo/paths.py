"""Where things lie: results in the repository, everything heavy or temporary outside it."""

import os
import tempfile
from pathlib import Path

MODEL_DIR = Path(__file__).resolve().parents[2] / "models" / "demo"
ADAPTERS_DIR = MODEL_DIR / "adapters"
EVAL_DIR = MODEL_DIR / "eval"
WORK_DIR = Path(os.environ.get("POLYDELTA_DEMO_WORK", Path(tempfile.gettempdir()) / "polydelta-demo"))
