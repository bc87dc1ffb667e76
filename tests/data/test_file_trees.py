"""Which files a corpus consists of, in which order; compressed files and archives."""

import gzip
import hashlib
import io
import lzma
import tarfile

import pytest
import zstandard

from mmrec_jax.config import DataConfig
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.errors import UserError

COMPRESS = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.compress,
}
FILES = {
    "z.txt": "last by name",
    "a/one.py": "1" * 30_000,
    "a/two.py": "two",
    "a/deep/three.py": "üç" * 5_000,
    "b/four.md": "four",
    "b/.hidden.py": "no",
    ".git/config": "no",
}


def documents(path, **values) -> list[str]:
    """The documents of a corpus, in order."""
    (part,) = open_corpus(DataConfig(source="text", path=str(path), **values)).parts
    found = []
    for text, begins in part.pieces():
        if begins:
            found.append("")
        found[-1] += text
    return found


def refusal(path, **values) -> str:
    with pytest.raises(UserError) as error:
        documents(path, **values)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tree"


def tar(files=FILES, prefix="") -> bytes:
    """An archive of the files in their order, and of what is not a file."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, kind in (("a", tarfile.DIRTYPE), ("link.py", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(prefix + name)
            info.type, info.linkname = kind, "a/two.py"
            archive.addfile(info)
        for name, text in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return data.getvalue()


def test_names_sizes_and_folders_select_files(folder):
    every = ["a/deep/three.py", "a/one.py", "a/two.py", "b/four.md", "z.txt"]

    def texts(*names):
        return [FILES[name] for name in names]

    assert documents(folder) == texts(*every)
    assert documents(folder, files="*.py") == texts(*every[:3])
    assert documents(folder, files="*.md, *.txt") == texts(*every[3:])
    assert documents(folder, exclude="deep,z*") == texts(*every[1:4])
    assert documents(folder, exclude="a/*") == texts(*every[3:])
    assert documents(folder, exclude="*.py,/b/*") == texts(*every[3:])
    assert documents(folder, min_file_bytes=13) == texts(*every[:2])
    assert documents(folder, min_file_bytes=20_001) == texts("a/one.py")
    assert documents(f"{folder}/*/*", exclude="a/o*") == texts("a/two.py", "b/four.md")
    message = refusal(folder, files="*.c", min_file_bytes=5)
    assert "with data.files='*.c', data.min_file_bytes=5 matches no files" in message


def test_the_files_of_a_folder_can_be_one_document(folder):
    deep, one, two, four, last = documents(folder)
    assert documents(folder, join="folder") == [last, one + two, deep, four]


def test_empty_files_are_left_out_unless_they_are_named(folder):
    (folder / "a/deep/three.py").write_text("")
    one, two = FILES["a/one.py"], FILES["a/two.py"]
    assert documents(folder / "a") == [one, two]
    assert documents(folder / "a", join="folder") == [one + two]
    message = refusal(f"{folder}/a/**/*.py")
    assert "three.py is empty; leave it out with data.exclude" in message
    (folder.parent / "a.tar").write_bytes(tar({"x": "", "y": "y"}))
    assert documents(folder.parent / "a.tar") == ["y"]


def test_shuffled_documents_are_in_the_order_of_hashes_wherever_the_folder_is(folder, tmp_path):
    names = [name for name in FILES if "/." not in f"/{name}"]

    def place(name):
        return hashlib.blake2b(name.encode(), digest_size=8).digest()

    expected = [FILES[name] for name in sorted(names, key=place)]
    assert expected != documents(folder)
    assert documents(folder, shuffle_documents=True) == expected
    folder.rename(tmp_path / "moved")
    assert documents(tmp_path / "moved", shuffle_documents=True) == expected
    (tmp_path / "tree.tar").write_bytes(tar(prefix="./"))
    assert documents(tmp_path / "tree.tar", shuffle_documents=True) == expected
    one, two = FILES["a/one.py"], FILES["a/two.py"]
    joined = {".": FILES["z.txt"], "a": one + two, "a/deep": FILES["a/deep/three.py"]}
    joined["b"] = FILES["b/four.md"]
    expected = [joined[name] for name in sorted(joined, key=place)]
    assert documents(tmp_path / "moved", shuffle_documents=True, join="folder") == expected


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_archive_is_read_as_a_folder(tmp_path, suffix):
    path = tmp_path / f"tree{suffix}"
    path.write_bytes(COMPRESS[suffix](tar()))
    order = [FILES[name] for name in FILES if "/." not in f"/{name}"]
    if suffix == ".tar":  # has an index
        order = [order[i] for i in (3, 1, 2, 4, 0)]
    assert documents(path) == order
    assert documents(path, files="*.py", exclude="deep") == [FILES["a/one.py"], FILES["a/two.py"]]
    assert documents(path, min_file_bytes=20_001) == [FILES["a/one.py"]]
    assert documents(path, join="folder", files="*.py", exclude="deep") == [
        FILES["a/one.py"] + FILES["a/two.py"]
    ]
    assert "matches no files" in refusal(path, files="*.c")
    if suffix != ".tar":
        assert "can only be read in its order" in refusal(path, shuffle_documents=True)


def test_several_archives_and_files_are_one_corpus(tmp_path):
    (tmp_path / "b.tar.xz").write_bytes(lzma.compress(tar({"x": "b"})))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar({"x": "a"})))
    (tmp_path / "c.tar").write_bytes(tar({"x.xz": "c"}).replace(b"c\0", b"c\0"))
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(b"d"))
    assert documents(f"{tmp_path}/[abd]*") == ["d", "a", "b"]
    message = refusal(f"{tmp_path}/c*")
    assert f"cannot read {tmp_path}/c.tar: x.xz: " in message
    assert "is a binary file" in refusal(tmp_path, files="*.tar")  # a folder names no archive


def test_json_lines_are_read_from_an_archive(tmp_path):
    files = {"a/x.jsonl": '{"text": "one"}\n{"text": "two"}\n', "readme.md": "no JSON"}
    (tmp_path / "lines.tgz").write_bytes(gzip.compress(tar(files)))
    data = DataConfig(source="jsonl", path=str(tmp_path / "lines.tgz"))
    (part,) = open_corpus(data).parts
    assert list(part.pieces()) == [("one", True), ("two", True)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, suffix):
    path = tmp_path / f"tree{suffix}"
    raw = tar()
    whole = COMPRESS[suffix](raw)
    ends = [0, 1, len(whole) // 3, len(whole) - 5] if suffix != ".tar" else []
    for end in ends:
        path.write_bytes(whole[:end])
        assert f"cannot read {path}" in refusal(path)
    # The archive itself is cut: in a header, between two files, in a file.
    contents = raw.rstrip(b"\0")
    for end in (100, 1024, 1200, 1536 + 600, len(contents) // 512 * 512):
        path.write_bytes(COMPRESS[suffix](raw[:end]))
        assert f"cannot read {path}" in refusal(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_damaged_archive_is_refused(tmp_path, suffix):
    path = tmp_path / f"tree{suffix}"
    raw = bytearray(tar())
    raw[2 * 512 + 512 + 512 + 10] ^= 1  # in the name of the second file: its checksum fails
    path.write_bytes(COMPRESS[suffix](bytes(raw)))
    message = refusal(path)
    assert f"cannot read {path}: the archive is truncated or damaged (bad checksum)" in message
    path.write_bytes(b"no archive" * 1000)
    assert f"cannot read {path}" in refusal(path)


def test_a_file_in_an_archive_that_is_not_text_is_named(tmp_path):
    files = {"good.py": "a", "bad.py": "b"}
    path = tmp_path / "tree.tar.xz"
    path.write_bytes(lzma.compress(tar(files).replace(b"b\0\0", b"\xff\0\0")))
    message = refusal(path)
    assert "tree.tar.xz: bad.py is not UTF-8 text: byte 0 (line 1) is 0xff" in message
    assert "data.exclude" in message
    assert documents(path, exclude="bad.py") == ["a"]
