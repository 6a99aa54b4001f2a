# SPDX-License-Identifier: Apache-2.0
"""The command line: what is wrong is said in one line before any training."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import LOO, ROOT, TINY, cache, command_line, flags_of, no_album, write_album  # noqa: F401

from metaicl import sharding
from metaicl.data.images import DataWarning
from metaicl.models.squeezenet import expected_shapes


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command line that must fail before any training; returns the one line that says why."""

    def run(*arguments: str) -> str:
        workdir = (
            [] if any(str(a).startswith("--workdir") for a in arguments) else [f"--workdir={tmp_path}/out"]
        )
        capsys.readouterr()
        began = AssertionError("training or evaluation began")
        with (
            mock.patch("metaicl.experiment.runs.train", side_effect=began),
            mock.patch("metaicl.experiment.runs.evaluate", side_effect=began),
        ):
            assert command_line(*arguments, *workdir) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if "\r" not in line and not line.startswith("[")]
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0], printed.err
        return errors[0].removeprefix("error: ")

    return run


def loo(argument: str, **overrides) -> list[str]:
    return [f"--config={LOO}:{argument}", *flags_of(overrides)]


def tiny(argument: str, cache, **overrides) -> list[str]:  # noqa: F811
    return loo(f"backbone=none,{argument},cache={cache}", **(TINY | overrides))


# What is typed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--config is missing. Example: python -m metaicl.main --config=configs/loo.py:quick"),
        (["--config=configs/absent.py:quick"], "There is no config file 'configs/absent.py'."),
        (["--config=configs/absent.py", "--config.train.steps=3"], "no config file 'configs/absent.py'."),
        (loo("quik"), "Unknown word 'quik'; did you mean 'quick'? Known: quick, full"),
        (loo("helt_out=cells"), "Unknown key 'helt_out'; did you mean 'held_out'? Known: "),
        (loo("seeds=two"), "seeds='two' is not of the type int"),
        (
            loo("learner=mamal"),
            "learner='mamal' is not one of joint, packed, matching, geom, prototypes (join",
        ),
        (loo("learner=maml"), "(join several with +). With backbone=none there is."),
        (
            loo("backbone=none,learner=geom"),
            "fomaml, reptile (join several with +). With a backbone there is.",
        ),
        (loo("held_out=mars"), "There is no domain 'mars'. Did you mean "),
        (loo("", **{"train.stesp": 3}), "no key 'stesp'. Did you mean \"steps\""),
        (loo("", **{"trian.steps": 3}), "no key 'trian'. Did you mean \"train\""),
        (loo("", **{"train.steps": "many"}), "flag --config.train.steps=many: invalid literal for int()"),
        ([*loo("quick"), "--workdri=x"], "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
        ([*loo("quick"), "quick"], "Unknown argument 'quick'."),
        (
            [*loo("quick"), "--run=99"],
            "There is no run '99'; the runs are: 0 held_out=cells,closed_form, 1 held_out=",
        ),
        ([*loo("quick"), "--run=held_out=mars"], "There is no run 'held_out=mars'; the runs are: 0 "),
        (
            loo("quick", learner="maml"),
            "--config.learner='maml' would have no effect: every run of this config",
        ),
        (loo("", **{"data.held_out": "cells"}), "--config.data.held_out='cells' would have no effect"),
        (
            loo("quick", **{"data.kind": "tables"}),
            "data.kind is 'tables'; there are album, formulas, functions",
        ),
    ],
    ids=lambda value: value.split(".")[0][:40] if isinstance(value, str) else "",
)
def test_what_is_typed_wrong(arguments, text, refused):
    assert text in refused(*arguments)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"data.split": "half"}, "data.split is 'half'; use 'domain', 'within', 'images',"),
        ({"data.validation": "mars"}, "There is no domain 'mars'"),
        ({"data.validation": "cells"}, "'cells' cannot both validate and test"),
        ({"data.datasets": "('roses',)"}, "no embedded data set 'roses'"),
        ({"task.ways": 6}, "has 5 classes of at least"),
        ({"task.shots": 5}, "has 0 classes of at least"),
        ({"task.weighting": "size"}, "weighting is 'size'; use 'uniform', 'images' or 'classes'."),
        ({"task.label_noise": 2.0}, "label_noise is 2.0; it is a share between 0 and 1."),
        ({"train.optimizer": "adamm"}, "train.optimizer='adamm'"),
        ({"train.decay": "steep"}, "train.decay='steep'"),
        ({"learners.prototypes.kind": "protos"}, "Unknown learner 'protos'"),
        ({"baselines": "('rigde',)"}, "The config has no learner 'rigde'; there are "),
        ({"learners.prototypes.encoder": "convv"}, "'convv'"),
        ({"data.backbone": "resnet"}, "data.backbone is 'resnet'"),
        ({"data.backbone": "squeezenet"}, "needs its pretrained weights: give weights=PATH.safetensors."),
        ({"data.weights": "absent.safetensors", "data.backbone": "squeezenet"}, "no weights file absent"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_config_asks_for_in_vain(overrides, text, refused, cache):  # noqa: F811
    said = refused(*tiny("held_out=cells,learner=prototypes", cache), *flags_of(overrides), "--run=0")
    assert text in said


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("backbone=resnet", "data.backbone is 'resnet'"),
        ("backbone=squeezenet", "needs its pretrained weights: give weights=PATH.safetensors."),
        ("backbone=squeezenet,weights=absent.safetensors", "no weights file absent.safetensors"),
        (
            "backbone=resnet50",
            "'resnet50' needs its pretrained weights: download https://download.pytorch.org/",
        ),
        ("backbone=resnet34,weights=absent.pth", "no weights file absent.pth of ResNet-34: download https"),
    ],
)
def test_a_backbone_is_checked_before_an_album_is_drawn(argument, text, refused, no_album):  # noqa: F811
    assert text in refused(f"--config={LOO}:{argument}")


def test_images_too_small_for_the_backbone_are_not_drawn(tmp_path, refused, no_album):  # noqa: F811
    path = tmp_path / "weights.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in expected_shapes().items()}, path)
    said = refused(f"--config={LOO}:backbone=squeezenet,weights={path},image_size=30")
    assert "at least 31 x 31 pixels, got (1, 30, 30, 3)" in said


def test_a_batch_that_the_devices_cannot_share_is_trained_on_some_of_them(capsys, tmp_path, cache):  # noqa: F811
    sharding._note.cache_clear()
    arguments = tiny("held_out=cells,learner=prototypes", cache, **{"train.batch": 3})
    with (
        mock.patch("metaicl.experiment.execute") as each,
        mock.patch("metaicl.experiment.write_report", return_value=""),
    ):
        assert command_line(*arguments, f"--workdir={tmp_path}", devices=2) == 0
    each.assert_called_once()
    said = "A batch of 3 episodes cannot be spread over 2 devices: 1 of them will train. To use all, set train.batch"
    assert capsys.readouterr().err.count(f"note: {said} to a multiple of 2.\n") == 1


# What is on the disk


def album(folder: pathlib.Path) -> list[str]:
    return loo(
        f"backbone=none,album={folder},held_out=plants,learner=prototypes", **(TINY | {"data.datasets": "()"})
    )


def accepted(tmp_path, *arguments: str) -> None:
    """The command line gets as far as the training, which is left out."""
    with (
        mock.patch("metaicl.experiment.execute") as execute,
        mock.patch("metaicl.experiment.write_report", return_value=""),
    ):
        assert command_line(*arguments, f"--workdir={tmp_path}/out") == 0
    assert execute.call_count == 1


def test_there_is_no_album(tmp_path, refused):
    assert f"There is no album at {tmp_path}/absent. Give a folder of data sets" in refused(
        *album(tmp_path / "absent")
    )


def test_an_empty_album(tmp_path, refused):
    (tmp_path / "album").mkdir()
    assert f"{tmp_path}/album holds no data set" in refused(*album(tmp_path / "album"))


def test_no_labels(tmp_path, refused):
    folder = write_album(tmp_path / "album")
    (folder / "BRD" / "labels.csv").unlink()
    said = refused(*album(folder))
    assert "BRD" in said and "labels.csv" in said


def test_missing_columns(tmp_path, refused):
    folder = write_album(tmp_path / "album")
    labels = folder / "BRD" / "labels.csv"
    labels.write_text(labels.read_text().replace("CATEGORY", "KIND", 1))
    said = refused(*album(folder))
    assert f"{labels} has no category column 'CATEGORY'; its columns are 'FILE_NAME', 'KIND'" in said


def test_a_missing_image(tmp_path, refused):
    folder = write_album(tmp_path / "album")
    (folder / "BRD" / "images" / "0_0.png").unlink()
    said = refused(*album(folder))
    assert "0_0.png" in said and "BRD" in said


@pytest.mark.parametrize("data", [b"not an image", b""])
def test_an_image_that_does_not_decode(data, tmp_path, refused, capsys):
    folder = write_album(tmp_path / "album", images=7)
    (folder / "BRD" / "images" / "0_0.png").write_bytes(data)
    said = refused(*album(folder))
    assert "0_0.png" in said and "skip_bad" in said
    with pytest.warns(DataWarning, match=r"BRD: left out 1 images that do not decode, first .*0_0\.png"):
        accepted(tmp_path, *album(folder), "--config.data.skip_bad=true")


def test_repeated_rows_are_left_out_and_counted(tmp_path):
    folder = write_album(tmp_path / "album")
    with open(folder / "BRD" / "labels.csv", "a") as labels:
        labels.write("0_0.png,BRD 0,\n0_1.png,BRD 4,\n")
    with pytest.warns(DataWarning, match="left out 2 rows that repeat a file name, 1 of them with another"):
        accepted(tmp_path, *album(folder))


def drop_rows(folder: pathlib.Path, *names: str) -> None:
    labels = folder / "APL" / "labels.csv"
    rows = [row for row in labels.read_text().splitlines() if not row.startswith(names)]
    labels.write_text("\n".join(rows) + "\n")


def test_small_classes_are_dropped_and_counted_until_too_few_are_left(tmp_path, refused):
    folder = write_album(tmp_path / "some")
    drop_rows(folder, "0_", "1_3", "1_4", "1_5")
    with pytest.warns(DataWarning, match=r"APL: dropped 1 of 4 classes \(3 images\)"):
        accepted(tmp_path, *album(folder))
    folder = write_album(tmp_path / "too_many")
    drop_rows(folder, "0_", "1_3", "1_4", "1_5", "2_")
    said = refused(*album(folder))
    assert "APL has 2 classes of at least " in said and "3 are needed" in said


def test_fewer_classes_than_ways(tmp_path, refused):
    folder = write_album(tmp_path / "album", classes=2)
    assert "has 2 classes of at least 4 images, and 3 are needed" in refused(*album(folder))


def test_weights_that_do_not_fit(tmp_path, refused):
    folder = write_album(tmp_path / "album", side=40)
    weights = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes().items()}
    first, second, *_ = weights
    shapeless = weights | {first: np.zeros((1, 2), np.float32)}
    for name, tensors, text in [
        ("shape", shapeless, f"other shapes: {first} is (1, 2) instead of "),
        ("missing", {k: v for k, v in weights.items() if k != second}, f"missing: {second}"),
    ]:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        said = refused(*album(folder), "--config.data.backbone=squeezenet", f"--config.data.weights={path}")
        assert f"{path} does not fit the network" in said and text in said
    path.write_bytes(path.read_bytes()[:1000])
    said = refused(*album(folder), "--config.data.backbone=squeezenet", f"--config.data.weights={path}")
    assert f"{path} is not a whole safetensors file" in said


# Where the results go


def test_a_workdir_that_cannot_be_written_to(tmp_path, refused, cache):  # noqa: F811
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "inner"):
        said = refused(*tiny("held_out=cells,learner=prototypes", cache), f"--workdir={place}")
        assert f"The workdir {place} cannot be written to" in said and "choose another --workdir" in said


def test_a_workdir_of_another_config(tmp_path, refused, cache):  # noqa: F811
    place = f"--workdir={tmp_path}/out"
    arguments = tiny("held_out=cells,learner=prototypes", cache)
    with mock.patch("metaicl.experiment.runs.train", side_effect=KeyboardInterrupt):
        assert command_line(*arguments, place) == 130
    run = tmp_path / "out" / "held_out=cells"
    before = (run / "config.json").read_bytes()
    changes = "(task.ways: 3 -> 2; train.learning_rate: 0.001 -> 0.5)"
    for finished in (False, True):
        if finished:
            (run / "records.jsonl").touch()
        said = refused(*arguments, "--config.train.learning_rate=0.5", "--config.task.ways=2", place)
        assert f"{run} holds a run of another config {changes}" in said
        assert (run / "config.json").read_bytes() == before


def test_defects_are_told_from_mistakes(tmp_path, capsys, cache):  # noqa: F811
    arguments = [*tiny("held_out=cells,learner=prototypes", cache), f"--workdir={tmp_path}"]
    with mock.patch("metaicl.experiment.make_run", side_effect=TypeError("two\nlines")):
        assert command_line(*arguments) == 1
        assert capsys.readouterr().err == (
            "error: two lines\nThis looks like a defect; --debug shows the traceback.\n"
        )
        with pytest.raises(TypeError, match="two"):
            command_line(*arguments, "--debug")


def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys, cache):  # noqa: F811
    with mock.patch("metaicl.experiment.execute", side_effect=KeyboardInterrupt):
        assert command_line(*tiny("held_out=cells,learner=prototypes", cache), f"--workdir={tmp_path}") == 130
    assert "Interrupted. The same command goes on from the newest checkpoint." in capsys.readouterr().err


# What needs no data


def test_list_names_the_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line(*loo("backbone=none,held_out=plants+cells"), "--list") == 0
    assert capsys.readouterr().out == "0 held_out=cells\n1 held_out=plants\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_exits_with_0(flag, capsys):
    assert command_line(flag) == 0
    said = capsys.readouterr().out
    assert "--config" in said and "--workdir" in said and "--run" in said


def test_the_module_is_a_program(tmp_path):
    """Also that an error is the exit status, which a shell or a scheduler sees."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "metaicl.main", f"--workdir={tmp_path}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --config is missing.") and done.stderr.count("\n") == 1


def test_the_default_workdir_is_named_after_the_config(tmp_path, monkeypatch, capsys, cache):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    with mock.patch("metaicl.experiment.run_experiment", return_value="table") as run:
        assert command_line(*loo("quick,held_out=land cover"), "--run=1") == 0
    config, place = run.call_args.args
    assert place == pathlib.Path("runs") / "loo-quick,held_out=land_cover"
    assert run.call_args.kwargs["only"] == "1" and config.data.kind == "album"
    assert run.call_args.kwargs["command"][:3] == ["python", "-m", "metaicl.main"]
    assert capsys.readouterr().out == "table\n"
    assert json.dumps(config.task.to_dict()) and list(tmp_path.iterdir()) == []
