import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveate_client.batch.sources import Joined, SourceError, open_source


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
    for name in ("a.JPG", "b.txt", "c.png.part", "d.webp"):
        (tmp_path / name).write_bytes(coffee.read_bytes())
    assert [Path(item.name).name for item in items(tmp_path)] == ["a.JPG", "d.webp"]


def test_a_link_back_to_its_own_folder_is_not_followed(tmp_path, coffee):
    (tmp_path / "a.png").write_bytes(coffee.read_bytes())
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(items(tmp_path)) == 1


def test_a_list_names_one_path_a_line(tmp_path, coffee, chelsea):
    paths = tmp_path / "pictures.txt"
    paths.write_text(f"{coffee}\n\n{chelsea}\n", encoding="utf-8")
    assert [item.image for item in items(paths)] == [coffee, chelsea]


def test_a_name_that_is_no_utf8_is_escaped(tmp_path, coffee):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(coffee.read_bytes())
    paths = tmp_path / "pictures.txt"
    paths.write_bytes(os.fsencode(path) + b"\n")
    expected = f"{tmp_path}/caf\\xe9.png"
    assert [(item.name, item.image) for item in items(tmp_path)] == [(expected, path)]
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


def test_a_shard_that_breaks_off_says_so(tmp_path, coffee):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "001.png", coffee.read_bytes())
        add(tar, "002.png", coffee.read_bytes())
    shard.write_bytes(shard.read_bytes()[: coffee.stat().st_size + 5000])
    with pytest.raises(SourceError, match=r"shard\.tar: the tar file cannot be read"):
        list(open_source(str(shard), ordered=True).items())


def test_reading_a_long_shard_takes_no_more_memory_than_a_short_one(tmp_path):
    def peak(count):
        shard = tmp_path / f"{count}.tar"
        with tarfile.open(shard, "w") as tar:
            for number in range(count):
                add(tar, f"{number:06}.png", b"x" * 100)
        tracemalloc.start()
        try:
            assert sum(1 for _ in open_source(str(shard), ordered=True).items()) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

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
