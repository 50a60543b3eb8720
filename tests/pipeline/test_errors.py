"""Errors: exit codes for shell scripts, and help with misspelt names."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, DataError, MustError, Stopped, error_context, mask_credentials, require_one_of


def test_must_errors_have_their_exit_codes() -> None:
    assert {kind.exit_code for kind in (ConfigError, DataError, Stopped, MustError)} == {2, 3, 75, 1}
    assert (ConfigError.exit_code, DataError.exit_code, Stopped.exit_code) == (2, 3, 75)
    assert all(issubclass(kind, MustError) for kind in (ConfigError, DataError, Stopped))


def test_require_one_of_returns_a_known_name() -> None:
    assert require_one_of("coco", ["masks", "coco"], "Kind") == "coco"


def test_require_one_of_quotes_an_unknown_name_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as caught:
        require_one_of("cocoo", ["masks", "coco"], "Kind")
    assert str(caught.value) == "Kind 'cocoo' is unknown. Did you mean 'coco'? Known: coco, masks."


def test_require_one_of_shows_the_nearest_of_many_names() -> None:
    names = [f"model_{number}" for number in range(100)]
    with pytest.raises(ConfigError, match=r"Did you mean 'model_\d+'\? Known: .* and 80 more\.") as caught:
        require_one_of("model_7x", names, "Model")
    assert "model_7," in str(caught.value)


def test_error_context_adds_the_place_and_keeps_the_class() -> None:
    with pytest.raises(DataError, match=r"^data\.pool: gone$"), error_context("data.pool"):
        raise DataError("gone")
    with pytest.raises(KeyError), error_context("data.pool"):
        raise KeyError("not ours")


def test_require_one_of_guesses_nothing_where_nothing_is_near() -> None:
    with pytest.raises(ConfigError, match=r"Kind 'zebra' is unknown\. Known: coco, masks\."):
        require_one_of("zebra", ["masks", "coco"], "Kind")
    with pytest.raises(ConfigError, match=r"Known: none\."):
        require_one_of("zebra", [], "Kind")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a.png: no such file", "https://me:***@host/a.png: no such file"),
        ("simplecache::sftp://me:p%40:w@host:22/x", "simplecache::sftp://me:***@host:22/x"),
        ("s3://KEY:SECRET/+@bucket/x", "s3://KEY:SECRET/+@bucket/x"),
        ("http://host/a?page=2&X-Amz-Signature=f00&sig=1#x", "http://host/a?page=2&X-Amz-Signature=***&sig=***#x"),
        (
            "'https://host/a?api_key=f00' and http://host?token=1",
            "'https://host/a?api_key=***' and http://host?token=***",
        ),
        ("github://org:repo@main/a", "github://org:repo@main/a"),
        ("git://repo:v1@data/a?key=train/a&author=x", "git://repo:v1@data/a?key=train/a&author=x"),
        ("https://me:p@ss@host/a#access_token=f00", "https://me:***@host/a#access_token=***"),
        ("https://ghp_0123456789abcdef01@github.com/a?pw=x&auth=y", "https://***@github.com/a?pw=***&auth=***"),
        ("sftp://someone@host/a", "sftp://someone@host/a"),
        ("https://me:${PW}@host/a?token=${TOKEN}", "https://me:${PW}@host/a?token=${TOKEN}"),
        ("s3://bucket/key=1/a:b@c", "s3://bucket/key=1/a:b@c"),
        ("me:pw@host, ?token=x", "me:pw@host, ?token=x"),
    ],
)
def test_mask_credentials_hides_passwords_in_urls_alone(text: str, shown: str) -> None:
    assert mask_credentials(text) == shown
    assert str(ConfigError(text)) == shown
