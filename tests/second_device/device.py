"""The processor as a second device, for what runs on a GPU but need not run there to be tested."""

import shutil
import sysconfig
import types
from pathlib import Path

import torch

NAME = "second_device"


def lacking() -> str | None:
    """What this machine lacks to build the device, or None."""
    tools = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        tools.append("Python.h")
    return ", ".join(tools) or None


def make_device(folder: Path) -> torch.device:
    """Build the device in ``folder``, if it is not there, and let torch know it until this process ends."""
    from torch.utils.cpp_extension import load

    folder.mkdir(exist_ok=True)
    source = str(Path(__file__).with_suffix(".cpp"))
    load(NAME, [source], ["-O1"], build_directory=str(folder), is_python_module=False)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.__dict__.update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
        _lazy_init=lambda: None,
    )
    torch._register_device_module(NAME, module)
    return torch.device(NAME)
