"""The documents: links, named commands and keys, and the scripts they show."""

import os
import pkgutil
import re
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from petomo.cli import app
from petomo.workflow.config import Config

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not {"_build", "_generated"} & set(path.parts)
)


def ids(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist(page):
    known = get_command(app).commands
    for line in re.findall(r"`petomo ([a-z_]+)|^\$ petomo ([a-z_]+)", page.read_text(), flags=re.MULTILINE):
        assert (line[0] or line[1]) in known


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"`make ([a-z-]+)|^\s*\$ make ([a-z-]+)", page.read_text(), flags=re.MULTILINE):
        assert (target[0] or target[1]) in targets


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_keys_exist(page):
    sections = "data|volume|bright_field|ptychography|alignment|end_to_end|analysis|compute|output"
    for key in re.findall(rf"`((?:{sections})(?:\.[a-z_0-9]+)+)[`:=]", page.read_text()):
        model = Config
        for part in key.split("."):
            if part.isdigit() or not hasattr(model, "model_fields"):
                break  # inside a list
            if key.endswith((".h5", ".mrc", ".json", ".py")):
                break  # a file
            assert part in model.model_fields, f"{key}: no key {part}"
            model = model.model_fields[part].annotation


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_functions_exist(page):
    for name in set(re.findall(r"`(petomo(?:\.\w+)+)`", page.read_text())) - {"petomo.schema.json"}:
        pkgutil.resolve_name(name.replace("step_NAME", "step_analysis"))


@pytest.fixture
def queue(tmp_path):
    """A stand-in for the cluster: `petomo` and `scontrol` write down what they are asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "petomo": "trap 'sleep 0.3; exit 130' TERM\n"
        "echo petomo \"$@\" >> \"$LOG\"\nmkdir -p \"$4\"; touch \"$4/state.json\"\n"
        "for _ in $(seq $STEPS); do sleep 0.05; done\n",
        "scontrol": "echo scontrol \"$@\" >> \"$LOG\"\n",
    }  # fmt: skip
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}")
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    path = f"{tools}:{os.environ['PATH']}"
    environment = {"PATH": path, "LOG": str(log), "SLURM_JOB_ID": "7"}

    def start(steps: int) -> subprocess.Popen:
        script = str(ROOT / "examples" / "slurm.sh")
        return subprocess.Popen(
            ["bash", script, "my.yaml", "RUN"], cwd=tmp_path, env={**environment, "STEPS": str(steps)}
        )

    return start, log


def test_the_slurm_script_saves_requeues_and_resumes(queue):
    start, log = queue
    job = start(200)
    while not log.exists():
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(5) == 130
    assert start(1).wait(5) == 0
    assert log.read_text().splitlines() == [
        "petomo run my.yaml --out RUN",
        "scontrol requeue 7",
        "petomo run my.yaml --out RUN --resume",
    ]


def test_every_extra_has_its_licence_noted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "licences.md").read_text()
    for name, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            package, extras = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
            assert f"| `{name}` | {package} |" in page
            assert "qt" not in (extras or "") or "PyQt" in page
    for requirement in project["dependencies"]:
        assert re.split(r"[<>=\[ ]", requirement)[0] in page


def snippets():
    """Every YAML block of the pages that is a piece of a configuration."""
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)):
            values = YAML(typ="safe", pure=True).load(text)
            if isinstance(values, dict) and set(values) & set(Config.model_fields):
                found.append(pytest.param(values, id=f"{ids(page)}-{number}"))
    return found


@pytest.mark.parametrize("values", snippets())
def test_yaml_on_the_pages_is_valid(values):
    Config.model_validate(values)
