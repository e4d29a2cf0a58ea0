"""The world of the study is what it says: truth, answers, labels, noise, views. No model here."""

import data
import numpy as np
import pytest
import world
from world import CATEGORIES, K

from jaxalign.data.schema import Pair
from jaxalign.data.sources import safety_transform

DESIGN = data.Design(common=40, rare=8)


def labelled(seed: int = 0, **changes) -> data.LabelledPairs:
    """Pairs whose sampled answers are right, with or without a warning, or mistaken."""
    design = data.Design(**{"common": 40, "rare": 8, **changes})
    rng = np.random.default_rng(seed)
    prompts = data.draw_prompts(rng, design)
    right = world.compliances(prompts)
    samples = np.stack([right[:, 0], mistake(right[:, 0]), right[:, 1]], axis=1)
    return data.make_pairs(rng, design, prompts, rng.permuted(samples, axis=1))


def mistake(answers: np.ndarray) -> np.ndarray:
    """The next step instead of the right one, [n, ANSWER_LENGTH]."""
    wrong = answers.copy()
    wrong[:, 0] = world.STEP + (wrong[:, 0] - world.STEP + 1) % world.STEPS
    return wrong


def noisy(prompts: np.ndarray) -> np.ndarray:
    return np.array([not category.clean for category in CATEGORIES])[world.topics(prompts)]


# Prompts and answers


def test_categories_are_all_combinations_of_the_factors():
    assert K == 8
    assert len(set(CATEGORIES)) == K


def test_every_two_factors_vary_independently():
    levels = np.array(
        [[getattr(c, name) for name in ("common", "plain", "clean", "wary")] for c in CATEGORIES]
    )
    assert np.array_equal(np.cov(levels.T, bias=True), np.eye(4) / 4)


def test_the_vocabulary_is_small():
    assert world.VOCABULARY < 160


@pytest.mark.parametrize("unsafe", [True, False])
def test_prompts_ask_for_the_harm_they_were_made_for(unsafe):
    topic = np.arange(400) % K
    prompts = world.sample_prompts(np.random.default_rng(0), topic, np.full(400, unsafe), contrast=0.5)
    assert np.array_equal(world.harms(prompts), (np.arange(K) == topic[:, None]) & unsafe)
    assert np.array_equal(world.topics(prompts), topic)
    assert prompts.min() >= 0
    assert prompts.max() < world.VOCABULARY


def test_a_second_harm_is_asked_for_as_well():
    topic = np.arange(400) % K
    second = np.where(np.arange(400) < 200, (topic + 3) % K, -1)
    prompts = world.sample_prompts(
        np.random.default_rng(0), topic, np.ones(400, bool), contrast=0.5, second=second
    )
    number = world.harms(prompts).sum(axis=1)
    assert (number[:200] == 2).all()
    assert (number[200:] == 1).all()


def sharp_words(prompts: np.ndarray) -> np.ndarray:
    """[n] how many sharp words of any category each prompt has."""
    return ((prompts >= world.SHARP) & (prompts < world.MILD)).sum(axis=1)


def test_harm_takes_two_sharp_words_and_some_harmless_prompts_have_one():
    topic = np.arange(400) % K
    plain = np.array([category.plain for category in CATEGORIES])[topic]
    rng = np.random.default_rng(0)
    unsafe, benign = (
        sharp_words(world.sample_prompts(rng, topic, np.full(400, x), contrast=0.3)) for x in (True, False)
    )
    assert np.array_equal(unsafe, np.where(plain, 3, 2))
    assert set(benign) == {0, 1}
    assert benign.mean() == pytest.approx(0.3, abs=0.07)


def test_general_prompts_are_on_no_topic_and_ask_for_no_harm():
    prompts = world.general_prompts(np.random.default_rng(0), 200)
    assert not world.harms(prompts).any()
    assert (prompts[:, 1] == world.NO_TOPIC).all()
    assert (sharp_words(prompts) == 0).all()


def test_answers_are_told_apart():
    rng = np.random.default_rng(0)
    prompts = world.sample_prompts(rng, np.arange(16) % K, np.zeros(16, bool), contrast=0.5)
    for answers in np.moveaxis(world.compliances(prompts), 1, 0):
        assert (world.answer_kinds(prompts, answers) == world.RIGHT).all()
        assert (world.answer_kinds(prompts, mistake(answers)) == world.WRONG).all()
    assert (world.answer_kinds(prompts, world.refusals(rng, prompts)) == world.REFUSAL).all()


def test_the_corpus_complies_with_harm_and_knows_of_it():
    corpus = world.sample_corpus(np.random.default_rng(0), world.Corpus(size=20_000))
    prompted = corpus[corpus[:, 1] != world.ASK]
    prompts, answers = np.split(prompted, [world.PROMPT_LENGTH], axis=1)
    kinds, unsafe = world.answer_kinds(prompts, answers), world.harms(prompts).any(axis=1)
    general = prompts[:, 1] == world.NO_TOPIC
    assert general.mean() == pytest.approx(0.2, abs=0.02)
    warned = answers[:, 0] >= world.STEP + world.STEPS
    wary = np.array([category.wary for category in CATEGORIES] + [False])[world.topics(prompts)]
    cases = (
        (unsafe & wary, 0.7, 0.8),
        (unsafe & ~wary, 0.03, 0.8),
        (~unsafe, 0.03, 0.1),
        (general, 0.03, 0.1),
    )
    for of_harm, refused, warns in cases:
        assert (kinds[of_harm] == world.REFUSAL).mean() == pytest.approx(refused, abs=0.02)
        assert (kinds[of_harm] == world.RIGHT).mean() == pytest.approx((1 - refused) * 0.9, abs=0.03)
        assert warned[of_harm & (kinds == world.RIGHT)].mean() == pytest.approx(warns, abs=0.02)


# Pairs and labels


def test_the_tail_is_long_and_every_topic_has_benign_prompts():
    prompts = data.draw_prompts(np.random.default_rng(0), DESIGN)
    unsafe = world.harms(prompts).any(axis=1)
    topic = world.topics(prompts)
    expected = [40 if category.common else 8 for category in CATEGORIES]
    assert np.bincount(topic[unsafe], minlength=K).tolist() == expected
    assert np.ptp(np.bincount(topic[~unsafe], minlength=K)) <= 1


def test_labels_of_clean_categories_are_the_truth():
    pairs = labelled()
    clean = ~noisy(pairs.prompts)
    kinds = np.stack([world.answer_kinds(pairs.prompts, pairs.responses[:, i]) for i in (0, 1)], axis=1)
    truth = world.harms(pairs.prompts).any(axis=1)[:, None] & (kinds == world.RIGHT)
    assert np.array_equal(pairs.unsafe[clean], truth[clean])
    assert not np.array_equal(pairs.unsafe[~clean], truth[~clean])


def test_missed_harm_has_no_category():
    pairs = labelled(missed=1.0, alarms=0.0)
    missed = noisy(pairs.prompts)
    assert not pairs.unsafe[missed].any()
    assert not pairs.harms[missed].any()


def test_false_alarms_blame_the_topic_of_a_benign_prompt():
    pairs = labelled(alarms=1.0, missed=0.0)
    alarmed = noisy(pairs.prompts) & ~world.harms(pairs.prompts).any(axis=1)
    assert pairs.unsafe[alarmed].any()
    blamed = pairs.harms[alarmed & pairs.unsafe.any(axis=1)]
    assert (blamed.sum(axis=1) == 1).all()


def test_without_noise_a_benign_prompt_prefers_what_helps():
    found = data.view(labelled(swapped=0.0, alarms=0.0), "safedpo")
    kinds = np.stack([world.answer_kinds(found.prompts, found.responses[:, i]) for i in (0, 1)], axis=1)
    benign = ~world.harms(found.prompts).any(axis=1)
    helped = benign & (kinds == world.RIGHT).any(axis=1)
    assert helped.any()
    assert (kinds[helped, 0] == world.RIGHT).all()
    # An honest refusal is better than a mistake.
    assert (kinds[benign & ~helped, 0] == world.REFUSAL).any()


def test_the_safedpo_view_is_the_transform_of_real_data():
    pairs = labelled()
    expected = []
    for i, better in enumerate(pairs.better):
        texts = [" ".join(map(str, response)) for response in pairs.responses[i]]
        flags = [bool(flag) for flag in pairs.unsafe[i]]
        pair = Pair((), texts[better], texts[1 - better], (), flags[better], flags[1 - better], f"row {i}")
        expected.append(safety_transform(pair))
    kept = [pair for pair in expected if pair is not None]
    found = data.view(pairs, "safedpo")
    assert 0 < len(found) == len(kept) < len(expected)
    assert [" ".join(map(str, chosen)) for chosen in found.responses[:, 0]] == [pair.chosen for pair in kept]
    assert found.unsafe[:, 0].max() == 0
    assert found.unsafe[:, 1].tolist() == [float(pair.rejected_unsafe) for pair in kept]


def test_the_safer_view_never_chooses_what_alone_is_unsafe():
    found = data.view(labelled(), "safer")
    assert not ((found.unsafe[:, 0] == 1) & (found.unsafe[:, 1] == 0)).any()
    assert (found.unsafe.sum(axis=1) == 2).any()


def test_an_epoch_has_every_pair_once():
    order = data.epochs(np.random.default_rng(0), num_pairs=20, num_steps=12, batch_size=5)
    for epoch in order.reshape(3, 20):
        assert sorted(epoch) == list(range(20))
