"""The files around the code: licence, citation, Makefile, and what setup_env.sh would do where."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neuromamba.common.version import VERSION
from tests.helpers.paths import ROOT

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


# --- plain files ------------------------------------------------------------------------------


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_citation_has_both_papers() -> None:
    text = (ROOT / "CITATION.bib").read_text(encoding="utf-8")
    assert text.count("{") == text.count("}")
    entries = dict(re.findall(r"(?ms)^@\w+\{(\w+),(.*?)^\}", text))
    assert set(entries) == {"choi2025neuromamba", "neurossm2026"}
    for body in entries.values():
        assert {"title", "author", "year", "url"} <= set(re.findall(r"(?m)^ +(\w+) +=", body))


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"(?m)^## (\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})$", changes)
    assert released[0] == (VERSION, str(citation["date-released"]))
    assert citation["version"] == VERSION
    assert [date for _, date in released] == sorted((date for _, date in released), reverse=True)


def test_citation_file_agrees_with_the_bibliography() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what CFF requires
    text = (ROOT / "CITATION.bib").read_text(encoding="utf-8")
    papers = [citation["preferred-citation"], *citation["references"]]
    for paper, entry in zip(papers, text.strip().split("\n\n"), strict=True):
        assert paper["title"] in entry and paper["url"] in entry and str(paper["year"]) in entry
        for author in paper["authors"]:
            if "family-names" in author:
                assert f"{author['family-names']}, {author['given-names']}" in entry


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_the_targets() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"(?m)^  make (\S+)", result.stdout))
    assert {"help", "setup", "demo", "test", "test-all", "lint", "docs", "bench", "clean"} <= listed


@pytest.mark.parametrize(
    "script",
    [
        "setup_env.sh",
        ".ci/run",
        "project/module/utils/data_preprocess_and_load/preprocessing.slurm",
    ],
)
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    assert os.access(ROOT / script, os.X_OK)


def names(file: str) -> list[str]:
    """Packages of a requirements file, normalised; a package may stand there more than once."""
    found = re.findall(r"(?m)^[A-Za-z][\w.-]*", (ROOT / file).read_text(encoding="utf-8"))
    return [re.sub(r"[-_.]+", "-", name).lower() for name in found]


def test_every_requirement_is_pinned_for_each_python() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pattern = re.compile(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?')
    assert [pin for pin in pins if not pattern.fullmatch(pin)] == []

    for python in ('< "3.11"', '>= "3.11"'):
        pinned = {pin.split("==")[0] for pin in pins if ";" not in pin or python in pin}
        files = ("requirements.txt", "requirements-dev.txt", "requirements-docs.txt")
        wanted = {*(name for file in files for name in names(file)), "deepspeed", "wheel"}
        assert wanted <= pinned


# --- setup_env.sh -----------------------------------------------------------------------------

# Stands in for Python: records what pip is asked for and answers questions about torch, so that
# a set-up takes no network and no time. Everything else goes to a real Python.
FAKE_PYTHON = """#!/bin/bash
all="$*"
case "$all" in
    *"-m pip install"*)
        echo "${all#*pip install }" >>"$FAKE_LOG"
        [[ ${FAKE_PIP_STATUS:-0} != 0 || $all != *" -e "* ]] || cp "$0" "${0%/*}/neuromamba"
        exit "${FAKE_PIP_STATUS:-0}"
        ;;
    *"import sys, torch"*) [[ -n ${FAKE_TORCH:-} ]] && echo "$FAKE_TORCH" ;;
    *"m.version(sys.argv"*) echo 2.13.0 ;;
    *"_base_executable"*) echo "$0" ;;
    *"-I -W ignore - requirements.txt"*) cat >/dev/null; echo "torch 2.13.0, CUDA device: none" ;;
    *"-m venv"*)
        venv=${*: -1}
        mkdir -p "$venv/bin" && touch "$venv/pyvenv.cfg" && cp "$0" "$venv/bin/python"
        echo "venv $venv" >>"$FAKE_LOG"
        ;;
    *) exec REAL_PYTHON "$@" ;;
esac
"""


class Machine:
    """A made-up machine: a PATH with the usual tools and chosen fakes."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.venv = folder / "a venv"
        self.log = folder / "log"
        self.bin.mkdir()
        self.log.touch()
        for tool in (
            "bash",
            "cat",
            "cp",
            "cut",
            "dirname",
            "grep",
            "ls",
            "mkdir",
            "rm",
            "tail",
            "touch",
        ):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.add("uname", "echo Linux")
        self.add("curl", "exit 7")
        self.write("python3", FAKE_PYTHON.replace("REAL_PYTHON", f'"{sys.executable}"'))

    def write(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(text, encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def add(self, name: str, script: str) -> None:
        self.write(name, f"#!/bin/bash\n{script}\n")

    def add_gpu(self) -> None:
        self.add("nvidia-smi", 'echo "GPU 0: NVIDIA H100"')

    def set_up(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.venv.parent),
            "CUDA_HOME": "/nonexistent",
            "NEUROMAMBA_VENV_PATH": str(self.venv),
            "FAKE_LOG": str(self.log),
            # what the README tells users to set
            "PYTHONPATH": str(ROOT),
            "TORCH_EXTENSIONS_DIR": str(ROOT / "deepspeed"),
        }
        return subprocess.run(
            [str(self.bin / "bash"), str(ROOT / "setup_env.sh"), *arguments],
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def plan(self, **variables: str) -> dict[str, str]:
        """Step -> 'outcome detail' of a dry run, which must change nothing."""
        result = self.set_up("--dry-run", **variables)
        assert result.returncode == 0, result.stderr
        assert self.installed() == []
        assert not self.venv.exists()
        rows = re.findall(r"(?m)^  (\S+) +(\S+) +(.+)$", result.stdout)
        return {step: f"{outcome} {detail}" for step, outcome, detail in rows}

    def installed(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_plan_without_gpu_or_index(machine: Machine) -> None:
    plan = machine.plan()
    assert plan["torch"].startswith("would install torch==2.13.0 with constraints.txt")
    assert "does not answer" in plan["torch"]
    assert plan["requirements"] == "would install requirements.txt with constraints.txt"
    for step in ("mamba-ssm", "causal-conv1d", "deepspeed"):
        assert plan[step].startswith("skipped no NVIDIA GPU")


def test_tools_of_the_site_are_installed_on_request_and_once(machine: Machine) -> None:
    assert "docs" not in machine.plan()
    first = machine.set_up("--docs", FAKE_TORCH="2.13.0")
    assert first.returncode == 0, first.stderr
    (asked,) = [line for line in machine.installed() if "requirements-docs.txt" in line]
    assert "-c" in asked
    assert machine.set_up("--docs", FAKE_TORCH="2.13.0").returncode == 0
    assert len([line for line in machine.installed() if "requirements-docs.txt" in line]) == 1


def test_plan_without_gpu_with_cpu_index(machine: Machine) -> None:
    machine.add("curl", f'[[ $* == *"--max-time 5"*"{CPU_INDEX}"* ]]')
    assert f"--index-url {CPU_INDEX}" in machine.plan()["torch"]


def test_plan_with_gpu(machine: Machine) -> None:
    machine.add_gpu()
    machine.add("curl", "exit 0")  # the CPU index answers, but is not wanted
    plan = machine.plan()
    assert "ordinary index, with CUDA" in plan["torch"]
    assert plan["mamba-ssm"].startswith("would install")
    assert plan["causal-conv1d"].startswith("skipped no nvcc")
    assert plan["deepspeed"].startswith("would install")

    machine.add("nvcc", "exit 0")
    assert machine.plan()["causal-conv1d"].startswith("would install")
    assert machine.plan(NEUROMAMBA_DEEPSPEED="0")["deepspeed"].startswith("skipped")
    assert machine.plan(NEUROMAMBA_GPU="0")["mamba-ssm"].startswith("skipped")


def test_plan_for_the_interpreted_kernels(machine: Machine) -> None:
    result = machine.set_up("--dry-run", "--kernels-test")
    assert result.returncode == 0, result.stderr
    assert re.search(r"(?m)^  triton +would +install triton==", result.stdout)
    assert re.search(r"(?m)^  mamba-ssm +would +install", result.stdout)
    assert "triton" not in machine.plan()


def test_plan_ignores_a_driver_without_gpu(machine: Machine) -> None:
    machine.add("nvidia-smi", "echo 'No devices were found'; exit 6")
    assert machine.plan()["mamba-ssm"].startswith("skipped")


def test_plan_for_a_login_node(machine: Machine) -> None:
    plan = machine.plan(NEUROMAMBA_GPU="1", NEUROMAMBA_DEEPSPEED="1")
    assert "with CUDA" in plan["torch"]
    assert plan["deepspeed"].startswith("would install")


def test_plan_honours_torch_index_url(machine: Machine) -> None:
    machine.add_gpu()
    url = "https://download.pytorch.org/whl/cu128"
    assert f"--index-url {url} torch>=2.6" in machine.plan(TORCH_INDEX_URL=url)["torch"]


def test_plan_keeps_the_machines_torch(machine: Machine) -> None:
    plan = machine.plan(FAKE_TORCH="2.8.0a0+nv25.8")
    assert "with the packages of" in plan["python"]
    assert plan["torch"].startswith("kept 2.8.0a0+nv25.8")
    url = "https://download.pytorch.org/whl/cu128"  # asks for another
    plan = machine.plan(FAKE_TORCH="2.8.0a0+nv25.8", TORCH_INDEX_URL=url)
    assert "with the packages of" not in plan["python"]


def test_second_run_installs_nothing(machine: Machine) -> None:
    first = machine.set_up()
    assert first.returncode == 0, first.stderr
    assert "torch 2.13.0" in first.stdout
    steps = [re.sub(r" -c .*", "", line) for line in machine.installed()]
    assert steps == [
        f"venv {machine.venv}",
        "-q torch==2.13.0",
        "-q -r requirements.txt",
        f"-q --no-deps --no-build-isolation -e {ROOT}",
    ]

    second = machine.set_up()
    assert second.returncode == 0
    assert "is up to date" in second.stdout
    assert len(machine.installed()) == 4

    machine.set_up("--dev")
    assert machine.installed()[4].startswith("-q -r requirements-dev.txt")
    assert machine.installed()[5].startswith("-q deepspeed -c")  # the tests train with it
    machine.set_up("--dev")
    machine.set_up()  # the smaller set is part of the larger one
    assert len(machine.installed()) == 6

    machine.set_up("--force")
    assert len(machine.installed()) > 6


def test_the_package_is_installed_again_where_it_is_gone(machine: Machine) -> None:
    """Without its console script, or from another checkout."""
    plan = machine.plan()
    assert f"install neuromamba from {ROOT}, editable" in plan["package"]
    assert machine.set_up().returncode == 0
    before = machine.installed()
    (machine.venv / "bin" / "neuromamba").unlink()
    again = machine.set_up()
    assert again.returncode == 0 and re.search(r"package +installed", again.stdout)
    (machine.venv / ".setup" / "package").write_text("key /another/checkout\n")
    machine.set_up()
    assert machine.installed() == [*before, before[-1], before[-1]]


def test_failing_optional_step_warns_once_and_is_not_repeated(machine: Machine) -> None:
    assert machine.set_up().returncode == 0
    before = len(machine.installed())
    failed = machine.set_up(NEUROMAMBA_DEEPSPEED="1", FAKE_PIP_STATUS="1")
    assert failed.returncode == 0
    assert re.search(r"deepspeed +FAILED", failed.stdout)
    assert "remedy:" in failed.stdout
    again = machine.set_up(NEUROMAMBA_DEEPSPEED="1", FAKE_PIP_STATUS="1")
    assert "failed in an earlier run" in again.stdout
    assert len(machine.installed()) == before + 1


def test_failure_names_step_and_remedy(machine: Machine) -> None:
    result = machine.set_up(FAKE_PIP_STATUS="1")
    assert result.returncode == 1
    assert 'step "torch" failed' in result.stderr
    assert "Remedy:" in result.stderr


def test_folder_that_is_no_environment_is_left_alone(machine: Machine) -> None:
    machine.venv.mkdir()
    (machine.venv / "thesis.txt").touch()
    result = machine.set_up()
    assert result.returncode == 1
    assert "not a virtual environment" in result.stderr
    assert os.listdir(machine.venv) == ["thesis.txt"]


def test_old_python_is_refused(machine: Machine) -> None:
    machine.add("python3", "[[ $1 == --version ]] && echo Python 3.8.1; exit 1")
    result = machine.set_up(PYTHON="python3")
    assert result.returncode == 1
    assert "not a Python >= 3.10 (Python 3.8.1)" in result.stderr
