import pytest

from recurra.errors import ConfigError
from recurra.storage.url import open_store, split_s3


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("data/train", "Write s3://bucket/prefix or file:///absolute/directory"),
        ("http://host/bucket", "Write s3://bucket/prefix"),
        ("file://data/train", "Write three slashes: file:///data/train"),
        ("s3://", "3 to 63 lower-case letters"),
        ("s3://My_Bucket/x", "'My_Bucket' is no name of a bucket"),
        ("s3://bucket/a//b", "not a key"),
    ],
)
def test_an_address_that_cannot_be_meant_says_what_to_write(url, text):
    """Relative paths mean another place on every worker."""
    with pytest.raises(ConfigError, match=text):
        open_store(url)


def test_trailing_slashes_do_not_matter():
    """People copy addresses from listings."""
    assert split_s3("s3://bucket/a/b/") == ("bucket", "a/b")
    assert open_store("s3://bucket/").url == "s3://bucket"


def test_a_directory_with_a_space_goes_there_and_back(tmp_path):
    """`Store.url` is what travels to the workers, so opening it must lead to the same files."""
    store = open_store(f"file://{tmp_path}/my data")
    store.write("k", b"1")

    assert open_store(store.url).read("k") == b"1"
    assert open_store(store.child("sub").url).url == store.url + "/sub"
