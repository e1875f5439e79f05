import errno
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveate_client.batch.sources import (
    Item,
    Joined,
    Passed,
    SourceError,
    Unreadable,
    identity,
    open_source,
)


def items(text, **options):
    source = open_source(str(text), **{"ordered": True, **options})
    found = list(source.items())
    assert source.count() == len(found)
    return found


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_a_folder_is_read_with_all_below_it_by_name(folder, photographs):
    found = items(folder)
    assert [item.name for item in found] == [str(crop.path) for crop in photographs]
    assert [item.image for item in found] == [crop.path for crop in photographs]
    assert {item.label for item in found} == {"RED", "0", "azure", "2"}


def test_a_folder_out_of_order_holds_the_same_pictures(folder, photographs):
    found = items(folder, ordered=False)
    assert {item.name for item in found} == {str(crop.path) for crop in photographs}


def test_what_is_no_picture_is_passed_over(tmp_path, coffee):
    for name in ("a.JPG", "b.txt", "c.png.part", "d.webp", "e.avif"):
        (tmp_path / name).write_bytes(coffee.read_bytes())
    assert [Path(item.name).name for item in items(tmp_path)] == ["a.JPG", "d.webp", "e.avif"]


def test_hidden_files_are_passed_over_and_counted(tmp_path, coffee):
    for name in (
        *("a.png", ".thumb.png", "._a.png", ".DS_Store", "notes.txt", "README"),
        *(".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "sub/.b.png", "sub/c.png"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(coffee.read_bytes())
    passed = Passed()
    found = items(tmp_path, passed=passed)
    assert [Path(item.name).name for item in found] == ["a.png", "c.png"]
    assert passed.counts == {"hidden": 6, ".txt": 1, "without a suffix": 1}
    assert passed.first[".txt"] == str(tmp_path / "notes.txt")
    assert f"1 .txt (the first is {tmp_path}/notes.txt)" in str(passed)
    every = items(tmp_path, hidden=True)
    assert len(every) == 7
    named = items(tmp_path / ".thumb.png")
    assert [Path(item.name).name for item in named] == [".thumb.png"]
    assert len(items(tmp_path / ".ipynb_checkpoints")) == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_a_folder_that_cannot_be_read_is_told_of_and_the_others_are_read(
    tmp_path, coffee, monkeypatch, ordered
):
    for name in ("a.png", "lost+found/b.png", "gone/c.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(coffee.read_bytes())
    errors = {"lost+found": errno.EACCES, "gone": errno.ENOENT}
    scan = os.scandir

    def refuse(place):
        if Path(place).name in errors:
            number = errors[Path(place).name]
            raise OSError(number, os.strerror(number), os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(open_source(str(tmp_path), ordered=ordered).items())
    pictures = {Path(x.name).name for x in found if isinstance(x, Item)}
    assert pictures == {"a.png", "z.png"}
    folders = {x for x in found if isinstance(x, Unreadable)}
    lost = str(tmp_path / "lost+found")
    assert folders == {
        Unreadable(lost, "PERMISSION_DENIED", f"cannot read {lost}: Permission denied"),
        Unreadable(
            str(tmp_path / "gone"),
            "NOT_FOUND",
            f"cannot read {tmp_path / 'gone'}: No such file or directory",
        ),
    }
    errors[tmp_path.name] = errno.EACCES
    with pytest.raises(SourceError, match="Permission denied"):
        list(open_source(str(tmp_path), ordered=ordered).items())


@pytest.mark.parametrize("ordered", [True, False])
def test_a_link_that_cannot_be_followed_costs_no_other_picture(tmp_path, coffee, ordered):
    links = {"loop.png": "loop.png", "long.png": "x" * 300, "nowhere.png": "/nowhere/at/all"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "a.png").write_bytes(coffee.read_bytes())
    (tmp_path / "b.png").symlink_to("a.png")
    names = {Path(item.name).name for item in items(tmp_path, ordered=ordered)}
    assert names == {"a.png", "b.png", *links}


def test_what_a_list_names_is_not_waited_for_where_it_is_no_file(tmp_path, coffee):
    os.mkfifo(tmp_path / "pipe.png")
    names = [str(coffee), str(tmp_path / "pipe.png"), "/dev/zero"]
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    picture, pipe, device = items(tmp_path / "list.txt")
    assert picture.image == coffee
    for found, name in ((pipe, names[1]), (device, names[2])):
        assert found == Unreadable(
            name,
            "INVALID_ARGUMENT",
            f"cannot read {name}: it is no plain file",
            "IMAGE_UNREADABLE",
        )


@pytest.mark.parametrize("ordered", [True, False])
def test_a_tree_may_be_deeper_than_a_stack(tmp_path, coffee, monkeypatch, ordered):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")
    Path("deep.png").write_bytes(coffee.read_bytes())
    os.chdir(tmp_path)
    (tmp_path / "top.png").write_bytes(coffee.read_bytes())
    found = list(open_source(".", ordered=ordered).items())
    # Python's own way to remove it is not made for such depths.
    subprocess.run(["rm", "-r", "d"], check=True)
    assert {Path(item.name).name for item in found} == {"deep.png", "top.png"}


def test_what_is_no_plain_file_is_not_waited_for(tmp_path, coffee):
    (tmp_path / "a.png").write_bytes(coffee.read_bytes())
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to("pipe.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    passed = Passed()
    found = items(tmp_path, passed=passed)
    assert [Path(item.name).name for item in found] == ["a.png", "broken.png"]
    assert passed.counts == {"that are no plain files": 2}


def test_an_item_knows_the_size_and_the_time_of_its_file(tmp_path, coffee):
    picture = tmp_path / "a.png"
    picture.write_bytes(coffee.read_bytes())
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(picture, "a.png")
    (tmp_path / "list.txt").write_text(f"{picture}\n")
    places = (tmp_path, picture, tmp_path / "list.txt", tmp_path / "shard.tar")
    before = [items(place)[0].stamp for place in places]
    assert all(before)
    assert before[0] == before[1] == before[2] != before[3]
    for place in (picture, tmp_path / "shard.tar"):
        os.utime(place, ns=(1, 1))
    after = [items(place)[0].stamp for place in places]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_sources_are_told_apart_by_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    found = []
    for folder in ("one", "two"):
        monkeypatch.chdir(tmp_path / folder)
        found.append([identity(text) for text in ("pictures", "list.txt", "-", "/a/b.tar")])
    one, two = found
    assert one[0] == str(tmp_path / "one" / "pictures")
    # Names in a list are those of files below the working directory.
    assert one[1] == f"{tmp_path}/one/list.txt in {tmp_path}/one"
    assert one[2] == f"- in {tmp_path}/one"
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, False, False, True]


def test_a_link_back_to_its_own_folder_is_not_followed(tmp_path, coffee):
    (tmp_path / "a.png").write_bytes(coffee.read_bytes())
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(items(tmp_path)) == 1


def test_a_list_names_one_path_a_line(tmp_path, coffee, chelsea):
    paths = tmp_path / "pictures.txt"
    paths.write_text(f"{coffee}\n\n{chelsea}\n", encoding="utf-8")
    assert [item.image for item in items(paths)] == [coffee, chelsea]


def test_a_list_may_come_from_any_editor(tmp_path, coffee, chelsea):
    paths = tmp_path / "pictures.txt"
    paths.write_bytes(f"\ufeff{coffee}\r\n\r\n{chelsea}\r\n".encode())
    assert [item.image for item in items(paths)] == [coffee, chelsea]
    paths.write_bytes(f"\n\n{coffee}\n{chelsea}".encode())
    assert [item.image for item in items(paths)] == [coffee, chelsea]


@pytest.mark.parametrize("order", ["le", "be"])
def test_a_list_may_be_utf_16_as_windows_writes_it(tmp_path, coffee, monkeypatch, order):
    picture = tmp_path / "caf\xe9 \u2028.png"
    picture.write_bytes(coffee.read_bytes())
    data = f"\ufeff{coffee}\r\n  \r\n{picture}\r\n".encode(f"utf-16-{order}")
    paths = tmp_path / "pictures.txt"
    paths.write_bytes(data)
    assert [item.image for item in items(paths)] == [coffee, picture]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    found = open_source("-", ordered=True).items()
    assert [item.image for item in found] == [coffee, picture]
    paths.write_bytes(data + b"x")
    with pytest.raises(SourceError, match=r"pictures\.txt begins as UTF-16 and is none"):
        list(open_source(str(paths), ordered=True).items())


def test_a_name_that_is_no_utf8_is_written_so_that_it_can_be_opened(tmp_path, coffee):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(coffee.read_bytes())
    paths = tmp_path / "pictures.txt"
    paths.write_bytes(os.fsencode(path) + b"\n")
    expected = f"file://{tmp_path}/caf%E9.png"
    assert [(item.name, item.image) for item in items(tmp_path)] == [(expected, path)]
    assert [(item.name, item.image) for item in items(paths)] == [(expected, path)]
    paths.write_text(f"{expected}\n  \n\n", encoding="utf-8")
    assert [(item.name, item.image) for item in items(paths)] == [(expected, path)]


def test_standard_input_is_a_list_of_unknown_length(monkeypatch, coffee):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{coffee}\n".encode())))
    source = open_source("-", ordered=True)
    assert source.count() is None
    assert Joined([source]).count() is None
    assert [item.image for item in source.items()] == [coffee]


def test_a_shard_holds_pictures_and_their_classes_by_key(tmp_path, coffee, chelsea):
    shard = tmp_path / "shard-000.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "._001.png", b"a companion file of some systems")
        add(tar, "001.cls", b"504")
        add(tar, "001.png", coffee.read_bytes())
        add(tar, "001.json", b"{}")
        add(tar, "002.png", chelsea.read_bytes())
        add(tar, "002.cls", b" tabby\n")
        add(tar, "cups/003.seg.png", coffee.read_bytes())
        add(tar, "cups/003.png", coffee.read_bytes())
    assert [(item.name, item.image, item.label) for item in items(shard)] == [
        (f"{shard}#001.png", coffee.read_bytes(), "504"),
        (f"{shard}#002.png", chelsea.read_bytes(), "tabby"),
        (f"{shard}#cups/003.png", coffee.read_bytes(), "cups"),
    ]


def test_names_with_dots_in_a_shard_are_pictures_where_no_other_is(tmp_path, coffee):
    data = coffee.read_bytes()
    shard = tmp_path / "holiday.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("2023.05.01.png", "2023.05.02.PNG", "2023.05.02.cls", "IMG.v2.png"):
            add(tar, f"holiday/{name}", b"7" if name.endswith("cls") else data)
        # One with several files: what is a picture by the first dot hides the others.
        for name in ("004.depth.png", "004.seg.png", "004.png", "004.json"):
            add(tar, name, data)
        add(tar, "005.seg.png", data)
        add(tar, "notes.txt", b"")
        add(tar, "LICENSE", b"")
    passed = Passed()
    found = items(shard, passed=passed)
    assert [(item.name.partition("#")[2], item.label) for item in found] == [
        ("holiday/2023.05.01.png", "holiday"),
        ("holiday/2023.05.02.PNG", "7"),
        ("holiday/IMG.v2.png", "holiday"),
        ("004.png", ""),
        ("005.seg.png", ""),
    ]
    assert passed.counts == {
        ".depth.png": 1,
        ".seg.png": 1,
        ".json": 1,
        ".txt": 1,
        "without a suffix": 1,
    }
    assert passed.first[".seg.png"] == "004.seg.png"


def test_what_is_hidden_in_a_shard_is_passed_over(tmp_path, coffee):
    shard = tmp_path / "mac.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("./a.png", "./._a.png", "__MACOSX/a.png", ".cache/b.png"):
            add(tar, name, coffee.read_bytes())
    passed = Passed()
    assert [item.name for item in items(shard, passed=passed)] == [f"{shard}#./a.png"]
    assert passed.counts == {"hidden": 3}
    assert len(items(shard, hidden=True)) == 4


def test_links_in_a_shard_are_passed_over_and_counted(tmp_path, coffee):
    shard = tmp_path / "links.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "cats/a.png", coffee.read_bytes())
        for name, kind in (
            *(("cats", tarfile.DIRTYPE), ("cats/b.png", tarfile.LNKTYPE)),
            *(("cats/c.png", tarfile.SYMTYPE), ("cats/d.png", tarfile.FIFOTYPE)),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "cats/a.png"
            tar.addfile(member)
    passed = Passed()
    assert [item.name for item in items(shard, passed=passed)] == [f"{shard}#cats/a.png"]
    assert passed.counts == {"that are no plain files": 3}
    assert passed.first == {"that are no plain files": "cats/b.png"}


def test_a_shard_of_no_bytes_is_told_in_a_line(tmp_path):
    (tmp_path / "empty.tar").touch()
    with pytest.raises(SourceError) as caught:
        list(open_source(str(tmp_path / "empty.tar"), ordered=True).items())
    assert str(caught.value).endswith("cannot be read: file could not be opened successfully")


def test_a_compressed_shard_that_is_damaged_says_so(tmp_path):
    shard = tmp_path / "shard.tar.gz"
    with tarfile.open(shard, "w:gz") as tar:
        add(tar, "001.png", bytes(range(256)) * 4000)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) // 2)
    shard.write_bytes(data)
    with pytest.raises(SourceError, match="the tar file cannot be read"):
        list(open_source(str(shard), ordered=True).items())


def test_a_shard_that_breaks_off_says_so(tmp_path, coffee):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "001.png", coffee.read_bytes())
        add(tar, "002.png", coffee.read_bytes())
    shard.write_bytes(shard.read_bytes()[: coffee.stat().st_size + 5000])
    with pytest.raises(SourceError, match=r"shard\.tar: the tar file cannot be read"):
        list(open_source(str(shard), ordered=True).items())


# Memory is traced in a process of its own: a thread of another test would be counted as well.
PEAK = """
import sys, tracemalloc
from foveate_client.batch.sources import open_source
tracemalloc.start()
count = sum(1 for _ in open_source(sys.argv[1], ordered=True).items())
print(count, tracemalloc.get_traced_memory()[1])
"""


def test_reading_a_long_shard_takes_no_more_memory_than_a_short_one(tmp_path):
    def peak(count):
        shard = tmp_path / f"{count}.tar"
        with tarfile.open(shard, "w") as tar:
            for number in range(count):
                add(tar, f"{number:06}.png", b"x" * 100)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(shard)], capture_output=True, text=True, check=True
        )
        read, most = done.stdout.split()
        assert int(read) == count
        return int(most)

    assert peak(2000) < peak(200) + 50_000


@pytest.mark.parametrize("nested", [True, False])
def test_a_table_holds_files_in_a_column(tmp_path, coffee, chelsea, nested):
    pictures = [coffee.read_bytes(), chelsea.read_bytes()]
    column = [{"bytes": x, "path": None} for x in pictures] if nested else pictures
    table = tmp_path / "pictures.parquet"
    pq.write_table(pa.table({"photo": column, "label": [504, 281], "size": [1, 2]}), table)
    assert [(item.name, item.image, item.label) for item in items(table)] == [
        (f"{table}#0", pictures[0], "504"),
        (f"{table}#1", pictures[1], "281"),
    ]
    named = items(table, image_column="photo", label_column="size")
    assert [item.label for item in named] == ["1", "2"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [b"x"], "b": [b"y"]}, {}, "--image-column; of bytes are: a, b"),
        ({"a": [1]}, {}, "of bytes are: none"),
        ({"a": [1]}, {"image_column": "a"}, "column 'a' is int64, not bytes"),
        ({"a": [b"x"]}, {"image_column": "b"}, "has no column 'b'; it has a"),
        ({"a": [b"x"]}, {"label_column": "b"}, "has no column 'b'; it has a"),
    ],
)
def test_a_table_of_anything_else_says_what_it_lacks(tmp_path, columns, options, message):
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), table)
    with pytest.raises(SourceError, match=message):
        list(open_source(str(table), ordered=True, **options).items())


def test_a_file_that_is_no_table_says_so(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="is no Parquet file"):
        open_source(str(tmp_path / "a.parquet"), ordered=True).count()


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"there is no .*missing"):
        open_source(str(tmp_path / "missing"), ordered=True)
