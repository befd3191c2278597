import pytest

from groundup.compression.settings import BASELINES, CompressSettings, parse_method


def test_methods_have_a_share_where_they_need_one():
    assert parse_method("magnitude-50") == ("magnitude", 0.5) and parse_method("2:4") == ("2:4", 0.0)
    assert parse_method("kv-int8") == ("kv-int8", 0.0) and parse_method("shallow-25") == ("shallow", 0.25)
    names = CompressSettings(methods=("int8", "fp32")).names
    assert names == (*BASELINES, "int8")


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("int", "did you mean 'int8'"),
        ("magnitude", "magnitude-50"),
        ("narrow-0", "narrow-50"),
        ("int8-50", "there are"),
    ],
)
def test_wrong_methods_are_named(method, match):
    with pytest.raises(ValueError, match=match):
        CompressSettings(methods=(method,))


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="rounds=0"):
        CompressSettings(rounds=0)
    with pytest.raises(ValueError, match="named twice"):
        CompressSettings(methods=("int8", "int8"))
