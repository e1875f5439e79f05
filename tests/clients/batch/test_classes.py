import pytest

from foveate_client.batch.classes import Classes, LabelsFileError, read_names
from foveate_runtime.evaluation.labelled import Targets, wordnet_ids

LABELS = ("tench, Tinca tinca", "crane", "black swan", "crane")


@pytest.mark.parametrize(
    ("text", "class_id"),
    [
        ("tench, Tinca tinca", 0),
        ("tench", 0),
        ("tinca_tinca", 0),
        ("Black_Swan", 2),
        ("3", 3),
        ("crane", None),
        ("4", None),
        ("-1", None),
        ("swan", None),
        ("", None),
    ],
)
def test_a_class_is_found_by_what_people_call_it(text, class_id):
    assert Classes(LABELS).find(text) == class_id


def test_both_commands_find_the_same_classes():
    labels = [f"class {number}" for number in range(998)]
    labels = ["tench, Tinca tinca", "Gold_Fish", *labels]
    ids = wordnet_ids(len(labels))
    assert wordnet_ids(999) == ()
    batch, evaluate = Classes(labels, wordnet_ids=ids), Targets(labels)
    for name, class_id in {
        "n01440764": 0, "n15075141": 999, "n00000000": None, "tench": 0, "GOLD fish": 1,
        "tinca_Tinca": 0, "7": 7, "1000": None, "class": None,
    }.items():  # fmt: skip
        assert batch.find(name) == evaluate.find(name) == class_id


def test_a_digit_is_a_label_before_it_is_an_id():
    assert Classes(("9", "8", "7")).find("7") == 2


def test_names_of_a_file_come_first(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text('folder,class\nn01440764,tench\n3,"tench, Tinca tinca"\nbird,1\n')
    names = read_names(file, LABELS)
    assert names == {"n01440764": 0, "3": 0, "bird": 1}
    classes = Classes(LABELS, names)
    assert [classes.find(x) for x in ("n01440764", "3", "black swan")] == [0, 0, 2]


def test_a_file_of_labels_may_come_from_any_editor(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_bytes("\ufefffolder,class\r\n\r\nbird,1\r\nbird,1\r\n".encode())
    assert read_names(file, LABELS) == {"bird": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,crane\n", "line 1: 'crane' is no single class"),
        ("folder,class\na,1\nb,17\n", "line 3: '17' is no single class"),
        ("a,b,c\n", "line 1: has 3 columns; the limit is 2"),
        ("a,1\nb,2\na,2\n", "line 3: 'a' stands for another class above"),
    ],
)
def test_a_file_with_a_mistake_names_the_line(tmp_path, text, message):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(LabelsFileError, match=message):
        read_names(file, LABELS)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LabelsFileError, match=r"missing\.csv: cannot be read"):
        read_names(tmp_path / "missing.csv", LABELS)


def test_a_file_that_is_no_csv_is_named(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text('"' + 200_000 * "x", encoding="utf-8")
    with pytest.raises(LabelsFileError, match=r"labels\.csv: cannot be read as a CSV file"):
        read_names(file, LABELS)
