import contextlib
import functools
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from commands import loaded

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("v1", "v1.1", "reranker", "scripts", "benchmarks")
SHELL = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.sh"))
READMES = [file for file in (ROOT / "README.md", ROOT / "README.ko.md") if file.is_file()]
TRAINERS = [folder for folder in ("v1", "v1.1", "reranker") if (ROOT / folder / "scripts/finetune.sh").is_file()]
ENDINGS = r"\.(?:sh|py|ya?ml|json|txt|toml|md)\b"


def named(file):
    return str(file.relative_to(ROOT))


def whole_lines(file):
    """The lines of a file, with those that end in a backslash joined to the next."""
    return file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


# --- what is written in them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [*SHELL, ROOT / ".ci/run"], ids=named)
def test_a_script_parses_and_can_be_run(file):
    done = subprocess.run(["bash", "-n", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(file, os.X_OK)


@pytest.mark.parametrize("file", [f for f in SHELL if f.name != "launch.sh"], ids=named)
def test_a_script_stops_at_the_first_error(file):
    assert file.read_text().startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in file.read_text()


def paths_in(file):
    """Paths that a shell script or README names, from the root; RECIPE.yaml and the like are placeholders."""
    here = os.path.relpath(file.parents[1], ROOT)
    for line in whole_lines(file):
        line = re.sub(r'"?\$\{?root\}?"?/', "", line)
        line = re.sub(r'"?\$\{?here\}?"?/', f"{here}/", line)
        for path in re.findall(r"(?<![\w.$}/<-])[\w./-]*\w" + ENDINGS, line):
            if not re.match(r"[A-Z]+\.", path):
                yield path


@pytest.mark.parametrize("file", SHELL, ids=named)
def test_every_file_that_a_script_names_exists(file):
    known = {path.name for path in [*SHELL, *ROOT.glob("*"), *ROOT.glob("v1*/*"), *ROOT.glob("reranker/*")]}
    missing = [path for path in paths_in(file) if not (ROOT / path).exists() and path not in known]
    assert missing == []


@pytest.mark.parametrize("file", READMES, ids=named)
def test_every_script_and_recipe_that_a_readme_names_exists(file):
    ours = tuple(f"{folder}/" for folder in FOLDERS)
    named_here = [path for path in paths_in(file) if path.startswith(ours) or path in ("evaluate.py", "leaderboard.py")]
    places = [ROOT, *[ROOT / folder for folder in FOLDERS]]  # a listing shows v1/ and what lies in it on one line
    assert named_here and [path for path in named_here if not any((p / path).exists() for p in places)] == []


@pytest.mark.parametrize("file", sorted([*ROOT.glob("koir/**/*.py"), *ROOT.glob("*.py")]), ids=named)
def test_every_script_that_a_message_names_exists(file):
    said = re.findall(r"bash ([\w./-]+\.sh)", file.read_text(encoding="utf-8"))
    assert [path for path in said if not (ROOT / path).exists()] == []


# --- flags -----------------------------------------------------------------------------------------------------------

COMMAND = re.compile(
    r"(?P<trainer>v1\.1|v1|reranker)/(?:scripts/finetune\.sh|train\.py)"
    r"|(?P<python>evaluate\.py|leaderboard\.py|scripts/\w+\.py|benchmarks/\w+\.py)"
    r"|(?P<shell>scripts/(?!finetune)\w+\.sh)"
)
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*", re.ASCII)  # in Korean a particle may follow without a space
SHOWN_BY_ALL = {"--help", "--help_all", "--flag", "--auto_retry"}  # any flag in usage lines; launch.sh's own


@pytest.fixture(scope="module")
def known():
    """From a command's file to the flags that its parser knows, by asking it for --help_all."""

    @functools.cache
    def flags(file):
        if file == "scripts/launch.py":  # its flags are torchrun's
            source = Path(sysconfig.get_path("purelib"), "torch/distributed/run.py").read_text()  # slow to import
            return set(re.findall(r'"(--[\w-]+)"', source))
        if file.endswith(".sh") or file.startswith(("leaderboard", "benchmarks")):  # parsers of their own kind
            return set(FLAG.findall((ROOT / file).read_text()))
        command = loaded(file)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            command.main(["--help_all"])
        return set(FLAG.findall(out.getvalue())) | SHOWN_BY_ALL

    return flags


def uses(line):
    """(command, flags given to it) for each of our commands on a line."""
    for part in re.split(r"&&|\|\||[;|]", line):
        if found := COMMAND.search(part):
            command = f"{found['trainer']}/train.py" if found["trainer"] else found[0]
            yield command, set(FLAG.findall(part[found.end() :])) - SHOWN_BY_ALL


@pytest.mark.parametrize("file", [*SHELL, *READMES], ids=named)
def test_every_flag_given_to_a_command_is_known_to_it(file, known):
    for line in whole_lines(file):
        for command, flags in uses(line):
            assert flags - known(command) == set(), f"{command} in: {line.strip()}"


@pytest.mark.parametrize("file", READMES, ids=named)
def test_every_flag_that_a_readme_speaks_of_exists(file, known):
    commands = [f"{folder}/train.py" for folder in TRAINERS]
    commands += ["evaluate.py", *[named(script) for script in sorted((ROOT / "scripts").glob("*.py"))]]
    commands += [named(script) for script in SHELL]
    anywhere = set().union(*map(known, commands)) | SHOWN_BY_ALL
    assert set(FLAG.findall(file.read_text(encoding="utf-8"))) - anywhere == set()


# --- setup.sh and launch.sh in a root of their own -------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
# Stands in for what .venv holds: notes how it was called.
{ basename "$0"; printf '%s\\n' "$@"
  echo "OMP=${OMP_NUM_THREADS:-} STARTED=${KOIR_STARTED:-} GPUS=${CUDA_VISIBLE_DEVICES:-}"; } > "$STUB_LOG"
exit "${STUB_EXIT:-0}"
"""


class Root:
    """A copy of the scripts beside a .venv of stubs, on a machine with as many GPUs as a test says."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "called.txt"
        for file in [*SHELL, ROOT / "requirements.txt", ROOT / "pyproject.toml"]:
            (folder / named(file)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / named(file))
        self.write(".venv/bin/python", STUB)
        self.stamp = folder / ".venv/.installed"
        self.gpus(0)
        self.installed()

    def write(self, name, text):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def gpus(self, count):
        lines = "\n".join(f"echo 'GPU {n}: toy'" for n in range(count))
        self.write("bin/nvidia-smi", f"#!/usr/bin/env bash\n{lines or 'exit 9'}\n")

    def installed(self, extras=""):
        content = (self.folder / "requirements.txt").read_bytes() + (self.folder / "pyproject.toml").read_bytes()
        self.stamp.write_text(f"{hashlib.sha256(content).hexdigest()[:16]} {extras}\n")

    def run(self, script, *argv, cwd=None, **variables):
        kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
        kept |= {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "STUB_LOG": str(self.log)}
        self.log.unlink(missing_ok=True)
        command = ["bash", str(self.folder / script), *argv]
        return subprocess.run(command, env=kept | variables, cwd=cwd, capture_output=True, text=True)

    @property
    def called(self):
        """The words of the last call of a stub, None where there was none."""
        return self.log.read_text().splitlines()[:-1] if self.log.exists() else None

    @property
    def seen(self):
        """What that call saw of the environment."""
        return dict(pair.split("=") for pair in self.log.read_text().splitlines()[-1].split(" "))


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path)


def test_setup_is_silent_when_nothing_changed(root):
    done = root.run("scripts/setup.sh")
    assert (done.returncode, done.stdout, done.stderr, root.called) == (0, "", "", None)


def test_setup_is_silent_in_this_checkout():
    if not (ROOT / ".venv/.installed").is_file():
        pytest.skip(".venv was not made by scripts/setup.sh: there is no .venv/.installed")
    content = (ROOT / "requirements.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    key = hashlib.sha256(content).hexdigest()[:16]
    if f"{key} " not in (ROOT / ".venv/.installed").read_text().splitlines():
        pytest.skip("requirements changed since scripts/setup.sh ran, or it ran with extras alone")
    done = subprocess.run(["bash", ROOT / "scripts/setup.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("file", ["requirements.txt", "pyproject.toml"])
def test_setup_installs_once_when_a_requirement_changes(root, file):
    with (root.folder / file).open("a") as out:
        out.write("# changed\n")
    done = root.run("scripts/setup.sh")
    assert done.returncode == 0 and "setup: installing" in done.stderr
    assert root.called[:4] == ["python", "-m", "pip", "install"] and str(root.folder) in root.called
    again = root.run("scripts/setup.sh")
    assert (again.returncode, again.stderr, root.called) == (0, "", None)


def test_setup_remembers_each_set_of_extras(root):
    assert root.run("scripts/setup.sh", "test").returncode == 0
    assert root.called[-1] == f"{root.folder}[test]"
    for extras in ([], ["test"]):
        assert root.run("scripts/setup.sh", *extras).stderr == "" and root.called is None


@pytest.mark.parametrize("script", ["evaluate.py", "scripts/serve.py", "scripts/mine_negatives.py", "v1.1/train.py"])
def test_a_python_without_the_packages_is_told_of_setup(script, tmp_path):
    done = subprocess.run([sys.executable, "-S", ROOT / script], cwd=tmp_path, capture_output=True, text=True)
    said = "error: torch is not installed here; run: bash scripts/setup.sh, then use .venv/bin/python\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_failed_installation_is_said_and_tried_again(root):
    root.stamp.unlink()
    done = root.run("scripts/setup.sh", STUB_EXIT="1")
    assert done.returncode == 2 and "error: the installation failed" in done.stderr
    assert not root.stamp.exists()
    assert root.run("scripts/setup.sh").returncode == 0 and root.called is not None


@pytest.mark.parametrize(
    ("listed", "visible", "processes"),
    [
        ("echo 'GPU 0: toy'; echo '  MIG 1g.10gb Device 0: (UUID: MIG-a)'; echo '  MIG 1g.10gb Device 1: b'", None, 1),
        ("echo 'GPU 0: toy'", "MIG-a,MIG-b", 1),
        ("echo 'GPU 0: toy'; echo 'GPU 1: toy'", "GPU-a,GPU-b", 2),
    ],
)
def test_of_a_gpu_in_parts_one_is_used(root, listed, visible, processes):
    root.write("bin/nvidia-smi", f"#!/usr/bin/env bash\n{listed}\n")
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert root.run("v1.1/scripts/finetune.sh", **variables).returncode == 0
    started = root.called
    assert (f"--nproc_per_node {processes}" in " ".join(started)) if processes > 1 else started[1].endswith("train.py")


def direct(root, version, recipe, *flags):
    return ["python", f"{root.folder}/{version}/train.py", recipe, *flags]


@pytest.mark.parametrize("version", TRAINERS)
def test_without_a_recipe_the_demo_is_trained(root, version):
    done = root.run(f"{version}/scripts/finetune.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert root.called == direct(root, version, f"{root.folder}/{version}/recipes/demo.yaml")


@pytest.mark.parametrize("version", TRAINERS)
def test_flags_may_come_without_a_recipe(root, version):
    root.run(f"{version}/scripts/finetune.sh", "--query_prompt", "질의 앞에: ", "--help")
    demo = f"{root.folder}/{version}/recipes/demo.yaml"
    assert root.called == direct(root, version, demo, "--query_prompt", "질의 앞에: ", "--help")


@pytest.mark.parametrize("version", TRAINERS)
def test_a_recipe_comes_before_flags(root, version):
    root.run(f"{version}/scripts/finetune.sh", "내 레시피.yaml", "--temperature", "0.1")
    assert root.called == direct(root, version, "내 레시피.yaml", "--temperature", "0.1")


def test_one_process_runs_python_directly_and_says_when_it_started(root):
    root.gpus(2)
    root.run("v1/scripts/finetune.sh", NPROC_PER_NODE="1")
    assert root.called[0] == "python"
    assert re.fullmatch(r"\d{8}-\d{6}", root.seen["STARTED"]) and root.seen["GPUS"] == "0"
    root.run("v1/scripts/finetune.sh", NPROC_PER_NODE="1", CUDA_VISIBLE_DEVICES="3,5")
    assert root.seen["GPUS"] == "3"
    root.gpus(0)
    root.run("v1/scripts/finetune.sh")
    assert root.seen["GPUS"] == ""


TORCHRUN = ["--nproc_per_node", "2", "--nnodes", "1", "--node_rank", "0"]
TORCHRUN += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # a free port


def test_two_processes_run_torchrun(root):
    done = root.run("v1.1/scripts/finetune.sh", "나.yaml", "--seed", "3", NPROC_PER_NODE="2")
    assert done.returncode == 0, done.stderr
    launcher = ["python", f"{root.folder}/scripts/launch.py"]
    assert root.called == [*launcher, *TORCHRUN, f"{root.folder}/v1.1/train.py", "나.yaml", "--seed", "3"]
    assert re.fullmatch(r"\d{8}-\d{6}", root.seen["STARTED"])


@pytest.mark.parametrize("number", ["0", "-1", "abc", "gpu", "1.5"])
def test_a_number_of_processes_that_is_none_is_one_line(root, number):
    done = root.run("v1/scripts/finetune.sh", NPROC_PER_NODE=number)
    said = f"error: NPROC_PER_NODE: found {number}; expected a number of processes, at least 1\n"
    assert (done.returncode, done.stderr, root.called) == (2, said, None)


def test_processes_share_the_cores_unless_told_otherwise(root):
    root.run("v1/scripts/finetune.sh", NPROC_PER_NODE="2")
    cores = int(subprocess.run(["nproc"], capture_output=True, text=True).stdout)
    assert int(root.seen["OMP"]) == -(-cores // 2)
    root.run("v1/scripts/finetune.sh", NPROC_PER_NODE="2", OMP_NUM_THREADS="5")
    assert root.seen["OMP"] == "5"


def test_several_machines_are_named_to_torchrun(root):
    where = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    root.run("v1/scripts/finetune.sh", "--output_dir", "run", NPROC_PER_NODE="1", **where)
    words = ["--nproc_per_node", "1", "--nnodes", "3", "--node_rank", "2"]
    words += ["--master_addr", "10.0.0.1", "--master_port", "1234"]
    assert root.called[1:12] == [f"{root.folder}/scripts/launch.py", *words]


@pytest.mark.parametrize(
    ("gpus", "visible", "processes"),
    [(0, None, None), (1, None, None), (4, None, "4"), (4, "0,2", "2"), (4, "3", None)],
)
def test_there_is_one_process_a_visible_gpu(root, gpus, visible, processes):
    root.gpus(gpus)
    root.run("v1/scripts/finetune.sh", **({"CUDA_VISIBLE_DEVICES": visible} if visible else {}))
    several = [f"{root.folder}/scripts/launch.py", "--nproc_per_node", processes]
    one = direct(root, "v1", f"{root.folder}/v1/recipes/demo.yaml")
    assert root.called[1:4] == several if processes else root.called == one


@pytest.mark.parametrize(("gpus", "visible", "processes"), [(2, "", None), (2, "NoDevFiles,", None)])
def test_hidden_gpus_get_no_process(root, gpus, visible, processes):
    root.gpus(gpus)
    root.run("v1/scripts/finetune.sh", CUDA_VISIBLE_DEVICES=visible)
    assert root.called == direct(root, "v1", f"{root.folder}/v1/recipes/demo.yaml")


def test_what_the_training_exits_with_is_what_the_script_exits_with(root):
    assert root.run("v1/scripts/finetune.sh", STUB_EXIT="7").returncode == 7
    assert root.run("v1/scripts/finetune.sh", NPROC_PER_NODE="2", STUB_EXIT="7").returncode == 7


@pytest.mark.parametrize("state", [None, '{\n  "step"', '{\n  "step": 2\n}\n'], ids=["none", "cut short", "whole"])
def test_a_process_that_the_kernel_killed_is_said_and_what_is_left_to_resume_from(root, state):
    run = root.folder / "나의 run"
    root.write(".venv/bin/python", f"#!/usr/bin/env bash\nprintf '%s' '{run}' > \"$KOIR_FOLDER\"\nkill -KILL $$\n")
    if state is not None:
        root.write(run / "checkpoints/checkpoint-2/trainer_state.json", state)
    done = root.run("v1/scripts/finetune.sh")
    assert done.returncode == 137 and "memory ran out" in done.stderr
    whole = state is not None and state.endswith("}\n")
    assert (f"--output_dir '{run}' --resume_from_checkpoint last" in done.stderr) == whole == ("good" in done.stderr)


RETRY = """#!/usr/bin/env bash
# Runs out of memory until it is called with --chunk_tokens 512.
printf '%s ' "$@" >> "$STUB_LOG"; echo >> "$STUB_LOG"
[[ "$*" = *"--chunk_tokens 512"* ]] && exit 0
less="$([[ "$*" = *"--chunk_tokens 1024"* ]] && echo 512 || echo 1024)"
printf '%s\\n' --chunk_tokens "$less" > "${KOIR_RETRY:-/dev/null}"
exit 2
"""


def test_auto_retry_goes_on_with_the_flags_it_is_given(root):
    root.write(".venv/bin/python", RETRY)
    done = root.run("v1.1/scripts/finetune.sh", "--auto-retry", "--seed", "1")
    assert done.returncode == 0, done.stderr
    calls = [line.split(" ")[2:-1] for line in root.log.read_text().splitlines()]
    wanted = [["--seed", "1"], ["--seed", "1", "--chunk_tokens", "1024"], ["--seed", "1", "--chunk_tokens", "512"]]
    assert calls == wanted
    assert "retry: --chunk_tokens 512" in done.stderr
    assert root.run("v1.1/scripts/finetune.sh").returncode == 2, "only when told to"


WAITS = """#!/usr/bin/env bash
trap 'echo got TERM >> "$STUB_LOG"; exit 143' TERM
trap 'echo got INT >> "$STUB_LOG"; exit 130' INT
echo started > "$STUB_LOG"
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", -signal.SIGINT)])
def test_signals_reach_the_training(root, name, status):
    root.write(".venv/bin/python", WAITS)
    environment = os.environ | {"PATH": f"{root.folder}/bin:{os.environ['PATH']}", "STUB_LOG": str(root.log)}
    words = ["env", "--default-signal=INT", "bash", root.folder / "v1/scripts/finetune.sh"]
    process = subprocess.Popen(words, env=environment, start_new_session=True)
    while not root.log.exists() or "started" not in root.log.read_text():
        time.sleep(0.02)
        assert process.poll() is None
    if name == "TERM":
        process.terminate()  # a preempted job's shell gets it alone
    else:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C goes to everything in front
    process.wait(timeout=20)
    assert f"got {name}" in root.log.read_text(), "it has ended by then"
    assert process.returncode == status


def test_scripts_run_from_any_folder(root, tmp_path):
    elsewhere = tmp_path / "다른 곳"
    elsewhere.mkdir()
    assert root.run("v1.1/scripts/finetune.sh", cwd=elsewhere).returncode == 0
    assert root.called == direct(root, "v1.1", f"{root.folder}/v1.1/recipes/demo.yaml")


def test_a_recipe_that_is_not_here_is_looked_for_from_the_root(root, tmp_path):
    elsewhere = tmp_path / "다른 곳"
    (elsewhere / "v1/recipes").mkdir(parents=True)
    root.write("v1/recipes/demo.yaml", "")
    words = ("v1/scripts/finetune.sh", "v1/recipes/demo.yaml")
    assert root.run(*words, cwd=elsewhere).stderr == f"recipe:  {root.folder}/v1/recipes/demo.yaml\n"
    assert root.called == direct(root, "v1", f"{root.folder}/v1/recipes/demo.yaml")
    (elsewhere / words[1]).touch()
    assert root.run(*words, cwd=elsewhere).stderr == ""
    assert root.called == direct(root, "v1", "v1/recipes/demo.yaml"), "what is here comes first"


def test_a_root_with_a_space_and_hangul_in_its_name(tmp_path):
    root = Root(tmp_path / "내 문서")
    done = root.run("v1/scripts/finetune.sh", "--seed", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert root.called == direct(root, "v1", f"{root.folder}/v1/recipes/demo.yaml", "--seed", "1")


def test_quickstart_goes_from_rows_to_a_joint_evaluation(root):
    root.write(".venv/bin/python", STUB.replace('> "$STUB_LOG"', '>> "$STUB_LOG"'))
    done = root.run("scripts/quickstart.sh", "첫째")
    assert done.returncode == 0, done.stderr
    steps = [line for line in root.log.read_text().splitlines() if line.endswith(".py")]
    steps = [step.removeprefix(f"{root.folder}/") for step in steps]
    wanted = [
        "scripts/prepare_data.py",
        "v1.1/train.py",
        "scripts/mine_negatives.py",
        "reranker/train.py",
        "evaluate.py",
    ]
    assert steps == wanted
    assert "outputs/첫째-reranker" in root.log.read_text()


def test_quickstart_given_again_does_no_training_twice_and_resumes_the_one_that_was_killed(root):
    root.write(".venv/bin/python", STUB.replace('> "$STUB_LOG"', '>> "$STUB_LOG"'))
    root.write("outputs/내-encoder/run.json", "{}")
    root.write("outputs/내-reranker/checkpoints/checkpoint-2/trainer_state.json", "{\n}\n")
    root.write("outputs/내-reranker/checkpoints/checkpoint-4/trainer_state.json", "{")
    done = root.run("scripts/quickstart.sh", "내")
    assert done.returncode == 0, done.stderr
    words = root.log.read_text().splitlines()
    assert f"{root.folder}/v1.1/train.py" not in words and "outputs/내-encoder is complete" in done.stderr
    reranker = words[words.index(f"{root.folder}/reranker/train.py") :]
    assert " --resume_from_checkpoint last --output_dir outputs/내-reranker " in " ".join(reranker)


def test_quickstart_takes_no_flag_for_a_name(root):
    for words, status in ((["--help"], 0), (["--output_dir", "x"], 2), (["내", "문서"], 2)):
        done = root.run("scripts/quickstart.sh", *words)
        assert done.returncode == status and "bash scripts/quickstart.sh [NAME]" in done.stderr
    assert not root.log.exists()


def test_quickstart_stops_at_what_failed(root):
    assert root.run("scripts/quickstart.sh", STUB_EXIT="3").returncode == 3
    assert "scripts/prepare_data.py" in root.called, "nothing goes on without rows"
