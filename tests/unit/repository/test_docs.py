"""The documentation, held true: commands are parsed, snippets run, links and figures checked.

Commands that hold ``/path/to`` need data and are only parsed; ``test_cpu_commands_run`` (slow)
types all others in the order of the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pytest
import torch

from benchmarks import ingest, loader, loss_scaling, memory_plan, training_step, use_a_model
from neuromamba.__main__ import COMMANDS
from neuromamba.commands import check as check_command
from neuromamba.commands import (
    check_store as check_and_clean_hdf5,
)
from neuromamba.commands import (
    convert_reference as convert_data_into_hdf5_revised,
)
from neuromamba.commands import (
    demo,
    doctor,
    label_efficiency,
    quality,
    report,
    reproduce,
)
from neuromamba.commands import embed as embed_command
from neuromamba.commands import explain as explain_command
from neuromamba.commands import plan as plan_command
from neuromamba.commands import predict as predict_command
from neuromamba.commands import (
    preprocess as preprocessing,
)
from neuromamba.commands import (
    profile as deepspeed_profile,
)
from neuromamba.commands import regions_extract as roi
from neuromamba.commands import regions_train as tester
from neuromamba.commands import rollout as rollout_command
from neuromamba.commands import synthetic as synthetic_command
from neuromamba.commands import train as entry
from neuromamba.commands.export import export_parser
from neuromamba.commands.flops import flops_parser
from neuromamba.commands.regions_explain_reference import build_parser as analysis_parser
from neuromamba.commands.regions_import import build_parser as import_parser
from neuromamba.commands.regions_paint import build_parser as paint_parser
from neuromamba.commands.regions_synthetic import build_parser as synthetic_roi_parser
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.config.model import VARIANTS, ModelConfig
from neuromamba.config.tasks import TASKS
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.manifest import ManifestRow
from neuromamba.data.store.reader import RunHeader
from neuromamba.data.store.writer import write_run
from neuromamba.fmamba.build import build_model, load_model_config
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.probe_flags import parse_probe, probe_parser
from neuromamba.fmamba.run_config import run_config
from neuromamba.planning import flops
from neuromamba.planning.plan_request import request_of
from paper import frozen_decoding, haxby2001
from tests.helpers.paths import ROOT
from tests.helpers.trained_model import Trained

DOCS = [
    "README.md",
    "ADDING_YOUR_DATASET.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "paper/README.md",
    "project/README.md",
    "project/neurossm/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "sample_scripts").rglob("*.md")),
]
# What the text names of other programs: torchrun, srun, sbatch, mpiexec.
LAUNCHER_FLAGS = {
    "--nproc_per_node",
    "--nnodes",
    "--standalone",
    "--nodes",
    "--ntasks",
    "--kill-on-bad-exit",
    "--ntasks-per-node",
    "--cpus-per-task",
    "--gpus-per-task",
    "--gres",
    "--partition",
    "--mem",
    "--pty",
    "--signal",
    "--requeue",
}

# The two training commands of the NeuroMamba README, as they stand there.
PRETRAIN_COMMAND = r"""
python project/main.py \
--model fmamba \
--pretraining \
--use_autoregressive \
--calc_loss_without_background \
--embed_dim 192 --depth 12 \
--patch_size 6 6 6 2 \
--img_size 96 96 96 20 \
--batch_size 3 \
--gradient_accumulation_steps 1 \
--precision bf16 \
--dataset_name S1200 \
--image_path /path/to/hdf5 \
--max_epochs 40 \
--learning_rate 1e-4 \
--weight_decay 1e-2 \
--accelerator gpu --devices 12 --num_nodes 32 \
--strategy deepspeed_stage_1 \
--loggername wandb \
--project_name neuromamba_pretrain
"""
DOWNSTREAM_COMMAND = r"""
python project/main.py \
--model fmamba \
--downstream_task sex \
--downstream_task_type classification \
--dataset_name HCP \
--image_path /path/to/hcp_hdf5 \
--load_model_path /path/to/3M_E192.pt \
--embed_dim 192 --depth 12 \
--clf_head_version mamba \
--patch_size 6 6 6 2 \
--img_size 96 96 96 20 \
--batch_size 2 \
--precision bf16 \
--max_epochs 30 \
--accelerator gpu --devices 12 --num_nodes 2 \
--strategy deepspeed_stage_1 \
--loggername wandb \
--project_name neuromamba_hcp_sex
"""
FLOPS_COMMAND = r"""
python project/check_flops.py \
--model fmamba \
--embed_dim 256 --depth 12 \
--patch_size 6 6 6 2 \
--img_size 96 96 96 20 \
--batch_size 1 \
--image_path /path/to/hcp_hdf5 \
--dataset_name HCP \
--downstream_task sex
"""


# --- reading Markdown ---------------------------------------------------------------------------


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    """Fenced blocks of these languages."""
    found = re.findall(r"(?ms)^ *```(\w*)[^\n]*\n(.*?)^ *```", read(name))
    return [body for language, body in found if language in languages]


def commands_of(shell: str) -> list[list[str]]:
    """Words of every command of a script, comments gone, continued lines joined."""
    lines = shell.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shell_commands(name: str) -> list[list[str]]:
    """Words of every command in the shell blocks.

    Commands of NeuroSSM's README are typed in its folder.
    """
    commands = commands_of("\n".join(blocks(name, "bash", "sh", "shell", "console")))
    if name.startswith("project/"):
        folder = PurePosixPath(name).parent
        for words in commands:
            if words[0] == "python":
                words[1] = str(folder / words[1])
    return commands


def prose(name: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"(?ms)^ *```.*?^ *```", "", read(name))


def tables(name: str) -> list[tuple[str, str]]:
    """(paragraph before, table)."""
    return re.findall(r"(?m)((?:^(?!\|).+\n)*)\n((?:^\|.*\n)+)", prose(name))


def anchors(name: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(name))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- commands -----------------------------------------------------------------------------------


def _parse_run(arguments: Sequence[str]) -> None:
    run_config(*parse_arguments(build_parser(), arguments))


def _parse_label_efficiency(arguments: Sequence[str]) -> None:
    args, given = parse_arguments(label_efficiency.build_parser(), arguments)
    label_efficiency.check(args, given)
    complete = vars(build_parser().parse_args([])) | vars(args)
    run_config(argparse.Namespace(**complete), given)


def _parse_flops(arguments: Sequence[str]) -> None:
    run_config(*parse_arguments(flops_parser(), arguments))


def _parse_reproduction(words: Sequence[str]) -> None:
    """What follows ``--`` are flags of a run."""
    own = list(words)
    if "--" in own:
        at = own.index("--")
        own, extra = own[:at], own[at + 1 :]
        _parse_run(["--dataset_name", "HCP", "--downstream_task", "sex", *extra])
    reproduce.build_parser().parse_args(own)


def _parse_plan(words: Sequence[str]) -> None:
    request_of(plan_command.planned_run(words))


Parse = Callable[[Sequence[str]], object]
# Every command of ``neuromamba``, and how its words are checked without doing anything.
PARSERS: dict[str, Parse] = {
    "": lambda words: None,  # --help, --version
    "train": _parse_run,
    "label-efficiency": _parse_label_efficiency,
    "flops": _parse_flops,
    "profile": deepspeed_profile.checked,
    "doctor": lambda words: parse_arguments(doctor.doctor_parser(), words),
    "plan": _parse_plan,
    "reproduce": _parse_reproduction,
    "report": lambda words: report.build_parser().parse_args(words),
    "probe": lambda words: parse_probe(words),
    "check": lambda words: check_command.build_parser().parse_args(words),
    "predict": lambda words: predict_command.build_parser().parse_args(words),
    "embed": lambda words: embed_command.build_parser().parse_args(words),
    "explain": lambda words: explain_command.build_parser().parse_args(words),
    "rollout": lambda words: rollout_command.build_parser().parse_args(words),
    "quality": lambda words: quality.build_parser().parse_args(words),
    "export": lambda words: export_parser().parse_args(words),
    "demo": lambda words: demo.build_parser().parse_args(words),
    "build-kernels": lambda words: set(words) <= {"--force"},
    "preprocess": lambda words: preprocessing.build_parser().parse_args(words),
    "convert-reference": lambda words: convert_data_into_hdf5_revised.build_parser().parse_args(
        words
    ),
    "check-store": lambda words: check_and_clean_hdf5.build_parser().parse_args(words),
    "synthetic": lambda words: synthetic_command._parser().parse_args(words),
    "regions train": lambda words: tester.build_parser().parse_args(words),
    "regions import": lambda words: import_parser().parse_args(words),
    "regions extract": lambda words: roi.build_parser().parse_args(words),
    "regions paint": lambda words: paint_parser().parse_args(words),
    "regions synthetic": lambda words: synthetic_roi_parser().parse_args(words),
    "regions explain-reference": lambda words: analysis_parser().parse_args(words),
}
DATA_LAYER = "project/module/utils/data_preprocess_and_load"
# The reference's scripts -> the command that they are.
FACES = {
    "project/main.py": "train",
    "project/check_flops.py": "flops",
    "project/deepspeed_profile.py": "profile",
    f"{DATA_LAYER}/preprocessing.py": "preprocess",
    f"{DATA_LAYER}/preprocessing_HCP_v2.py": "preprocess",
    f"{DATA_LAYER}/convert_data_into_hdf5_revised.py": "convert-reference",
    f"{DATA_LAYER}/check_and_clean_hdf5.py": "check-store",
    "project/neurossm/tester.py": "regions train",
    "project/neurossm/Analysis/run_cpa_analysis.py": "regions explain-reference",
}
BENCHMARKS: dict[str, Parse] = {
    "benchmarks/training_step.py": lambda words: training_step.flags().parse_args(words),
    "benchmarks/loader.py": lambda words: loader.flags().parse_args(words),
    "benchmarks/ingest.py": lambda words: ingest.flags().parse_args(words),
    "benchmarks/loss_scaling.py": lambda words: loss_scaling.flags().parse_args(words),
    "benchmarks/use_a_model.py": lambda words: use_a_model.flags().parse_args(words),
    "benchmarks/memory_plan.py": lambda words: memory_plan.flags().parse_args(words),
}


def command_in(words: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """Name of our command among the words of a shell's, and the words after it."""
    for at, word in enumerate(words):
        if word in FACES:
            return FACES[word], words[at + 1 :]
        if word == "neuromamba":
            if words[at + 1] in ("--help", "--version"):
                return "", ()
            length = 2 if words[at + 1] == "regions" else 1
            end = at + 1 + length
            return " ".join(words[at + 1 : end]), words[end:]
    return None


def stand_ins(folder: Path) -> dict[str, str]:
    """Files that the command line reads while it is parsed: placeholder -> path."""
    rows = ["participant_id,subject,group,diagnosis", "1,1,patient,patient", "2,2,control,control"]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    rows = ["onset\tduration\ttrial_type", "0\t20\tface", "20\t20\thouse"]
    (folder / "task-objects_events.tsv").write_text("\n".join(rows) + "\n")
    tables = ("/path/to/table.csv", "data/my_nifti/participants.csv")
    return dict.fromkeys(tables, str(folder / "table.csv")) | {"/path/to/bids": str(folder)}


@pytest.mark.parametrize("name", DOCS)
def test_commands_are_parsed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    places = stand_ins(tmp_path)
    targets = set(re.findall(r"(?m)^([a-z-]+):", read("Makefile")))
    for words in shell_commands(name):
        if (found := command_in(words)) is not None:
            command, flags = found
            assert command in PARSERS, f"{name}: no parser known for {words}"
            # Checkpoint metadata would complete the flags; they must also fit without them.
            PARSERS[command]([places.get(word, word) for word in flags])
        elif words[0] == "python" and words[1] in BENCHMARKS:
            BENCHMARKS[words[1]](words[2:])
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
            for word in words[1:]:
                if words[1] == "demo" and word.startswith("ARGS="):
                    demo.build_parser().parse_args(shlex.split(word.removeprefix("ARGS=")))
        elif scripts := [word for word in words if word.startswith("sample_scripts/")]:
            check_script_call(words, *scripts)
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file(), words
            assert set(words[2:]) <= set(re.findall(r"--[\w-]+", read("setup_env.sh"))), words


def check_script_call(words: Sequence[str], script: str) -> None:
    """A sample script that exists, by its scheduler or bash, with settings that it knows."""
    assert os.access(ROOT / script, os.X_OK), words
    commons = [ROOT / "sample_scripts/common.sh", ROOT / "sample_scripts/downstream/common.sh"]
    commons += [ROOT / "sample_scripts/pretraining/common.sh", ROOT / script]
    text = "\n".join(path.read_text(encoding="utf-8") for path in commons)
    settings = re.findall(r"(\w+)=\$\{\1:-", text)
    given = [part.split("=")[0] for word in words for part in word.split(",") if "=" in part]
    assert set(given) <= {*settings, "REPOSITORY"}, words
    (program,) = {"bash", "sbatch", "qsub"} & set(words)
    assert program == "bash" or {"qsub": "#PBS", "sbatch": "#SBATCH"}[program] in text, words


def test_commands_are_found() -> None:
    commands = [words for name in DOCS for words in shell_commands(name)]
    found = {named[0] for words in commands if (named := command_in(words)) is not None}
    assert found == set(PARSERS)
    assert {"", *(name for group in COMMANDS.values() for name in group)} == set(PARSERS)
    assert ["make", "demo"] in commands


@pytest.mark.parametrize("command", [PRETRAIN_COMMAND, DOWNSTREAM_COMMAND])
def test_command_of_the_reference_passes_the_dry_run(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (words,) = commands_of(command)
    assert words in shell_commands("README.md")
    absent_checkpoint = "--load_model_path" in words  # named in the plan, and then refused
    assert entry.main([*words[2:], "--dry_run"]) == (2 if absent_checkpoint else 0)
    plan = capsys.readouterr().out
    assert "effective batch" in plan
    assert "/path/to" in plan  # named as missing


def test_flops_command_of_the_reference_is_in_the_readme() -> None:
    assert commands_of(FLOPS_COMMAND)[0] in shell_commands("README.md")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "names",
    [
        ("README.md",),
        ("ADDING_YOUR_DATASET.md",),
        ("docs/own_data.md", "docs/pretrain.md", "docs/fine_tune.md"),
    ],
    ids=lambda names: names[0],
)
def test_cpu_commands_run(names: Sequence[str], tmp_path: Path) -> None:
    for folder in ("project", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    ran = 0
    for words in (words for name in names for words in shell_commands(name)):
        if words[0] not in ("python", "neuromamba", "mkdir", "cp"):
            continue
        if "/path/to" in " ".join(words):
            continue
        if words[0] == "python":
            words = [sys.executable, *words[1:]]
        elif words[0] == "neuromamba":
            words = [sys.executable, "-m", *words]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 5


@functools.cache
def known_flags() -> set[str]:
    """Every flag that a user of this repository may type."""
    parsers = (
        flops_parser(),
        preprocessing.build_parser(),
        convert_data_into_hdf5_revised.build_parser(),
        check_and_clean_hdf5.build_parser(),
        synthetic_command._parser(),
        demo.build_parser(),
        quality.build_parser(),
        check_command.build_parser(),
        predict_command.build_parser(),
        embed_command.build_parser(),
        explain_command.build_parser(),
        rollout_command.build_parser(),
        report.build_parser(),
        label_efficiency.build_parser(),
        reproduce.build_parser(),
        haxby2001.build_parser(),
        frozen_decoding.build_parser(),
        export_parser(),
        probe_parser(),
        deepspeed_profile.profile_parser(),
        doctor.doctor_parser(),
        plan_command.plan_parser(),
        tester.build_parser(),
        synthetic_roi_parser(),
        analysis_parser(),
        roi.build_parser(),
        import_parser(),
    )
    parsers += tuple(script.flags() for script in (training_step, loader, ingest, memory_plan))
    flags = {o for parser in parsers for action in parser._actions for o in action.option_strings}
    for script in ("gpu_check", "cpu_steps"):
        flags |= set(re.findall(r'"(--[\w-]+)"', read(f"benchmarks/{script}.py")))
    return flags | LAUNCHER_FLAGS | set(re.findall(r"--[\w-]+", read("setup_env.sh")))


@pytest.mark.parametrize("name", DOCS)
def test_flags_in_the_text_exist(name: str) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(name))
    flags = {flag for span in spans for flag in re.findall(r"(?<!\S)--[a-zA-Z][\w-]*", span)}
    assert flags <= known_flags()


# --- snippets -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def placeholders(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> dict[str, Path]:
    """Small stand-ins for what the snippets call /path/to/...."""
    folder = tmp_path_factory.mktemp("placeholders")
    released = folder / "3M_E192.pt"
    weights = build_model(load_model_config(ROOT / "configs/neuromamba_base.yaml")).state_dict()
    torch.save({f"_forward_module.model.{key}": value for key, value in weights.items()}, released)
    store = folder / "store"
    (store / "hdf5").mkdir(parents=True)
    write_run(
        store / "hdf5" / "sub-01.h5",
        torch.rand(12, 3).numpy(),
        torch.tensor([0, 2, 5]).numpy(),
        grid=(2, 2, 2),
        affine=torch.diag(torch.tensor([-2.0, 2, 2, 1])).numpy(),
        source=RunSource(subject="sub-01", tr=2.0),
    )
    return {
        "/path/to/3M_E192.pt": released,
        "/path/to/store": store,
        "output/demo/finetune": trained.sex,
        "output/demo/pretrain": trained.backbone,
        "output/demo/nifti/sub-0001_task-rest_bold.nii.gz": trained.scan(1),
        "output/demo/nifti": trained.nifti,
    }


SNIPPETS = [(name, code) for name in DOCS for code in blocks(name, "python")]


@pytest.mark.parametrize(
    ("name", "code"), SNIPPETS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SNIPPETS)]
)
def test_snippet_runs(
    name: str, code: str, placeholders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for placeholder, path in placeholders.items():
        code = code.replace(placeholder, str(path))
    exec(compile(code, name, "exec"), {})


def test_released_sizes_in_the_readme(placeholders: dict[str, Path]) -> None:
    size = placeholders["/path/to/3M_E192.pt"].stat().st_size / 2**20
    assert re.search(rf"`3M_E192\.pt` .*\| {size:.1f} MiB \|", read("README.md"))


# --- links and layout ---------------------------------------------------------------------------

BUILT = ("docs/reference/commands/", "docs/gallery/")


@pytest.mark.parametrize("name", DOCS)
def test_links_resolve(name: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        page = target.resolve()
        if page.is_relative_to(ROOT) and page.relative_to(ROOT).as_posix().startswith(BUILT):
            continue  # written by `make docs`, which refuses links to what it does not write
        resolves = page.exists() and page.is_relative_to(ROOT)
        if resolves and anchor:
            resolves = anchor in anchors(page.relative_to(ROOT).as_posix())
        if not resolves:
            broken.append(link)
    assert broken == []


def top_level(*options: str) -> set[str]:
    """Top-level entries that ``git ls-files`` lists."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout ({error})")
    return {path.split("/")[0] for path in listed}


@functools.cache
def tracked_files() -> set[str]:
    """Files of the repository, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return set(listed.stdout.splitlines())


def layout() -> list[PurePosixPath]:
    """Paths of the tree in the README's section, without the repository's own name."""
    (section,) = re.findall(r"(?ms)^## Repository Layout\n(.*?)^## ", read("README.md"))
    tree = re.search(r"(?ms)^```text\nNeuroMamba/\n(.*?)^```", section)
    assert tree is not None
    paths: list[PurePosixPath] = []
    parents: list[str] = []
    for line in tree[1].splitlines():
        match = re.fullmatch(r"([│ ]*)[├└]── (\S+)(?: .*)?", line)
        assert match is not None, line
        depth = len(match[1]) // 4
        parents[depth:] = [match[2].rstrip("/")]
        paths.append(PurePosixPath(*parents))
    return paths


def words_of(text: str) -> list[str]:
    """Words and numbers of Markdown, tables included; targets of links are left out."""
    return re.findall(r"\w[\w.,%/+-]*", re.sub(r"\]\([^)]*\)", "]", text))


def test_readme_is_short() -> None:
    assert len(words_of(prose("README.md"))) <= 1500


def test_every_question_has_an_answer_with_a_link_and_a_path() -> None:
    """``test_links_resolve`` opens the links; the path is the first one's in the navigation."""
    row = r"(?m)^\| (\d+)\. ([^|]+[?.]) \| ([^|]+) \| ([^|]+) \|$"
    rows = re.findall(row, read("docs/questions.md"))
    assert [int(number) for number, *_ in rows] == list(range(1, 21))
    places = {}
    for caption, entries in re.findall(
        r"(?ms)^```\{toctree\}\n:caption: ([^\n]+)\n(.*?)^```", read("docs/index.md")
    ):
        for title, page in re.findall(r"(?m)^(.+) <(.+)>$", entries):
            places[page] = f"{caption} \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} {title}"
    wrong = [
        (number, path, places.get(page))
        for number, _, answer, path in rows
        for page in re.findall(r"\]\((\w+)\.md", answer)[:1] or [""]
        if places.get(page) != path
    ]
    assert wrong == []


def test_layout_names_the_top_level_entries() -> None:
    listed = {path.parts[0] for path in layout()}
    tracked, new = top_level(), top_level("--others", "--exclude-standard")
    assert tracked - listed == set()
    assert listed - tracked - new == set()  # a stray file of a developer need not be listed


def test_layout_lists_what_exists() -> None:
    assert [path for path in layout() if not (ROOT / path).exists()] == []


# What the README of the reference promises, besides its flags and commands.
PROMISED = """
README.md ADDING_YOUR_DATASET.md CITATION.bib LICENSE requirements.txt setup_env.sh paper assets
assets/architecture_overview.png configs configs/wandb.yaml.example project project/main.py
project/check_flops.py project/deepspeed_profile.py project/module project/module/pl_classifier.py
project/module/models project/module/utils
project/module/utils/data_module.py project/module/utils/data_utils.py
project/module/utils/augment.py project/module/utils/losses.py project/module/utils/lr_scheduler.py
project/module/utils/masking_generator.py project/module/utils/metrics.py
project/module/utils/parser.py project/module/utils/seed_creation.py
project/module/utils/data_preprocess_and_load
project/module/utils/data_preprocess_and_load/preprocessing.py
project/module/utils/data_preprocess_and_load/preprocessing.slurm
project/module/utils/data_preprocess_and_load/preprocessing_HCP_v2.py
project/module/utils/data_preprocess_and_load/datasets.py
project/module/utils/data_preprocess_and_load/datasets_hdf5.py
project/module/utils/data_preprocess_and_load/check_and_clean_hdf5.py
project/module/utils/data_preprocess_and_load/convert_data_into_hdf5_revised.py
project/module/utils/data_preprocess_and_load/convert_data_into_hdf5_revised_nogzip.py
sample_scripts/pretraining sample_scripts/downstream sample_scripts/downstream/HCP
sample_scripts/lab_server_smoke_test
sample_scripts/lab_server_smoke_test/slurm_a5000_dummy_smoke.sh
sample_scripts/lab_server_smoke_test/slurm_a5000_dummy_finetune.sh
sample_scripts/lab_server_smoke_test/slurm_a5000_hcp_finetune_smoke.sh
"""
KINDS = """
cohort layout task metric head backbone positional kernel flag command page atlas classifier
schedule flip leaks
"""
SECTIONS = (
    "Overview, Architecture, Installation, Pretrained Checkpoints, Pre-training, "
    "Downstream: HCP Sex Classification, Results, Adding Your Own Dataset, Repository Layout, "
    "Citation, Acknowledgments, License, Contact"
)


def test_readme_has_the_sections_and_files_of_the_reference() -> None:
    headings = re.findall(r"(?m)^## (.+)$", read("README.md"))
    assert [name for name in SECTIONS.split(", ") if name not in headings] == []
    listed = {path.as_posix() for path in layout()}
    assert [path for path in PROMISED.split() if path not in listed] == []
    (models,) = re.findall(r"├── models/ +(.*)", read("README.md"))
    assert models == "fmamba.py, load_model.py, utils.py"


# Where the text's relative paths to files may start.
BASES = ("", "project/neuromamba", "project/neurossm", "project/module/utils", "benchmarks")
FOREIGN = {"zero_to_fp32.py"}  # files of other programs that the text names


@pytest.mark.parametrize("name", DOCS)
def test_files_of_code_in_the_text_exist(name: str) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(name))
    files = {
        file
        for span in spans
        for file in re.findall(r"(?<![\w*<>/.-])[\w./-]+\.(?:py|c|h|j2|slurm|sh|yaml|toml)\b", span)
    }
    known = {path.rsplit("/", 1)[-1] for path in tracked_files()}
    missing = [
        file
        for file in sorted(files - FOREIGN)
        if not (file.startswith(("/", "output/")) or file == "config.yaml")
        and not ("/" not in file and file in known)
        and not any((ROOT / base / file).is_file() for base in (*BASES, str(Path(name).parent)))
    ]
    assert missing == [], f"{name} names files that do not exist"


def test_extending_says_where_to_add_things() -> None:
    """The one-minute table has every kind of addition, with files of the package that exist."""
    text = read("docs/extending.md")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    kinds = {kind.strip(): re.findall(r"`([\w/]+\.py)`", touch) for kind, touch in rows}
    package = ROOT / "project" / "neuromamba"
    absent = [file for files in kinds.values() for file in files if not (package / file).is_file()]
    assert absent == []
    for wanted in KINDS.split():
        (files,) = [files for kind, files in kinds.items() if wanted in kind][:1] or [[]]
        assert files, f"no row with files for: {wanted}"


def test_glossary_terms_are_ordered_and_linked() -> None:
    terms = re.findall(r"(?m)^## (.+)$", read("docs/glossary.md"))
    assert terms == sorted(terms, key=str.lower)
    assert len(terms) >= 40
    links = {
        link
        for name in DOCS
        if name != "docs/glossary.md"
        for link in re.findall(r"\]\([^)\s]*glossary\.md#([\w-]+)\)", prose(name))
    }
    assert anchors("docs/glossary.md") - links == {"glossary"}
    for term, meaning in re.findall(
        r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", read("docs/glossary.md")
    ):
        sentences = re.findall(r"[.)](?:\s|$)", re.sub(r"\([^)]*\)", "", meaning))
        assert 1 <= len(sentences) <= 4, term


def test_architecture_lists_every_room() -> None:
    """A folder of the package stands in the table of rooms, or is part of one that does."""
    rooms = {
        room.rstrip("/")
        for room in re.findall(r"(?m)^\| `([\w/]+/)` \|", read("docs/architecture.md"))
    }
    package = ROOT / "project" / "neuromamba"
    found = {
        path.parent.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.parent != package and path.name != "__init__.py"
    }
    inside = {folder for folder in found if any(folder.startswith(f"{room}/") for room in rooms)}
    assert {room for room in rooms if not (package / room).is_dir()} == set()
    assert found - inside == rooms


# --- facts --------------------------------------------------------------------------------------


def test_variants_table() -> None:
    rows = [line for _, table in tables("README.md") for line in table.splitlines()]
    for variant, width in VARIANTS.items():
        model = ModelConfig(embed_dim=width)
        (row,) = [line for line in rows if line.startswith(f"| {variant.capitalize()} ")]
        assert f"| {flops.parameter_count(model):,} | {width} | {model.d_state} |" in row
        assert f"configs/neuromamba_{variant}.yaml" in row


@pytest.mark.parametrize("variant", ["base", "medium"])
def test_flops_table(variant: str) -> None:
    model = ModelConfig(embed_dim=VARIANTS[variant])
    mask, _ = flops.mni_mask(model.img_size[:3])
    brain = int(flops.kept_tokens(mask.ravel().nonzero()[0], model))
    full, kept = (
        flops.total(flops.forward_terms(model, tokens)) for tokens in (model.num_tokens, brain)
    )
    row = (
        f"| counted here: {variant.capitalize()}, a window forward, MNI mask ({brain:,} tokens, "
        f"{brain / model.num_tokens:.1%}) | {full / 1e9:.1f}e9 | {kept / 1e9:.1f}e9 | "
        f"{1 - kept / full:.1%} |"
    )
    assert row.replace("%", " %") in read("README.md")


# Figures of the papers, which no run of this code has produced.
PUBLISHED = re.compile(r"0\.\d{4} (?:±|/)|\b9[0-9]\.\d\b|\b(?:6\.96|3\.72)|\b46\.5\b")


@pytest.mark.parametrize("name", DOCS)
def test_published_figures_are_labelled(name: str) -> None:
    for before, table in tables(name):
        if PUBLISHED.search(table):
            assert "ublished" in before or "ublished" in table, table
    for paragraph in re.split(r"\n\s*\n", prose(name)):
        if re.search(r"6\.96", paragraph):
            assert "ublished" in paragraph, paragraph


def test_published_tables_are_found() -> None:
    labelled = [table for _, table in tables("README.md") if PUBLISHED.search(table)]
    assert len(labelled) == 4


def test_data_format_names_every_field() -> None:
    text = read("docs/data_format.md")
    fields = dataclasses.fields(RunHeader) + dataclasses.fields(ManifestRow)
    assert [field.name for field in fields if f"`{field.name}`" not in text] == []


def test_metadata_table_agrees_with_the_cohorts() -> None:
    (section,) = re.findall(r"(?ms)^## Metadata\n(.*?)^## ", read("docs/data_format.md"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    headers = [row for row in rows if row and row[0] == "`--dataset_name`"]
    assert {column for header in headers for column in header[1:]} == {"subject", *TASKS}
    for name, cohort in DATASETS.items():
        found = [row for row in rows if row and row[0].startswith(f"`{name}`")]
        cells = dict.fromkeys(TASKS, "")  # of the tables that do not have the cohort
        for row in found:
            (header,) = [one for one in headers if len(one) == len(row)]
            cells |= dict(zip(header, row, strict=True))
        for column in (cohort.subject_column, *cohort.other_subject_columns):
            assert f"`{column}`" in cells["subject"]
        for task in TASKS:
            target = cohort.targets.get(task)
            columns = (target.column, *target.other_columns) if target else ()
            assert re.findall(r"`([\w ]+)`", cells[task]) == list(columns), (name, task)
