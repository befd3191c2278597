import random

import pytest

from groundup.inference import pages as module
from groundup.inference.pages import Pages


def fill(pages, ids, salt=""):
    """What a request does: take up what is known, compute the rest, make its full pages known."""
    size = pages.page_size
    blocks = pages.match(ids, salt, (len(ids) - 1) // size)
    pages.hold(blocks)
    held, keys = [b.page for b in blocks], [b.key for b in blocks]
    while len(held) * size < len(ids):
        page = pages.take()
        assert page is not None
        held.append(page)
    for i in range(len(keys), len(ids) // size):
        keys.append(pages.register(held[i], keys[-1] if keys else salt, tuple(ids[i * size : (i + 1) * size])))
    return held, len(blocks)


def test_the_picture_of_the_module():
    pages = Pages(8, 4)
    a, _ = fill(pages, [7, 2, 9, 9, 1, 5, 8, 3, 6])
    b, found = fill(pages, [7, 2, 9, 9, 1, 5, 8, 4, 2, 2])
    assert found == 1 and a[0] == b[0] and len({*a, *b}) == 5
    assert (pages.used, pages.cached, pages.available) == (5, 0, 3)
    assert pages.references[a[0]] == 2
    pages.release(a)
    assert (pages.used, pages.cached, pages.available) == (3, 1, 5)  # a's second page is full and known, its third not
    pages.release(b)
    assert (pages.used, pages.cached, pages.available) == (0, 3, 8)
    assert set(pages.references) == {0}


def test_the_last_token_is_left_to_compute():
    pages = Pages(4, 4)
    held, _ = fill(pages, [1, 2, 3, 4])
    pages.release(held)
    assert fill(pages, [1, 2, 3, 4])[1] == 0
    assert fill(pages, [1, 2, 3, 4, 5])[1] == 1


def test_salts_keep_users_apart():
    pages = Pages(8, 2)
    fill(pages, [1, 2, 3], "ada")
    assert fill(pages, [1, 2, 3], "bob")[1] == 0
    assert fill(pages, [1, 2, 3], "ada")[1] == 1


def test_equal_tokens_after_other_beginnings_are_other_blocks():
    pages = Pages(8, 2)
    fill(pages, [1, 1, 5, 5, 0])
    assert fill(pages, [2, 2, 5, 5, 0])[1] == 0


def test_equal_hashes_show_nobody_the_text_of_others(monkeypatch):
    monkeypatch.setattr(module, "block_hash", lambda parent, tokens: 0)
    pages, rng = Pages(40, 2), random.Random(0)
    known = set()
    for _ in range(200):
        ids = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        held, found = fill(pages, ids)
        assert all(tuple(ids[: 2 * (i + 1)]) in known for i in range(found))
        known |= {tuple(ids[: 2 * (i + 1)]) for i in range(len(ids) // 2)}
        pages.release(held)
    assert pages.available == 40


def test_the_page_used_longest_ago_goes_first_and_ends_before_beginnings():
    pages = Pages(4, 2)
    for ids in ([1, 1, 2, 2], [3, 3, 4, 4]):
        pages.release(fill(pages, ids)[0])
    assert pages.cached == 4
    one = pages.take()
    assert len(pages.match([1, 1, 2, 2, 9], "", 2)) == 1 and len(pages.match([3, 3, 4, 4, 9], "", 2)) == 2
    two = pages.take()
    assert not pages.match([1, 1, 2, 2, 9], "", 2) and one != two
    assert pages.take() is not None and pages.take() is not None and pages.take() is None


def test_a_page_given_away_is_no_predecessor_any_more():
    """Its blocks' successors stay known for a while; a new block in the same page must not be taken for it."""
    pages = Pages(2, 2)
    first = fill(pages, [1, 1, 2, 2])[0]
    pages.release(first[:1])  # the beginning alone is free
    taken = pages.take()
    assert taken == first[0]
    pages.register(taken, "", (8, 8))
    assert len(pages.match([8, 8, 2, 2, 9], "", 2)) == 1 and not pages.match([1, 1, 2, 2, 9], "", 2)


def test_what_failed_is_not_kept():
    pages = Pages(4, 2)
    shared, _ = fill(pages, [1, 1, 5])
    failed, _ = fill(pages, [1, 1, 2, 2, 3])
    assert set(pages.release(failed, keep=False)) == set(failed[1:])  # another request holds the first
    assert len(pages.match([1, 1, 2, 2, 9], "", 2)) == 1
    pages.release(shared, keep=False)
    assert pages.cached == 0 and pages.available == 4 and not pages.match([1, 1, 9], "", 1)


def test_two_that_compute_the_same_at_once_make_one_block():
    pages = Pages(4, 2)
    a, b = pages.take(), pages.take()
    assert a is not None and b is not None
    assert pages.register(a, "", (1, 2)) == pages.register(b, "", (1, 2))
    assert [block.page for block in pages.match([1, 2, 3], "", 1)] == [a]
    pages.release([b])
    assert pages.cached == 0
    pages.release([a])
    assert pages.cached == 1


def test_without_sharing_and_after_forgetting_nothing_is_known():
    for pages in (Pages(4, 2, share=False), Pages(4, 2)):
        pages.release(fill(pages, [1, 1, 2])[0])
        pages.forget_all()
        assert pages.cached == 0 and pages.available == 4 and fill(pages, [1, 1, 2])[1] == 0


def test_holding_twice_and_giving_up_too_often():
    pages = Pages(1, 2)
    page = pages.take()
    assert page is not None
    pages.release([page])
    with pytest.raises(AssertionError, match="held by nobody"):
        pages.release([page])
    with pytest.raises(ValueError, match="at least one"):
        Pages(0)
