"""Files that are whole or not there."""

import json
import math

import pytest

from jaxalign.files import replacing, write_json, write_whole


@pytest.mark.parametrize(
    ("content", "written"), [("größer\n", "größer\n".encode()), (b"\xff\x00", b"\xff\x00")]
)
def test_text_and_bytes_arrive_as_they_are_in_folders_made_for_them(tmp_path, content, written):
    path = tmp_path / "a" / "b"
    write_whole(path, content)
    assert path.read_bytes() == written
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_file_that_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fill_the_disk():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_has_no_word_for_become_null(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1.5, math.inf], "b": (math.nan, {"c": -math.inf})})
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": [None, {"c": None}]}
