"""What tests of the workflow share."""

import pytest
import torch
from minute_run import RUN, SPEC, petomo


@pytest.fixture(scope="session")
def minute(tmp_path_factory):
    """Folder with a simulated series, a configuration, and a whole run of it in ``run``."""
    folder = tmp_path_factory.mktemp("minute")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "run.yaml").write_text(RUN)
    torch.set_num_threads(1)
    petomo("simulate", folder / "spec.yaml", "--out", folder / "data")
    petomo("run", folder / "run.yaml", "--out", folder / "run")
    return folder
