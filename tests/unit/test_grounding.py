"""The two controls: what is left of a picture, who gets whose, and that nothing given is changed."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from atrl.data.frames import FrameSampler
from atrl.data.prompts import PromptBuilder
from atrl.evaluation.grounding import blanked, build_controls, swapped
from atrl.evaluation.score import Score, on_problems
from atrl.types import Frames, Problem, Prompt, Reward, Rollout, RolloutGroup, Status, Video


def picture(number: int, size: tuple[int, int] = (2, 2)) -> Image.Image:
    """One of a kind: its colour is its number."""
    return Image.new("RGB", size, (number % 256, number // 256, 7))


def problem(name: str, *images, answer: str = "1", question: str = "?") -> Problem:
    return Problem(id=name, question="<image>" * len(images) + question, answer=answer, images=images)


def numbers(problem: Problem) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in problem.images]


# --- Blanked


def test_a_blank_has_the_pictures_size_and_mean_colour():
    # Means over the four pixels: (0 + 10 + 20 + 30)/4 = 15, (0 + 0 + 0 + 255)/4 = 63.75, (1 + 1 + 1 + 2)/4 = 1.25.
    pixels = [[[0, 0, 1], [10, 0, 1]], [[20, 0, 1], [30, 255, 2]]]
    given_problem = problem("p", Image.fromarray(np.array(pixels, dtype=np.uint8)), picture(9, (5, 3)))
    (blank,) = blanked([given_problem], FrameSampler())
    assert [image.size for image in blank.images] == [(2, 2), (5, 3)]
    assert [image.getcolors() for image in blank.images] == [[(4, (15, 64, 1))], [(15, (9, 0, 7))]]
    assert (blank.id, blank.question, blank.answer) == ("p", "<image><image>?", "1")
    assert np.asarray(given_problem.images[0]).tolist() == pixels


def test_a_file_is_blanked_upright_and_transparency_is_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown upright
    Image.new("RGB", (6, 2), (10, 20, 30)).save(tmp_path / "lying.png", exif=exif)
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    written = [(tmp_path / name).read_bytes() for name in ("lying.png", "clear.png")]
    (blank,) = blanked([problem("p", tmp_path / "lying.png", tmp_path / "clear.png")], FrameSampler())
    assert [(image.size, image.getpixel((0, 0))) for image in blank.images] == [
        ((2, 6), (10, 20, 30)), ((3, 3), (255, 255, 255)),
    ]  # fmt: skip
    assert [(tmp_path / name).read_bytes() for name in ("lying.png", "clear.png")] == written


def test_a_picture_that_can_not_be_read_is_named(tmp_path):
    for control in (lambda problems: blanked(problems, FrameSampler()), lambda problems: swapped(problems, 0)):
        with pytest.raises(ValueError, match=r"problem p: image .*gone\.png is missing"):
            control([problem("p", tmp_path / "gone.png"), problem("q", picture(1))])


# --- Swapped


@given(st.integers(2, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_a_swap_deals_every_picture_out_once_and_to_no_one_its_own(count, seed):
    problems = [problem(f"p{i}", picture(i), answer=str(i)) for i in range(count)]
    swap = swapped(problems, seed)
    assert (swap.left_out, swap.same_answer) == ([], [])
    given_numbers = [numbers(changed)[0] for changed in swap.problems]
    assert sorted(given_numbers) == list(range(count))
    assert all(number != index for index, number in enumerate(given_numbers))
    assert [(changed.id, changed.question, changed.answer) for changed in swap.problems] == [
        (original.id, original.question, original.answer) for original in problems
    ]
    assert [numbers(original) for original in problems] == [[i] for i in range(count)]


def test_the_seed_decides_and_global_random_state_does_not():
    problems = [problem(f"p{i}", picture(i), answer=str(i)) for i in range(30)]
    random.seed(1)
    first = [numbers(changed) for changed in swapped(problems, 0).problems]
    random.seed(2)
    assert [numbers(changed) for changed in swapped(problems, 0).problems] == first
    assert [numbers(changed) for changed in swapped(problems, 1).problems] != first


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=7), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_as_few_as_possible_keep_their_answer(answers, seed):
    """The best of all pairings without a fixed point, by trying each."""
    problems = [problem(f"p{i}", picture(i), answer=answer) for i, answer in enumerate(answers)]
    best = min(
        sum(answers[i] == answers[j] for i, j in enumerate(order))
        for order in permutations(range(len(answers)))
        if all(i != j for i, j in enumerate(order))
    )
    swap = swapped(problems, seed)
    kept = [p.id for p in swap.problems if answers[numbers(p)[0]] == p.answer]
    assert swap.same_answer == kept
    assert len(kept) == best


@given(
    st.integers(1, 2).flatmap(
        lambda count: st.lists(
            st.tuples(st.lists(st.integers(0, 4), min_size=count, max_size=count), st.sampled_from("abc")),
            min_size=2,
            max_size=6,
        )
    ),
    st.integers(0, 3),
)
@example([([0], "b"), ([0], "a"), ([1], "b")], 28)
@settings(deadline=None, max_examples=80)
def test_no_pairing_of_few_is_better(rows, seed):
    """By trying each: as few as possible are left out, of them as few as possible keep a picture, then an answer."""

    def fault(own, other):
        (mine, answer), (theirs, others) = rows[own], rows[other]
        if sorted(mine) == sorted(theirs):
            return 1, 0, 0
        return 0, int(not set(mine).isdisjoint(theirs)), int(answer == others)

    def total(faults):
        return tuple(map(sum, zip(*faults, strict=True)))

    count = len(rows)
    best = min(total(fault(*pair) for pair in enumerate(order)) for order in permutations(range(count)))
    problems = [problem(str(i), *map(picture, shown), answer=answer) for i, (shown, answer) in enumerate(rows)]
    swap = swapped(problems, seed)
    chosen = {one.id: int(partner) for one, partner in zip(swap.problems, swap.partners, strict=True)}
    assert total(fault(i, chosen[str(i)]) if str(i) in chosen else (1, 0, 0) for i in range(count)) == best
    assert sum(fault(int(name), other)[2] for name, other in chosen.items()) == len(swap.same_answer)


def test_answers_that_differ_in_case_or_spaces_are_the_same():
    names = ("Yes", " yes", "no", "NO ")
    problems = [problem(f"p{i}", picture(i), answer=answer) for i, answer in enumerate(names)]
    swap = swapped(problems, 0)
    assert swap.same_answer == []
    assert [{0: "y", 1: "y", 2: "n", 3: "n"}[numbers(changed)[0]] for changed in swap.problems] == ["n", "n", "y", "y"]


def test_the_same_question_is_preferred_where_its_answers_differ():
    """Questions a and b have two answers each and pair up among themselves; both of c's answers are the same."""
    rows = [("a", "1"), ("b", "3"), ("c", "5"), ("a", "2"), ("b", "4"), ("c", "5")]
    problems = [problem(f"p{i}", picture(i), question=q, answer=answer) for i, (q, answer) in enumerate(rows)]
    for seed in range(20):
        swap = swapped(problems, seed)
        asked = [(rows[i][0], rows[numbers(changed)[0]][0]) for i, changed in enumerate(swap.problems)]
        assert swap.same_answer == []
        # c's two need partners elsewhere, which takes at least one pair apart; the other stays together.
        assert sum(own == other for own, other in asked) >= 2
        assert all(own != other for own, other in asked if own == "c")


def test_pictures_come_from_problems_with_as_many_and_keep_their_order_and_size():
    pairs = [(picture(2 * i, (3, 2 + i)), picture(2 * i + 1)) for i in range(3)]
    problems = [
        problem("single 0", picture(10)), *(problem(f"pair {i}", *pair) for i, pair in enumerate(pairs)),
        problem("none"), problem("single 1", picture(11)), problem("three", *map(picture, (20, 21, 22))),
    ]  # fmt: skip
    swap = swapped(problems, 0)
    assert [changed.id for changed in swap.problems] == ["single 0", "pair 0", "pair 1", "pair 2", "single 1"]
    assert swap.left_out == ["none", "three"]
    by_id = {changed.id: changed for changed in swap.problems}
    assert (numbers(by_id["single 0"]), numbers(by_id["single 1"])) == ([11], [10])
    received = [by_id[f"pair {i}"].images for i in range(3)]
    assert sorted(pairs.index(images) for images in received) == [0, 1, 2]
    assert all(received[i] is not pairs[i] for i in range(3))


def test_the_same_picture_under_another_question_is_no_partner(tmp_path):
    """Two questions of picture 0, one of them of a copy in a file; both get another's, whatever the answers say."""
    picture(0).save(tmp_path / "copy.png")
    problems = [
        problem("shape", picture(0), answer="circle"), problem("colour", tmp_path / "copy.png", answer="red"),
        problem("other", picture(1), answer="circle"), problem("last", picture(2), answer="red"),
    ]  # fmt: skip
    for seed in range(20):
        swap = swapped(problems, seed)
        assert swap.left_out == []
        assert {numbers(changed)[0] for changed in swap.problems[:2]} == {1, 2}


def test_of_several_pictures_none_stays_if_possible():
    """a and b have the same two in another order, c one of them: each gets d's, e's or f's, which have none."""
    pairs = {"a": (1, 2), "b": (2, 1), "c": (2, 3), "d": (4, 5), "e": (6, 7), "f": (8, 9)}
    problems = [problem(name, *map(picture, pair), answer=name) for name, pair in pairs.items()]
    for seed in range(20):
        swap = swapped(problems, seed)
        assert len(swap.problems) == 6
        assert all(set(numbers(one)).isdisjoint(pairs[one.id]) for one in swap.problems)
    two = swapped(problems[:2], 0)  # the same pictures in another order are no other ones
    assert two.problems == [] and two.left_out == ["a", "b"]
    three = swapped(problems[:3], 0)  # one of two that stays is better than both
    assert {one.id for one in three.problems} >= {"c"} and len(three.left_out) == 1


def test_a_problem_without_a_partner_is_left_out_and_named(tmp_path):
    assert swapped([], 0).problems == []
    assert swapped([problem("alone", picture(0))], 0).left_out == ["alone"]
    same = [problem(f"p{i}", picture(0), answer=str(i)) for i in range(3)]
    assert swapped(same, 0).left_out == ["p0", "p1", "p2"]
    # Three of one picture and one other: only one of the three can get the other's, which gets theirs.
    swap = swapped([*same, problem("other", picture(1))], 0)
    assert len(swap.left_out) == 2 and "other" not in swap.left_out
    assert {tuple(numbers(changed)) for changed in swap.problems if changed.id != "other"} == {(1,)}


# --- Prompts and scores


def test_controls_are_of_the_same_problems_and_all_fit(processor):
    """A problem that is too long with its partner's picture is left out of all three."""
    small = [problem(f"s{i}", picture(i, (280, 84)), answer=str(i)) for i in range(3)]
    large = problem("large", picture(9, (112, 112)), answer="9")
    free = PromptBuilder(processor=processor, max_prompt_tokens=1024)
    shortest, longest = (len(free.build(entry).token_ids) for entry in (small[0], large))
    assert shortest < longest
    prompts = free.build_all([*small, large, problem("none")]).prompts
    controls = build_controls(prompts, free, seed=0)
    assert [prompt.problem.id for prompt in controls.true] == ["s0", "s1", "s2", "large"]
    assert (controls.left_out, controls.same_answer) == (1, 0)

    tight = PromptBuilder(processor=processor, max_prompt_tokens=longest - 1)
    fewer = build_controls(prompts, tight, seed=0)
    assert fewer.left_out == 2
    ids = [prompt.problem.id for prompt in fewer.true]
    assert len(ids) == 3 and "large" in ids
    alike = [replace(prompt, problem=replace(prompt.problem, answer="1")) for prompt in prompts]
    assert build_controls(alike, tight, seed=0).same_answer == 3  # those in the lists, not the one left out
    for found in (controls, fewer):
        names = [prompt.problem.id for prompt in found.true]
        assert [prompt.problem.id for prompt in found.blank] == names
        assert [prompt.problem.id for prompt in found.swapped] == names
        for true, blank, other in zip(found.true, found.blank, found.swapped, strict=True):
            assert blank.token_ids == true.token_ids
            assert blank.key == other.key == true.key  # and so their random numbers
            assert other.images[0].getpixel((0, 0)) != true.images[0].getpixel((0, 0))


def test_a_score_of_some_of_its_problems():
    verdicts = {"a": "right", "b": "wrong", "c": "right", "d": "truncated"}
    groups = [
        RolloutGroup(Prompt(problem(name), [1], {}, (), [1]), [Rollout([1], [0.0], True)], [""], policy_version=0)
        for name in verdicts
    ]
    rewards = [[Reward(0.0, {}, Status(verdict))] for verdict in verdicts.values()]
    whole = Score(0.5, (0.0, 1.0), 4, {}, groups, rewards, {})
    part = on_problems(whole, {"a", "c", "d"})
    assert (part.accuracy, part.samples) == (pytest.approx(2 / 3), 3)
    assert part.statuses == {"right": 2, "wrong": 0, "unparseable": 0, "truncated": 1}
    assert part.groups == [groups[0], groups[2], groups[3]]
    with pytest.raises(ValueError, match="none of the 4 problems that were scored is among the 1 asked for"):
        on_problems(whole, {"z"})


# Videos


def clip(*shades: int, size: tuple[int, int] = (84, 84), fps: float = 2.0) -> Video:
    return Video(tuple(picture(shade, size) for shade in shades), fps)


def test_a_blank_video_has_as_many_frames_at_the_same_times_in_one_colour():
    """The mean of frames 0, 30 and 90, which are those that are shown of four, is 40."""
    given_problem = Problem("p", "<video>?", "1", videos=(clip(0, 30, 200, 90),))
    (blank,) = blanked([given_problem], FrameSampler(count=3))
    (frames,) = blank.videos
    assert isinstance(frames, Frames) and frames.indices == (0, 1, 3) and frames.timestamps == (0.0, 0.5, 1.5)
    assert [image.getpixel((5, 7))[0] for image in frames.images] == [40] * 3
    assert {image.size for image in frames.images} == {(84, 84)} and len(frames.images[0].getcolors()) == 1
    assert (frames.total, frames.fps) == (4, 2.0)


def test_videos_are_swapped_among_problems_with_as_many_of_each_kind():
    videos = {name: clip(shade) for shade, name in enumerate("abcd", 10)}
    problems = [Problem(name, "<video>?", str(index), videos=(videos[name],)) for index, name in enumerate("abc")]
    problems += [
        Problem("both", "<image><video>?", "7", images=(picture(1),), videos=(videos["d"],)),
        problem("one", picture(2)), problem("two", picture(3), answer="2"), problem("none"),
    ]  # fmt: skip
    swap = swapped(problems, 0)
    by_id = {entry.id: entry for entry in swap.problems}
    assert sorted(swap.left_out) == ["both", "none"]
    for name in "abc":
        assert by_id[name].videos[0] is not videos[name] and by_id[name].videos[0] in videos.values()
    assert by_id["one"].images[0].getpixel((0, 0))[0] == 3 and by_id["one"].videos == ()


def test_a_partners_video_must_differ_in_content(tmp_path):
    """The same frames in another object, the same file twice, and the same bytes."""
    (tmp_path / "a.mp4").write_bytes(b"one")
    (tmp_path / "b.mp4").write_bytes(b"one")
    (tmp_path / "c.mp4").write_bytes(b"two")
    for same, other, different in (
        (clip(1, 2), clip(1, 2), clip(2, 1)),
        (Video(tmp_path / "a.mp4"), Video(tmp_path / "b.mp4"), Video(tmp_path / "c.mp4")),
        (Video(b"one"), Video(b"one"), Video(b"two")),
    ):
        problems = [Problem(str(i), "<video>?", str(i), videos=(video,)) for i, video in enumerate((same, other))]
        assert swapped(problems, 0).problems == []
        problems[1] = Problem("1", "<video>?", "1", videos=(different,))
        assert len(swapped(problems, 0).problems) == 2


def test_controls_of_videos_keep_the_prompts_length(processor):
    builder = PromptBuilder(processor=processor, frames=FrameSampler(count=4))
    problems = [Problem(str(i), "<video>?", str(i), videos=(clip(*range(i, i + 9)),)) for i in range(3)]
    controls = build_controls(builder.build_all(problems).prompts, builder, seed=0)
    assert len(controls.true) == 3
    for true, blank, other in zip(controls.true, controls.blank, controls.swapped, strict=True):
        assert blank.token_ids == true.token_ids == other.token_ids
        assert blank.videos[0].indices == true.videos[0].indices == (0, 2, 5, 8)
        values = [prompt.pixels["pixel_values_videos"] for prompt in (true, blank, other)]
        assert values[0].shape == values[1].shape and not values[0].equal(values[1]) and not values[0].equal(values[2])
        assert true.pixels["second_per_grid_ts"].equal(blank.pixels["second_per_grid_ts"])
