# SPDX-License-Identifier: Apache-2.0
"""`python -m metaicl.prepare meta_album` against a server that breaks off, sends wrong bytes and wrong data sets."""

import errno
import fcntl
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import openml_server
import pytest
from openml_server import album_files, zipped
from real_data import REAL_DATA, needs_real

from metaicl import prepare
from metaicl.configuration import load_config_file
from metaicl.data import download, meta_album, preparing, sources, tfds_album
from metaicl.data.album_table import OFFICIAL, SIZES, Release, choose_official, count_remark, release_of

BRD, DOG, PNU = 44241, 44313, 44312  # numbers of their micro releases
SMALL = (5, 40)  # classes and images of a release that takes no time; PNU keeps its own


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("METAICL_DATA", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    for id, number in (("BRD", BRD), ("DOG", DOG)):
        monkeypatch.setitem(OFFICIAL, id, OFFICIAL[id]._replace(micro=Release(*SMALL, number)))
    with openml_server.serve() as running:
        monkeypatch.setenv("METAICL_OPENML", running.url)
        yield running


@pytest.fixture(scope="module")
def birds() -> bytes:
    return zipped(album_files("BRD_Micro", *SMALL))


@pytest.fixture(scope="module")
def dogs() -> bytes:
    return zipped(album_files("DOG_Micro", *SMALL))


def run(*arguments) -> int:
    return prepare.main(["prepare", *map(str, arguments)])


def micro(out, *arguments) -> int:
    return run("meta_album", "--size=micro", f"--out={out}", *arguments)


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def nothing_is_left(out: Path, but: tuple[str, ...] = ()):
    """Neither a data set nor a part of one."""
    assert visible(out / "meta_album_micro") == list(but)
    assert not (out / ".downloads").exists()


def raw_pool(tmp_path: Path, archive: bytes):
    """The Pool of the files that are in an archive, unpacked by other means."""
    zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path / "raw")
    (folder,) = (tmp_path / "raw").iterdir()
    return meta_album.read_dataset(folder, image_size=8)


def same(pool, other) -> bool:
    return (
        (pool.name, pool.domain, pool.classes) == (other.name, other.domain, other.classes)
        and pool.digests.tolist() == other.digests.tolist()
        and pool.labels.tolist() == other.labels.tolist()
    )


@pytest.mark.parametrize("format", ["array_record", "files"])
def test_a_data_set_is_fetched_over_a_broken_connection_and_reads_as_it_was(
    server, birds, tmp_path, capsys, format
):
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    server.stops, server.page = [10_000, 5_000], 1
    assert micro(tmp_path / "out", "--datasets=BRD", f"--format={format}") == 0
    printed = capsys.readouterr().out
    album = tmp_path / "out" / "meta_album_micro"
    assert re.search(rf"BRD_Micro +5 +40 .*{album}/BRD_Micro\n", printed)
    assert (
        f"python -m metaicl.main --config=configs/mini_imagenet.py:5w1s,data=album,folder={album}" in printed
    )
    ranges = [wanted for name, wanted in server.downloads if name == "BRD_Micro.zip"]
    assert ranges == [None, "bytes=10000-", "bytes=15000-"]
    (pool,) = meta_album.read_album(album, image_size=8)
    assert same(pool, raw_pool(tmp_path, birds)) and pool.domain == "large animals"
    nothing_is_left(tmp_path / "out", ("BRD_Micro",))
    expected = ["1.0.0"] if format == "array_record" else ["images", "info.json", "labels.csv"]
    assert visible(album / "BRD_Micro") == [*expected, "prepared.json"]


def test_what_is_there_is_checked_and_left_without_asking_anybody(server, birds, dogs, tmp_path, capsys):
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    server.add(DOG, "Meta_Album_DOG_Micro", dogs)
    assert micro(tmp_path, "--datasets=BRD") == 0
    note = tmp_path / "meta_album_micro" / "BRD_Micro" / "prepared.json"
    before = note.stat().st_mtime_ns
    server.asked.clear()
    assert micro(tmp_path, "--datasets=birds,DOG") == 0
    told = capsys.readouterr()
    assert "finished before, and unchanged" in told.err and note.stat().st_mtime_ns == before
    assert re.search(r"2 in all +10 +80", told.out)
    assert [name for name, _ in server.downloads] == ["DOG_Micro.zip"]
    assert not [path for path, _ in server.asked if str(BRD) in path]
    server.asked.clear()
    assert micro(tmp_path, "--datasets=DOG,BRD") == 0 and server.asked == []

    (record,) = (tmp_path / "meta_album_micro" / "BRD_Micro" / "1.0.0").glob("*.array_record*")
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(data)
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert "BRD_Micro has changed since it was prepared: a file has other" in capsys.readouterr().err
    record.unlink()
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert re.search(r"has changed since.*: 4 files .* there were 5", capsys.readouterr().err)


@pytest.mark.parametrize("whole", [True, False])
def test_corrupt_bytes_leave_nothing_and_do_not_keep_the_others(server, birds, dogs, tmp_path, capsys, whole):
    """With a checksum the bytes are found out when they come, and without one by those inside the zip."""
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    server.add(DOG, "Meta_Album_DOG_Micro", dogs)
    server.whole = whole
    at = birds.index(b"\xff\xd8", len(birds) // 2) + 100

    def damage(data):
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data == birds else data

    server.damage = damage
    assert micro(tmp_path, "--datasets=BRD,DOG") == 1
    told = capsys.readouterr()
    fault = "its md5 is .* was expected" if whole else "is damaged .*CRC"
    assert re.search(rf"error: BRD_Micro: .*{fault}", told.err) and "1 of 2 failed" in told.err
    assert visible(tmp_path / "meta_album_micro") == ["DOG_Micro"]
    assert not list(tmp_path.rglob("*.zip")) and not list(tmp_path.rglob("*.part"))
    server.damage = lambda data: data
    assert micro(tmp_path, "--datasets=BRD,DOG") == 0
    nothing_is_left(tmp_path, ("BRD_Micro", "DOG_Micro"))


def test_what_openml_lacks_fails_alone(server, dogs, tmp_path, capsys):
    server.add(DOG, "Meta_Album_DOG_Micro", dogs)
    server.add(PNU, "Meta_Album_PNU_Micro", b"", file="readme.txt")
    assert micro(tmp_path, "--datasets=PNU,DOG,BRD") == 1
    told = capsys.readouterr().err
    assert re.search(r"error: PNU_Micro: .*has 0 archives", told) and "2 of 3 failed" in told
    assert re.search(r"error: BRD_Micro: .*answers 412", told)
    nothing_is_left(tmp_path, ("DOG_Micro",))


@pytest.mark.parametrize("whole", [True, False])
def test_a_download_given_up_goes_on_with_the_next_command_unless_the_file_changed(
    server, birds, dogs, tmp_path, capsys, whole
):
    server.whole = whole
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    server.stops = [1000, 1000, 1000, 1000]
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert "in 4 attempts (the connection ended after 4000" in capsys.readouterr().err
    server.asked.clear()
    server.stops = [1000, 1000, 1000, 1000]
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert server.downloads[0][1] == "bytes=4000-"
    newer = zipped(album_files("BRD_Micro", 5, 41))
    server.add(BRD, "Meta_Album_BRD_Micro", newer)
    server.asked.clear()
    assert micro(tmp_path, "--datasets=BRD") == 0 and server.downloads[0][1] is None


@pytest.mark.slow
def test_a_killed_process_leaves_no_half_and_the_next_one_goes_on(server, tmp_path):
    server.add(PNU, "Meta_Album_PNU_Micro", zipped(album_files("PNU_Micro", 19, 760)))
    server.at = 200_000
    command = [sys.executable, "-m", "metaicl.prepare", "meta_album", "--size=micro", "--datasets=PNU"]
    process = subprocess.Popen(
        [*command, f"--out={tmp_path}"],
        stderr=subprocess.DEVNULL,
        env=os.environ,
        cwd=Path(prepare.__file__).parents[1],
    )
    try:
        assert server.held.wait(60)
        part = lambda: [p.stat().st_size for p in tmp_path.rglob("*.part")]
        for _ in range(1000):  # until the bytes that were sent are written
            if part() and part()[0] >= 130_000:
                break
            server.released.wait(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert visible(tmp_path / "meta_album_micro") == [".PNU_Micro.partial"]
    (size,) = part()
    server.at = None
    server.asked.clear()
    assert micro(tmp_path, "--datasets=PNU") == 0
    assert [wanted for _, wanted in server.downloads] == [f"bytes={size}-"]
    nothing_is_left(tmp_path, ("PNU_Micro",))


def test_interrupting_says_how_to_go_on(server, birds, tmp_path, capsys, monkeypatch):
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    plain, stopped = sources.unpack, []

    def once(*args, **kwargs):
        if not stopped:
            stopped.append(plain(*args, **kwargs))
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(sources, "unpack", once)
    assert micro(tmp_path, "--datasets=BRD") == 130
    assert "Give the same command again: it goes on" in capsys.readouterr().err
    assert visible(tmp_path / "meta_album_micro") == [] and len(list(tmp_path.rglob("BRD_Micro.zip"))) == 1
    server.asked.clear()
    assert micro(tmp_path, "--datasets=BRD") == 0 and server.downloads == []
    nothing_is_left(tmp_path, ("BRD_Micro",))


DISK_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    # array_record's writer
    RuntimeError("Failed to finalize: write() failed: No space left on device; writing x; at byte 2097152"),
]


@pytest.mark.parametrize("error", DISK_FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_stops_with_nothing_half_written_and_the_next_command_goes_on(
    server, birds, tmp_path, capsys, monkeypatch, error
):
    server.add(BRD, "Meta_Album_BRD_Micro", birds)

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        builder = tfds_album.import_tfds().core.GeneratorBasedBuilder
        patch.setattr(builder, "download_and_prepare", full)
        assert micro(tmp_path, "--datasets=BRD") == 1
    told = capsys.readouterr().err
    assert re.search(
        rf"error: The disk of {tmp_path} filled up .*Free some space and give the same command", told
    )
    assert visible(tmp_path / "meta_album_micro") == []
    server.asked.clear()
    assert micro(tmp_path, "--datasets=BRD", "--keep") == 0 and server.downloads == []
    assert len(list((tmp_path / ".downloads").rglob("*.zip"))) == 1


def wrong_labels(edit):
    """An archive of birds whose labels.csv is changed."""
    files = album_files("BRD_Micro", *SMALL)
    files["BRD_Micro/labels.csv"] = edit(files["BRD_Micro/labels.csv"].decode()).encode()
    return zipped(files)


def test_other_counts_than_the_table_tells_are_told_of_and_far_ones_refused(server, birds, tmp_path, capsys):
    fewer = lambda text: "\n".join(text.splitlines()[:-3]) + "\n"
    server.add(BRD, "Meta_Album_BRD_Micro", wrong_labels(fewer))
    assert micro(tmp_path / "a", "--datasets=BRD") == 0
    told = "BRD_Micro has 5 classes of 37 images in all, where Meta-Album tells of 5 and 40."
    assert told in capsys.readouterr().err
    for name, edit, fault in [
        ("few", lambda t: "\n".join(t.splitlines()[:16]), r"BRD \(micro\) holds 5 classes of 15 images"),
        (
            "one",
            lambda t: re.sub(r"class \d+", "bird", t),
            r"holds 1 classes of 40 images.*another data set",
        ),
        ("none", lambda t: t.splitlines()[0], "lists no images"),
        ("lost", lambda t: t + "lost.jpg,class 001,\n", "lists 1 files that are not in"),
    ]:
        server.add(BRD, "Meta_Album_BRD_Micro", wrong_labels(edit))
        assert micro(tmp_path / name, "--datasets=BRD") == 1
        assert re.search(fault, capsys.readouterr().err)
        nothing_is_left(tmp_path / name)


def test_known_anomalies_are_named_and_not_refused(server, tmp_path, capsys):
    files = album_files("PNU_Micro", 19, 760)
    files["PNU_Micro/labels.csv"] += b".DS_Store,class 001,\nPNU_000000.jpg,class 005,\n"
    server.add(PNU, "Meta_Album_PNU_Micro", zipped(files))
    assert micro(tmp_path, "--datasets=PNU") == 0
    told = capsys.readouterr().err
    assert re.search(r"19 classes of 760 .* 20 and 800: a known slip", told)
    assert re.search(r"1 rows of hidden files.*1 rows that repeat a file name, 1 of them", told)


@pytest.mark.parametrize(
    ("id", "size", "classes", "images", "remark"),
    [
        ("INS", "mini", 104, 4110, "^$"),
        ("INS", "mini", 104, 4160, "known slip"),
        ("DOG", "micro", 19, 760, "known slip"),
        ("BRD", "micro", 19, 760, r"20 and 800$"),
        ("PLK", "mini", 86, 3440, "^$"),
    ],
)
def test_counts_are_compared_with_the_table(id, size, classes, images, remark):
    assert re.search(remark, count_remark(OFFICIAL[id], size, classes, images))


@pytest.mark.parametrize("classes,images", [(0, 0), (9, 800), (41, 800), (20, 399), (20, 1601)])
def test_counts_that_are_far_off_are_refused(classes, images):
    with pytest.raises(ValueError, match=rf"{classes} classes of {images:,} images.*folder PATH"):
        count_remark(OFFICIAL["BRD"], "micro", classes, images)


@pytest.mark.parametrize(
    ("name", "word"), [("../evil.jpg", "a path outside"), ("/tmp/evil.jpg", "a path outside")]
)
def test_a_climbing_archive_writes_nothing_anywhere(server, tmp_path, capsys, name, word):
    server.add(BRD, "Meta_Album_BRD_Micro", zipped({name: b"evil"} | album_files("BRD_Micro", *SMALL)))
    assert micro(tmp_path / "deep" / "out", "--datasets=BRD") == 1
    assert re.search(f"error: BRD_Micro: .*{word}", capsys.readouterr().err)
    nothing_is_left(tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.jpg")) and not Path("/tmp/evil.jpg").exists()


def test_another_data_set_than_asked_for_is_refused(server, birds, dogs, tmp_path, capsys):
    server.add(BRD, "Meta_Album_DOG_Micro", dogs)
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert re.search(r"knows data set 44241 as 'Meta_Album_DOG_Micro'.*not as BRD", capsys.readouterr().err)
    server.add(BRD, "Meta_Album_BRD_Mini", birds)
    assert micro(tmp_path, "--datasets=BRD") == 1 and "not as BRD (micro)" in capsys.readouterr().err
    assert server.downloads == []
    server.objects.clear()
    server.add(BRD, "Meta_Album_BRD_Micro", dogs)
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert "holds DOG_Micro, and not BRD_Micro" in capsys.readouterr().err
    nothing_is_left(tmp_path)
    server.objects.clear()
    server.add(BRD, "Meta_Album_BRD_Micro", b"", file="readme.txt")
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert re.search(
        r"has 0 archives of images, among dataset_44241\.pq, readme\.txt", capsys.readouterr().err
    )


def test_ocr_has_no_extended_release_and_its_mini_one_is_taken(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "count_remark", lambda *args: "")
    server.add(44287, "Meta_Album_MD_MIX_Mini", zipped(album_files("MD_MIX_Mini", 5, 20)))
    assert run("meta_album", "--size=Extended", "--datasets=MD_MIX", f"--out={tmp_path}") == 0
    assert "MD_MIX: there is no extended release of OCR; the mini one is taken" in capsys.readouterr().err
    assert visible(tmp_path / "meta_album_extended") == ["MD_MIX_Mini"]
    assert release_of(OFFICIAL["MD_6"], "extended") == ("mini", OFFICIAL["MD_6"].mini)
    assert release_of(OFFICIAL["BRD"], "extended") == ("extended", OFFICIAL["BRD"].extended)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--size=micro", "--datasets=BRD,DGO"], r"no data set 'DGO'. Did you mean 'DOG'\?.*MD_6"),
        (["--size=micro", "--datasets=Plant Doc,Fungus"], r"'Fungus'. Did you mean 'FNG'"),
        (["--size=mirco"], r"no size 'mirco'. Did you mean 'micro'\? There are: micro, mini, extended"),
        ([], "Give --size=micro, --size=mini or --size=extended"),
        (["--size=micro", "--server=ftp://x"], "'ftp://x' is no address of a server"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_before_anybody_is_asked(
    server, tmp_path, capsys, arguments, fault
):
    assert run("meta_album", f"--out={tmp_path}", *arguments) == 1
    told = capsys.readouterr().err
    assert re.search(f"^error: .*{fault}", told) and told.count("\n") == 1
    assert server.asked == [] and [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_unknown_formats_and_sources_are_refused(capsys):
    for arguments, fault in [
        (["meta_album", "--format=zip"], "'array_record', 'files'"),
        (["imagenet"], "'meta_album', 'omniglot', 'cifar_fs', 'folder', 'tfds'"),
        ([], "WHAT"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        told = capsys.readouterr().err
        assert stopped.value.code == 2
        assert all(word in told for word in fault.replace("'", "").split(", "))


def test_places_that_cannot_take_the_data_are_refused_first(server, birds, tmp_path, capsys, monkeypatch):
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    (tmp_path / "file").write_text("")
    assert micro(tmp_path / "file" / "out") == 1
    assert re.search("The out .*file/out cannot be written to.*another --out", capsys.readouterr().err)
    own = tmp_path / "own" / "meta_album_micro" / "BRD_Micro"
    own.mkdir(parents=True)
    assert micro(tmp_path / "own", "--datasets=BRD") == 1
    assert re.search(f"{own} exists and was not made by this command", capsys.readouterr().err)
    assert server.asked == []
    usage = type("Usage", (), {"free": 1_000})()
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda path: usage)
    assert micro(tmp_path / "small", "--datasets=BRD") == 1
    needed = preparing.human(3 * len(birds))  # the archive, unpacked, and written anew
    wanted = rf"error: Preparing this takes {needed} on the disk of .*small, and 1\.0 kB are left"
    assert re.search(wanted, capsys.readouterr().err) and server.downloads == []


def test_a_second_process_is_kept_out(server, tmp_path, capsys):
    with (tmp_path / ".prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert micro(tmp_path, "--datasets=BRD") == 1
    assert "Another process is preparing data in" in capsys.readouterr().err and server.asked == []


def test_a_server_that_does_not_know_the_data_set_or_is_not_there(server, tmp_path, capsys):
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert re.search(r"data/44241 cannot be downloaded: the server answers 412", capsys.readouterr().err)
    assert micro(tmp_path, "--datasets=BRD", "--server=http://127.0.0.1:9") == 1
    assert re.search(r"127.0.0.1:9.* in 4 attempts \(no connection", capsys.readouterr().err)


def test_the_default_place_is_that_of_the_data(server, birds, tmp_path, monkeypatch):
    server.add(BRD, "Meta_Album_BRD_Micro", birds)
    monkeypatch.setenv("METAICL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("meta_album", "--size=micro", "--datasets=BRD", "--format=files") == 0
    assert visible(tmp_path / "data" / "meta_album_micro") == ["BRD_Micro"]
    monkeypatch.delenv("METAICL_DATA")
    assert run("meta_album", "--size=micro", "--datasets=BRD", "--format=files") == 0
    assert visible(tmp_path / "home" / "data" / "metaicl" / "meta_album_micro") == ["BRD_Micro"]


def test_bad_images_are_refused_or_left_out(server, tmp_path, capsys):
    files = album_files("BRD_Micro", *SMALL)
    files["BRD_Micro/images/BRD_000007.jpg"] = b"<html>gone</html>"
    server.add(BRD, "Meta_Album_BRD_Micro", zipped(files))
    assert micro(tmp_path, "--datasets=BRD") == 1
    assert "BRD_000007.jpg cannot be decoded" in capsys.readouterr().err
    assert micro(tmp_path, "--datasets=BRD", "--skip_bad") == 0
    told = capsys.readouterr().err
    assert "left out 1 images that do not decode" in told and "39 images" in told


@pytest.mark.parametrize("what", ["meta_album", "omniglot", "cifar_fs", "folder", "tfds"])
@pytest.mark.parametrize("number", [1, 3])
def test_the_next_command_is_one(tmp_path, what, number):
    """The config that it names loads with its argument, and reads what was prepared."""
    album = tmp_path / "all of it"
    places = [str(album / name) for name in ("BRD_Micro", "PLK_Micro", "PNU_Micro")[:number]]
    for name, data in album_files("PLK_Micro", 1, 1).items():
        for place in places:
            path = Path(place) / name.split("/", 1)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    command = shlex.split(prepare._next_command(what, places))
    assert command[:3] == ["python", "-m", "metaicl.main"]
    path, argument = command[3].removeprefix("--config=configs/").split(".py:")
    beside = Path(prepare.__file__).parents[1] / "configs" / "x.py"
    config = load_config_file(path, beside=str(beside)).get_config(argument)
    alone = number == 1 and what != "meta_album"
    assert (places[0] if alone else str(album)) in (
        config.data.get("folder"),
        config.data.get("album"),
    )


def test_the_list_shows_every_data_set_with_its_sizes(capsys):
    assert run("meta_album", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines[1:] if line.split(" ")[0] in OFFICIAL]) == 30
    (birds,) = [line for line in lines if line.startswith("BRD ")]
    wanted = "BRD Birds large animals 20 / 800 315 / 12,600 315 / 49,054 44241 44285 44320"
    assert birds.split() == wanted.split()


def test_the_table_has_the_published_totals():
    totals = {size: [release_of(official, size) for official in OFFICIAL.values()] for size in SIZES}
    sums = {
        size: (
            sum(r.classes for taken, r in rows if taken == size),
            sum(r.images for t, r in rows if t == size),
        )
        for size, rows in totals.items()
    }
    assert sums["mini"] == (4080, 163_150) and sums["extended"] == (2001, 1_384_673)
    assert sums["micro"] == (600, 24_000)
    numbers = [r.openml for o in OFFICIAL.values() for r in (o.micro, o.mini, o.extended) if r]
    assert len(set(numbers)) == len(numbers) == 87 and (min(numbers), max(numbers)) == (44237, 44343)
    assert [o.id for o in choose_official([])] == list(OFFICIAL)


@needs_real
def test_the_table_is_that_of_the_reference():
    reference = REAL_DATA.parent / "reference" / "geom.md"
    if not reference.is_file():
        pytest.skip(f"there is no {reference}")
    number = lambda text: int(text.replace(",", ""))
    rows = {}
    for line in reference.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 10 and cells[0] in {o.domain_id for o in OFFICIAL.values()}:
            rows[cells[2]] = cells
    assert set(rows) == set(OFFICIAL)
    for id, (domain, part, _, name, openml, *counts, _, _) in rows.items():
        official = OFFICIAL[id]
        assert (official.domain_id, str(official.set), official.name) == (domain, part, name)
        wanted = [None if text == "—" else number(text) for text in openml.split(" / ")]
        for size, data_id, told in zip(SIZES, wanted, counts, strict=True):
            release = getattr(official, size)
            if data_id is None:
                assert release is None and told == "none"
            else:
                classes, images = map(number, told.split(" / "))
                assert release == (classes, images, data_id), (id, size)
