"""Commands: a mistake is one line and exit code 2; `check` says what is wrong; threads, format."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vldm_mini import cli as commands
from vldm_mini import machine, report

ROOT = Path(__file__).resolve().parent.parent


def run(capsys, *words):
    """(exit code, stdout, stderr) of one command."""
    try:
        code = commands.main(words)
    except SystemExit as stop:  # argparse
        code = stop.code
    return code, *capsys.readouterr()


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "COMMAND"),
        (("fly",), "fly"),
        (("check", "--bogus"), "--bogus"),
        (("train", "dance"), "autoencoder, image, temporal, decoder"),
        (("train", "image", "--size", "xl"), "xl"),
        (("train", "image", "--steps", "0"), "'0' is not a whole number of 1 or more"),
        (("train", "image", "--steps", "²"), "'²' is not a whole number of 1 or more"),
        (("train", "image", "--steps", "9" * 5000), "is not a whole number of 1 or more"),
        (
            ("train", "image", "--seed", "-1"),
            "'-1' is not a whole number from 0 to 9223372036854775807",
        ),
        (("sample", "--seed", str(2**63)), "is not a whole number from 0 to 9223372036854775807"),
        (("sample", "--seed", "1.5"), "'1.5' is not a whole number from 0"),
        (("sample", "--alpha", "nan"), "'nan' is not a number from 0 to 1"),
        (("sample", "--person", "9"), "person must lie in 0..8, got 9"),
        (("sample", "--person", "²"), "unknown person '²'"),
        (("sample", "--movie", "own.mp4"), "unknown option --movie"),
        (("sample", "--video", "own.mp4"), "add --large pixel or --large latent"),
        (("data", "pack", "a", "b"), "data takes NAME or pack NAME"),
        (("train", "autoencoder", "--data", "nowhere"), "nowhere"),
        (("sample", "--alpha", "1.5"), "1.5"),
        (("sample", "--minutes", "0"), "'0' is not a number from 0.1 to 600"),
        (("sample", "--frames", "none"), "none"),
        (("sample", "--label", "book"), "NAME=VALUE"),
        (("sample", "--weights", "nowhere"), "nowhere"),
        (("data", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(capsys, words, says):
    code, out, err = run(capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def check(args):
        """A command with a fault."""
        raise KeyError("ours")

    monkeypatch.setattr(commands, "check", check)
    with pytest.raises(KeyError):
        commands.main(["check"])


def test_a_missing_package_is_one_line_with_the_way_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    code, _, err = run(capsys, "lab")
    assert code == 2 and err.count("\n") == 1
    assert 'jupyterlab is not installed: pip install -e ".[notebooks]" -c constraints.txt' in err
    assert '".[video]"' in commands._install("PIL") and '".[sd]"' in commands._install("peft")
    assert commands._install("torch") == 'pip install -e "." -c constraints.txt'


def test_out_of_memory_is_one_line(capsys, monkeypatch):
    def sample(args):
        """A command that wants too much."""
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(commands, "sample", sample)
    code, _, err = run(capsys, "sample")
    assert code == 2 and "out of memory" in err


def test_python_dash_m_runs_and_quits_with_the_same_code():
    done = subprocess.run(
        [sys.executable, "-m", "vldm_mini", "fly"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_the_test_command_is_one_pytest_over_tests_and_notebooks(monkeypatch):
    calls = []
    monkeypatch.setattr(pytest, "main", lambda args: calls.append(args) or 0)
    monkeypatch.chdir(ROOT)
    assert (
        commands.main(["test"]) == 0
        and commands.main(["test", "tests/test_commands.py", "-k", "mistake"]) == 0
    )
    assert "--nbval-lax" in calls[0] and {"tests", "notebooks"} <= set(calls[0])
    assert calls[0][-4] == "-n" and calls[0][-2:] == ["--dist", "loadfile"]
    assert calls[1][-3:] == ["tests/test_commands.py", "-k", "mistake"] and len(calls) == 2
    assert commands.main(["test", "-n0"]) == 0 and "-n" not in calls[2]


def test_the_test_command_uses_at_most_four_cores_and_one_thread_each(monkeypatch):
    calls = []
    monkeypatch.setattr(pytest, "main", lambda args: calls.append(args) or 0)
    monkeypatch.chdir(ROOT)
    for threads, workers in ((1, "0"), (2, "2"), (16, "4")):
        monkeypatch.setattr(machine, "threads", lambda threads=threads: threads)
        commands.main(["test"])
        assert calls[-1][-3] == workers


def test_a_missing_test_package_is_one_line_with_its_cure(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "xdist" else name)
    assert commands.main(["test"]) == 2
    message = capsys.readouterr().err
    assert "xdist is not installed" in message and ".[test]" in message


def test_sample_writes_a_video_a_strip_and_a_slice(capsys, tmp_path):
    if not (ROOT / "data" / "checkpoints" / "actions" / "temporal").is_dir():
        pytest.skip("needs the shipped weights")
    out = tmp_path / "out"
    code, _, err = run(
        capsys, "sample", "--person", "2", "--action", "bend", "--frames", "2", "--out", str(out)
    )
    assert (code, err) == (0, "")
    assert {file.name for file in out.iterdir()} == {"video.webp", "strip.png", "slice.png"}


@pytest.mark.filterwarnings("error")
def test_one_frame_is_a_video_too(capsys, tmp_path):
    if not (ROOT / "data" / "checkpoints" / "actions" / "temporal").is_dir():
        pytest.skip("needs the shipped weights")
    code, _, err = run(capsys, "sample", "--frames", "1", "--steps", "1", "--out", str(tmp_path))
    assert code == 0, err
    assert (tmp_path / "video.webp").is_file()


@pytest.mark.parametrize("words", [("--minutes", "0.1"), ("--smooth",), ("--large", "pixel")])
def test_long_videos_need_stages_that_weights_may_lack_and_leave_no_file(capsys, tmp_path, words):
    whole, some = ROOT / "data" / "checkpoints" / "actions", tmp_path / "some"
    if not (whole / "temporal").is_dir():
        pytest.skip("needs the shipped weights")
    shutil.copytree(
        whole, some, ignore=shutil.ignore_patterns("prediction", "interpolation", "upsampler")
    )
    code, _, err = run(
        capsys,
        "sample",
        "--weights",
        str(some),
        "--frames",
        "2",
        *words,
        "--out",
        str(tmp_path / "out"),
    )
    assert code == 2 and "these weights hold no" in err and not list(tmp_path.rglob("*.mp4"))


def test_a_video_of_ones_own_is_enlarged_and_keeps_its_rate(capsys, tmp_path):
    import torch

    from vldm_mini.datasets import video
    from vldm_mini.teaching import pictures

    if not (ROOT / "data" / "checkpoints" / "driving" / "upsampler").is_dir():
        pytest.skip("needs the shipped weights")
    own = str(
        pictures.movie(torch.rand(3, 3, 18, 24), fps=12, scale=1, loop=1).save(tmp_path / "own.mp4")
    )
    how, out = ("--weights", "driving", "--video", own), tmp_path / "out"
    code, _, err = run(capsys, "sample", *how, "--large", "pixel", "--out", str(out))
    frames, fps = video.read_video(out / "video.mp4")
    assert code == 0 and "error" not in err and tuple(frames.shape) == (3, 72, 96, 3) and fps == 12
    words = (*how, "--large", "pixel", "--frames", "1", "--out", str(out))
    assert run(capsys, "sample", *words)[0] == 0
    assert len(video.read_video(out / "video.mp4")[0]) == 1, "only its first frame"
    assert (
        "there is no video"
        in run(capsys, "sample", *how[:3], str(tmp_path / "none.mp4"), "--large", "pixel")[2]
    )


def test_a_video_that_is_too_small_to_enlarge_is_refused_with_its_size(capsys, tmp_path):
    import torch

    from vldm_mini.datasets import video

    if not (ROOT / "data" / "checkpoints" / "driving" / "upsampler").is_dir():
        pytest.skip("needs the shipped weights")
    dot = torch.zeros(2, 1, 1, 3, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "read_video", lambda path: (dot, 5.0))
        words = ("--weights", "driving", "--video", "dot.mp4", "--large", "pixel")
        code, _, err = run(capsys, "sample", *words, "--out", str(tmp_path / "out"))
    assert code == 2 and "the frames of dot.mp4 have 1x1 pixels; at least 2x2 are needed" in err


@pytest.mark.parametrize("words", [("sample", "--person", "1"), ("demo",), ("train", "image")])
def test_an_output_folder_that_cannot_be_written_is_noticed_before_work_starts(
    capsys, monkeypatch, tmp_path, words
):
    from vldm_mini.pipeline import VideoLDM
    from vldm_mini.teaching import demo

    def too_late(*args, **kwargs):
        raise AssertionError("work has started")

    monkeypatch.setattr(VideoLDM, "latents", too_late)
    monkeypatch.setattr(demo, "run", too_late)
    monkeypatch.setattr("vldm_mini.training.stages._train", too_late)
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    code, _, err = run(capsys, *words, "--out", str(out))
    assert code == 2 and f"cannot write to the folder {out}" in err and "another --out" in err


def test_two_folders_with_one_name_get_two_runs_and_sets_get_theirs(monkeypatch, tmp_path):
    for parent in ("x", "y"):
        (tmp_path / parent / "clips").mkdir(parents=True)
    x, y = (commands.run_folder(str(tmp_path / parent / "clips"), "s") for parent in ("x", "y"))
    assert x != y and x.name.startswith("clips-") and x.name.endswith("-s")
    monkeypatch.chdir(tmp_path / "x" / "clips")
    assert commands.run_folder(".", "s") == commands.run_folder("../clips", "s") == x
    (tmp_path / "x" / "clips" / "driving").mkdir()
    assert commands.run_folder("driving", "xs") == Path("runs/driving-xs")
    assert commands.run_folder("actions", "m") == Path("runs/actions-m")


def test_every_option_of_every_command_has_a_help_text():
    import argparse

    top = commands.parser()
    subs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert {"demo", "test", "lab", "check", "train", "sample", "data"} <= set(subs)
    for name, sub in subs.items():
        assert sub.description, name
        bare = [action.dest for action in sub._actions if not action.help]
        assert bare == [], name
        assert sub.format_help()


# -- check -----------------------------------------------------------------------------------------


@pytest.fixture
def sound(monkeypatch):
    """A machine with everything in place but weights and data, whatever this one lacks."""
    monkeypatch.setattr(
        report, "weights_found", lambda: ({"actions/image/model.safetensors": 1.0}, [])
    )
    monkeypatch.delenv("VLDM_DATA", raising=False)


def test_check_reports_a_sound_machine_and_what_it_measured(capsys, sound):
    code, out, _ = run(capsys, "check")
    assert code == 0 and "all is well" in out
    assert all(word in out for word in ("torch", "device", "threads", "number format", "to run"))
    facts = json.loads(run(capsys, "check", "--json")[1])
    assert (
        facts["threads"] >= 1
        and facts["number_format"]["precision"] == "fp32"
        and facts["problems"] == []
    )


@pytest.mark.parametrize(
    "name, version, says",
    [
        ("einops", None, "einops is not installed"),
        ("torch", "2.1.0", "torch is 2.1.0, older than 2.11"),
        ("av", None, "av is not installed"),
    ],
)
def test_check_fails_on_a_package_that_is_missing_or_too_old(
    capsys, sound, monkeypatch, name, version, says
):
    real = report._version
    monkeypatch.setattr(
        report, "_version", lambda package: version if package == name else real(package)
    )
    code, out, _ = run(capsys, "check")
    assert code == 1 and says in out and "pip install" in out


def test_check_fails_on_a_data_folder_that_is_named_but_broken(
    capsys, sound, monkeypatch, tmp_path
):
    monkeypatch.setenv("VLDM_DATA", str(tmp_path / "nowhere"))
    assert run(capsys, "check")[0] == 1
    monkeypatch.setenv("VLDM_DATA", str(tmp_path))
    assert "is empty" in run(capsys, "check")[1]
    (tmp_path / "signs").mkdir()
    (tmp_path / "signs" / "again.mkv").write_bytes(b"half a video")
    code, out, _ = run(capsys, "check")
    assert code == 1 and "signs" in out


def test_check_fails_without_weights_and_on_half_a_file(capsys, monkeypatch, tmp_path):
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert len(report.weights_found()[1]) == len(report.SHIPPED)
    monkeypatch.setattr(report, "SHIPPED", ("a",))
    assert "no weights of a" in report.weights_found()[1][0]
    file = tmp_path / "data" / "checkpoints" / "a" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file({"x": torch.zeros(100)}, file)
    assert report.weights_found() == ({"a/model.safetensors": 0.0}, [])
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in report.weights_found()[1][0]


@pytest.mark.parametrize(
    "name, ask", [("VLDM_SIZE", machine.pick_size), ("VLDM_PRECISION", machine.probe)]
)
def test_a_wrong_word_in_the_environment_is_refused(monkeypatch, name, ask):
    monkeypatch.setenv(name, "huge")
    with pytest.raises(ValueError, match=f"{name} is 'huge'; use "):
        ask()


def test_a_gpu_that_is_available_but_cannot_compute_is_not_used_and_is_reported(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "device_error", lambda kind: "no kernel image is available")
    facts = {"problems": []}
    report._add_compute(facts)
    assert machine.device() == torch.device("cpu") and facts["device"] == "cpu"
    assert len(facts["problems"]) == 1
    assert (
        "does not compute (no kernel image is available); the cpu is used" in facts["problems"][0]
    )


def test_a_device_counts_once_a_matrix_product_on_it_is_right(monkeypatch):
    import torch

    assert machine.device_error.__wrapped__("cpu") == ""
    assert machine.device_error.__wrapped__("meta") != "", "a device without numbers"
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: 2 * ones(*size))
    assert (
        machine.device_error.__wrapped__("cpu") == "a matrix product gives 2048.0 in place of 512"
    )


# -- threads, number format ------------------------------------------------------------------------

HALF = {"quota": "50000", "period": "100000"}


def grant(tmp_path, own, files):
    """A cgroup tree in a folder: /proc/self/cgroup's text, and {file: text} below the root."""
    (tmp_path / "self").write_text(own)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return machine.quota(tmp_path, tmp_path / "self")


@pytest.mark.parametrize(
    "own, files, cores",
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        (
            "0::/a/b\n",
            {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"},
            2.0,
        ),  # set above us
        ("0::/not/here\n", {"cpu.max": "300000 100000"}, 3.0),  # a container's own view
        (
            "4:cpu,cpuacct:/a\n0::/\n",
            {f"cpu,cpuacct/a/cpu.cfs_{k}_us": v for k, v in HALF.items()},
            0.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/a\n", {}, None),
    ],
)
def test_the_quota_of_either_cgroup_version_is_read(tmp_path, own, files, cores):
    assert grant(tmp_path, own, files) == cores


def test_there_is_no_quota_where_there_are_no_cgroups(tmp_path):
    assert machine.quota(tmp_path, tmp_path / "absent") is None


def test_threads_are_the_least_of_mask_quota_and_variable_and_never_zero(monkeypatch):
    monkeypatch.setattr(machine, "quota", lambda: 0.5)
    assert machine.threads() == 1
    monkeypatch.setattr(machine, "quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.threads() == 1


@pytest.mark.parametrize("bf16, chosen", [(0, "fp32"), (1, "fp32"), (110, "fp32"), (400, "bf16")])
def test_the_faster_format_wins_and_an_emulated_one_is_not_timed_twice(monkeypatch, bf16, chosen):
    timed = []
    monkeypatch.setattr(
        machine, "_gflops", lambda name, n, half: timed.append(n) or (bf16 if half else 100)
    )
    assert machine._timed_probe.__wrapped__("cpu").precision == chosen
    assert max(timed) == (256 if bf16 < 34 else 1024)
