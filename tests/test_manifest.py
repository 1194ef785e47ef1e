import json
import os
from pathlib import Path

import pytest

from koir.errors import FlagError, ModelError, RunError
from koir.manifest import (
    alone,
    cache_folder,
    check_outputs,
    model_folder,
    newest_run,
    origin,
    read_run,
    write_json,
    written_aside,
)


class Interrupted(Exception):
    """What a test raises in the middle of writing."""


def everything(folder):
    """Path -> text of every file below a folder, hidden ones included."""
    return {str(f.relative_to(folder)): f.read_text(encoding="utf-8") for f in folder.rglob("*") if f.is_file()}


# --- written_aside and write_json ------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "새 폴더" / "결과.txt"
    with written_aside(path) as aside:
        aside.write_text("절반")
        assert not path.exists() and aside.parent == path.parent
    assert everything(tmp_path) == {"새 폴더/결과.txt": "절반"}


def test_a_file_is_replaced_whole(tmp_path):
    (tmp_path / "결과.txt").write_text("아주 긴 옛 내용")
    with written_aside(tmp_path / "결과.txt") as aside:
        aside.write_text("새")
    assert everything(tmp_path) == {"결과.txt": "새"}


def test_a_folder_is_replaced_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/옛것").write_text("옛")
    with written_aside(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "새것").write_text("새")
        assert everything(tmp_path / "model") == {"옛것": "옛"}
    assert everything(tmp_path) == {"model/새것": "새"}


def test_a_file_takes_the_place_of_no_pipe_or_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/koir-is-no-device")):
        with pytest.raises(RunError, match="found a device"):
            write_json(path, {})
    assert (tmp_path / "pipe").is_fifo() and not Path("/dev/koir-is-no-device").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_that_takes_no_folders_is_refused_in_one_line():
    with pytest.raises(RunError, match="/proc/koir: found a file system that takes no folders"):
        write_json(Path("/proc/koir/run.json"), {})


@pytest.mark.parametrize("folder", [True, False], ids=["a folder", "a file"])
def test_what_went_wrong_is_told_even_where_its_remains_cannot_be_removed(tmp_path, monkeypatch, folder):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "half.txt")

    with pytest.raises(OSError, match="No space left"), written_aside(tmp_path / "model") as aside:
        if folder:
            aside.mkdir()
        (aside / "half.txt" if folder else aside).write_text("절반")
        monkeypatch.setattr(os, "unlink", refused)
        monkeypatch.setattr(Path, "unlink", refused)
        raise OSError(28, "No space left on device", str(aside / "model.safetensors"))


@pytest.mark.parametrize("before", [None, "옛"], ids=["nothing before", "something before"])
@pytest.mark.parametrize("interrupt", [Interrupted, KeyboardInterrupt, SystemExit])
def test_an_interrupted_file_leaves_what_was_there(tmp_path, before, interrupt):
    if before:
        (tmp_path / "결과.txt").write_text(before)
    with pytest.raises(interrupt), written_aside(tmp_path / "결과.txt") as aside:
        aside.write_text("절반")
        raise interrupt
    assert everything(tmp_path) == ({"결과.txt": before} if before else {})


@pytest.mark.parametrize("written", [True, False], ids=["begun", "not begun"])
def test_an_interrupted_folder_leaves_what_was_there(tmp_path, written):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/옛것").write_text("옛")
    with pytest.raises(Interrupted), written_aside(tmp_path / "model") as aside:
        if written:
            aside.mkdir()
            (aside / "절반").write_text("절")
        raise Interrupted
    assert everything(tmp_path) == {"model/옛것": "옛"} and list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    old, new, other = (tmp_path / f".{name}.partial" for name in ("rows[1].gz.77", "rows[1].gz.78", "rows1.gz.77"))
    for remains in (old, new, other):
        remains.write_text("half", encoding="utf-8")
    for remains in (old, other):
        os.utime(remains, (0, 0))
    with written_aside(tmp_path / "rows[1].gz") as aside:
        aside.write_text("whole", encoding="utf-8")
    assert sorted(tmp_path.iterdir()) == sorted([new, other, tmp_path / "rows[1].gz"])


def test_a_folder_that_was_never_written_does_not_cost_the_old_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/옛것").write_text("옛")
    with pytest.raises(OSError), written_aside(tmp_path / "model"):
        pass
    assert everything(tmp_path) == {"model/옛것": "옛"}


@pytest.mark.parametrize("name", ["글", "."])
def test_a_file_never_takes_the_place_of_a_folder(tmp_path, monkeypatch, name):
    (tmp_path / "글").mkdir()
    (tmp_path / "글/논문.txt").write_text("옛")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="found a folder"):
        write_json(Path(name), {})
    assert everything(tmp_path) == {"글/논문.txt": "옛"}


@pytest.mark.parametrize(
    ("folder", "file", "said"),
    [("there", None, "--output_dir there: found a file"), ("there/below", None, "found a file (there)"),
     ("new", "folder", "--json folder: found a folder"), ("new", ".", "found a folder"),
     ("new", "/dev/stdout", "--json /dev/stdout: found a device")],
)  # fmt: skip
def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch, folder, file, said):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("글")
    Path("folder").mkdir()
    with pytest.raises(FlagError) as error:
        check_outputs(folder, file)
    assert said in str(error.value)
    check_outputs("folder/new", "there")
    monkeypatch.setattr("os.access", lambda path, how: False)  # root may all, but on a disk that is read-only
    with pytest.raises(FlagError, match=r"folder/new: found a folder that may not be written \(.*/folder\)"):
        check_outputs("folder/new", "there")


def test_json_keeps_hangul_and_ends_its_last_line(tmp_path):
    write_json(tmp_path / "a" / "결과.json", {"이름": "한국어", "수": 1.5})
    text = (tmp_path / "a/결과.json").read_bytes().decode("utf-8")
    assert '"이름": "한국어"' in text and text.endswith("}\n") and "\\u" not in text
    assert json.loads(text) == {"이름": "한국어", "수": 1.5}


def test_a_path_in_another_encoding_is_written_and_read_back(tmp_path):
    path = os.fsdecode("자료".encode("cp949"))
    write_json(tmp_path / "run.json", {"train_data": path})
    assert read_run(tmp_path)["train_data"] == path


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "결과.json", {"수": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "결과.json", {"수": object()})
    assert everything(tmp_path) == {"결과.json": '{\n  "수": 1\n}\n'}


def test_a_cache_that_cannot_be_is_one_line_that_names_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RunError, match="file/cache: found not a directory; expected KOIR_CACHE=FOLDER"):
        cache_folder()
    monkeypatch.delenv("KOIR_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user that is a number alone
    with pytest.raises(RunError, match="~/.cache/koir: found could not determine home directory"):
        cache_folder()


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "임시" / "캐시"))
    assert cache_folder() == tmp_path / "임시" / "캐시" and cache_folder().is_dir()
    monkeypatch.delenv("KOIR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "koir"


def test_a_command_that_is_refused_leaves_the_folder_to_the_one_that_holds_it(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with alone(folder, "trains"):
        for _ in range(2):  # the first one refused once removed the folder, and the second began in a new one
            with pytest.raises(RunError, match="found another process that trains there"), alone(folder, "trains"):
                pass
            assert folder.is_dir()
    assert not folder.exists()


def test_of_several_processes_the_first_alone_holds_and_removes(tmp_path, monkeypatch):
    with alone(tmp_path, "trains"):
        monkeypatch.setenv("RANK", "1")
        with alone(tmp_path, "trains"):
            pass
        assert tmp_path.is_dir()


# --- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def make_run(outputs):
    """A run folder with a model; complete when it has a time."""

    def make(name, time=None, kind="encoder"):
        folder = outputs / name
        (folder / "model").mkdir(parents=True)
        (folder / "model/config.json").write_text("{}")
        if time is not None:
            write_json(folder / "run.json", {"kind": kind, "base": "demo"})
            os.utime(folder / "run.json", (time, time))
        return folder

    return make


def test_the_newest_complete_run_is_taken(make_run, outputs):
    make_run("z", 1000), make_run("훈련", 3000), make_run("a", 2000)
    make_run("unfinished"), make_run("순위", 9000, kind="reranker")
    assert newest_run("encoder", outputs) == outputs / "훈련"
    assert newest_run("reranker", outputs) == outputs / "순위"


def test_a_broken_run_does_not_hide_the_others(make_run, outputs, capsys):
    make_run("훈련", 1), make_run("고장", 2)
    (outputs / "고장/run.json").write_text('{"kind": ', encoding="utf-8")
    assert [newest_run("encoder", outputs).name for _ in range(2)] == ["훈련"] * 2
    said = capsys.readouterr().err
    assert said.count("note: left out: ") == 1 and "고장/run.json: found broken JSON" in said


def test_of_two_runs_of_one_moment_the_later_name_is_taken(make_run, outputs):
    make_run("v1-20260102-000000", 1000), make_run("v1-20260101-000000", 1000)
    assert newest_run("encoder", outputs).name == "v1-20260102-000000"


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "unfinished ones alone"])
def test_no_run_at_all_says_what_makes_one(make_run, outputs, there):
    if there:
        make_run("unfinished")
    with pytest.raises(RunError) as caught:
        newest_run("encoder", outputs)
    said = "found no complete encoder run; expected one: bash v1.1/scripts/finetune.sh"
    assert str(caught.value) == f"{outputs}/: {said}"


def test_a_run_is_read_back(make_run):
    run = make_run("훈련", 1)
    assert read_run(run, kind=str) == {"kind": "encoder", "base": "demo"}
    with pytest.raises(RunError, match="found no weight; expected a run.json as it was written"):
        read_run(run, weight=float | None)  # None may be its value, but it has to be there


def test_an_unfinished_and_a_broken_run_are_refused(make_run):
    unfinished, broken = make_run("unfinished"), make_run("broken", 1)
    with pytest.raises(
        RunError, match=r"unfinished: found no run\.json \(the run did not finish\); expected a complete"
    ):
        read_run(unfinished)
    (broken / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"broken/run\.json: found broken JSON \("):
        read_run(broken)


# --- what a PATH may be ----------------------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_model(make_run):
    folder = make_run("훈련", 1)
    assert model_folder(str(folder)) == model_folder(f"{folder}/") == str(folder / "model")


def test_a_model_folder_stands_for_itself(make_run):
    folder = make_run("훈련") / "model"
    assert model_folder(str(folder)) == str(folder)


@pytest.mark.parametrize("name", ["demo", "intfloat/multilingual-e5-small", "bert-base-uncased"])
def test_demo_and_hub_names_stand_for_themselves(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_folder(name) == name


def test_a_relative_run_folder_is_no_hub_name(make_run, outputs, monkeypatch):
    make_run("훈련", 1)
    monkeypatch.chdir(outputs.parent)
    assert model_folder("outputs/훈련") == "outputs/훈련/model"


def test_an_unfinished_run_is_no_model(make_run):
    with pytest.raises(RunError, match=r"found no run\.json"):
        model_folder(str(make_run("unfinished")))


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ModelError) as caught:
        model_folder(str(tmp_path))
    said = "found a folder without config.json; expected a model folder or a complete run folder"
    assert str(caught.value) == f"{tmp_path}: {said}"


@pytest.mark.parametrize("start", ["{outputs}/", "./outputs/"], ids=["absolute", "relative"])
def test_a_missing_folder_is_refused_with_the_nearest_name(make_run, outputs, monkeypatch, start):
    make_run("v1.1-demo", 1), make_run("다른 것", 2)
    monkeypatch.chdir(outputs.parent)
    path = start.format(outputs=outputs) + "v1.1-dmeo"
    with pytest.raises(ModelError) as caught:
        model_folder(path)
    said = "found no such folder; expected a run folder, model folder, hub name or demo; did you mean v1.1-demo?"
    assert str(caught.value) == f"{path}: {said}"


def test_a_mistyped_folder_of_outputs_is_no_hub_name(make_run, outputs, monkeypatch):
    make_run("v1.1-demo", 1)
    monkeypatch.chdir(outputs.parent)
    with pytest.raises(ModelError, match=r"did you mean v1\.1-demo\?"):
        model_folder("outputs/v1.1-dmeo")


@pytest.mark.parametrize("path", ["", "/없는/곳", "a/b/c", "../없다"])
def test_what_is_neither_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        model_folder(path)


# --- origin ----------------------------------------------------------------------------------------------------------


def test_origin_says_command_versions_and_hardware(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/어디/evaluate.py", "--tasks", "내 과제"])
    found = origin()
    assert found["command"] == "evaluate.py --tasks '내 과제'"
    assert set(found) == {"command", "git", "versions", "hardware"}
    assert {"python", "torch", "transformers", "numpy"} <= set(found["versions"])
    assert found["hardware"]["cores"] == os.cpu_count() and found["hardware"]["memory_gb"] > 0
    assert json.loads(json.dumps(found)) == found


def test_origin_holds_nothing_secret(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"비밀-{name}")
    monkeypatch.setattr("sys.argv", ["v1/train.py"])
    text = json.dumps(origin(), ensure_ascii=False)
    assert "비밀" not in text
    assert not any(word in text for word in (os.uname().nodename, os.path.expanduser("~") + "/"))
