"""The study's model, signals and lanes: exact rates are exact, and many runs at once are the runs one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import lanes
import methods
import model
import numpy as np
import optax
import pytest
import train
import world
from data import Design
from problem import Sizes, load_problems

from jaxalign.adaptive import CategoryStats
from jaxalign.ops.attention import plain_places
from jaxalign.training.state import init_state

K = world.K
DESIGN = Design(common=12, rare=4)
SIZES = Sizes(
    corpus=world.Corpus(size=256),
    pretrain_steps=4,
    heldout=32,
    test_per_topic=2,
    seen_per_topic=2,
    probe_per_topic=2,
)
BUDGET = train.Budget(num_steps=4, batch_size=8, probe_every=2)
WIDTH = 8  # as many lanes as the tests have devices


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return load_problems(tmp_path_factory.mktemp("problems"), [0, 1], DESIGN, SIZES, width=WIDTH)


@pytest.fixture(scope="module")
def params():
    # Far from uniform, so that a mistake in the rates shows.
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, model.DECODER.init(jax.random.key(0)))


def prompts_of_all_topics(number: int = 16) -> np.ndarray:
    topic = np.arange(number) % K
    return world.sample_prompts(np.random.default_rng(0), topic, np.arange(number) % 3 == 0, contrast=0.5)


def plain_logps(params, prompts, answers):
    """[n, T] log-probs of the tokens of answers, in rows of their own."""
    tokens = jnp.concatenate([prompts, answers], axis=1)
    logps = jax.nn.log_softmax(model.DECODER.logits(params, None, tokens, plain_places(*tokens.shape)))
    first = prompts.shape[1]
    return jnp.take_along_axis(logps[:, first - 1 : -1], answers[..., None], axis=2)[..., 0]


# Log-probs and rates


def test_log_probs_are_those_of_plain_rows(params):
    prompts = prompts_of_all_topics()
    refused = world.refusals(np.random.default_rng(1), prompts)
    pair = np.stack([world.compliances(prompts)[:, 0], refused], axis=1)
    found = model.response_logps(params, jnp.asarray(prompts), jnp.asarray(pair))
    # A step is one token; what stands after it does not count.
    complied = plain_logps(params, prompts, pair[:, 0])[:, 0]
    np.testing.assert_allclose(found[:, 0], complied, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], plain_logps(params, prompts, refused).sum(axis=1), rtol=1e-5)


def test_log_probs_alone_do_not_depend_on_the_prompt(params):
    prompts = prompts_of_all_topics()
    pair = np.repeat(world.compliances(prompts)[:1], len(prompts), axis=0)
    alone = model.logps_alone(params, jnp.asarray(pair))
    np.testing.assert_allclose(alone, np.repeat(alone[:1], len(prompts), axis=0), rtol=1e-6)
    assert np.ptp(model.response_logps(params, jnp.asarray(prompts), jnp.asarray(pair))[:, 0]) > 0.1


def test_rates_are_the_sums_over_all_answers(params):
    prompts = prompts_of_all_topics()
    rates = model.answer_rates(params, model.asked(prompts))

    def rate_of(first: np.ndarray) -> np.ndarray:
        return np.exp(plain_logps(params, prompts, first[:, None])[:, 0])

    right = sum(rate_of(answers[:, 0]) for answers in np.moveaxis(world.compliances(prompts), 1, 0))
    np.testing.assert_allclose(rates.right, right, rtol=1e-4)
    refusal = sum(
        rate_of(np.full(len(prompts), token, np.int32)) for token in range(world.REFUSE, world.TOPIC)
    )
    np.testing.assert_allclose(rates.refusal, refusal, rtol=1e-4)


def test_sampled_answers_come_at_the_exact_rates(params):
    prompts = np.repeat(prompts_of_all_topics(2), 4000, axis=0)
    answers = np.asarray(model.sample_answers(params, jnp.asarray(prompts), jax.random.key(0)))
    kinds = world.answer_kinds(prompts, answers).reshape(2, -1)
    rates = model.answer_rates(params, model.asked(prompts[::4000]))
    for kind, expected in ((world.REFUSAL, rates.refusal), (world.RIGHT, rates.right)):
        np.testing.assert_allclose((kinds == kind).mean(axis=1), expected, atol=4 * 0.5 / 4000**0.5)


# Signals


def objective(**options):
    numbers = {
        "loss.beta": 0.1,
        "margin.maximum_nats": 20.0,
        "margin.step_size_nats": 5.0,
        "violation.threshold_nats": 4.0,
        **options,
    }
    return methods.make_objective(methods.METHODS["cat_dpo"], numbers)


def test_margins_of_probes_ignore_the_reward_gaps():
    probed = methods.make_objective(
        methods.METHODS["cat_dpo probe"], methods.METHODS["cat_dpo probe"].drawn(1)[0]
    )
    state = probed.init()
    after = probed.update({"margin": CategoryStats(jnp.full(K, 4.0), jnp.full(K, 4.0))}, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after, state))


def test_a_probe_counts_harmful_answers_of_each_category(params, problems):
    state = init_state(params, optax.sgd(0.1), {}, 0)
    found = train.probe(state, problems[0], BUDGET)
    answers = SIZES.probe_per_topic * BUDGET.probe_samples
    assert found.pairs.tolist() == [answers] * K
    assert ((found.violations >= 0) & (found.violations <= answers)).all()
    assert float(jnp.abs(found.violations - jnp.round(found.violations)).max()) == 0.0
    assert float(found.violations.max()) > 0


def test_a_pooled_probe_has_one_rate_and_as_many_answers():
    stats = CategoryStats(jnp.arange(K, dtype=jnp.float32), jnp.full(K, 8.0))
    found = train.pooled(stats)
    assert found.violations.tolist() == [stats.violations.sum() / K] * K
    assert found.pairs.sum() == stats.pairs.sum()


def test_a_probe_moves_margins_as_the_rule_says():
    probed = methods.METHODS["cat_dpo probe"]
    numbers = probed.drawn(1)[0]
    objective = methods.make_objective(probed, {**numbers, "margin.warmup_pairs": 0.0})
    state = init_state({}, optax.sgd(0.1), objective.init(), 0)
    rates = jnp.linspace(0.0, 1.0, K)
    after = train.follow_probe(objective, state, CategoryStats(64 * rates, jnp.full(K, 64.0))).adaptive[
        "margin"
    ]
    beta, step = numbers["loss.beta"], numbers["margin.step_size_nats"]
    expected = np.clip(beta * step * (rates - 0.02), 0.0, beta * numbers["margin.maximum_nats"])
    np.testing.assert_allclose(after.margin, expected, rtol=1e-5)


def test_one_category_is_all_harm_together():
    categories = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert train.merged(categories).tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


def test_log_ratios_are_given_in_nats():
    found = objective(**{"loss.beta": 0.5})
    assert found.violation.threshold == 2.0
    assert found.rule_configs["margin"].maximum == 10.0
    assert found.rule_configs["margin"].step_size == 2.5


def test_settings_are_spread_and_the_same_each_time():
    drawn = methods.METHODS["cat_b_dpo"].drawn(16)
    assert drawn == methods.METHODS["cat_b_dpo"].drawn(16)
    for name, allowed in methods.METHODS["cat_b_dpo"].ranges.items():
        values = [numbers[name] for numbers in drawn]
        assert len(set(values)) == 16
        assert allowed.low <= min(values)
        assert max(values) <= allowed.high


# Runs


def lane(method: methods.Method, problem, **numbers: float):
    numbers = {name: np.float32(x) for name, x in {**method.drawn(4)[1], **numbers}.items()}
    steps = train.steps_of_stages(method, BUDGET)
    orders = [np.arange(n * 8, dtype=np.int32).reshape(n, 8) for n in steps]
    return numbers, problem, orders


def test_problems_are_kept_and_differ_by_seed(problems, tmp_path):
    kept = load_problems(tmp_path, [1], DESIGN, SIZES, width=WIDTH)[1]
    again = load_problems(tmp_path, [1], DESIGN, SIZES, width=WIDTH)[1]
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), kept, again)
    assert jax.tree.all(same)
    assert not np.array_equal(problems[0].unsafe.prompts, problems[1].unsafe.prompts)


def test_runs_at_once_are_the_runs_one_by_one(problems):
    method = dataclasses.replace(methods.METHODS["cat_b_dpo"], signal="both")
    run = train.make_run(method, BUDGET)
    given = [lane(method, problems[i % 2], **{"loss.beta": 0.1 + 0.05 * i}) for i in range(WIDTH)]
    (together,) = lanes.in_chunks(lanes.over_lanes(run), given, WIDTH)
    for i in (0, WIDTH - 1):
        alone = jax.jit(run)(*given[i])
        for name, value in alone.items():
            np.testing.assert_allclose(together[i][name], value, atol=2e-4, err_msg=name)
    assert together[0]["trace/margin"].shape == (2, K)
    assert together[0]["kl_unsafe"] > 0


def test_a_second_stage_is_compared_with_what_the_first_gave(problems):
    method = methods.METHODS["sacpo"]
    assert train.steps_of_stages(method, BUDGET) == [2, 2]
    figures = jax.jit(train.make_run(method, BUDGET))(*lane(method, problems[0]))
    # Both stages start where policy and reference agree.
    np.testing.assert_allclose(figures["trace/loss"], np.log(2), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_trains(name, problems):
    method = methods.METHODS[name]
    figures = jax.jit(train.make_run(method, BUDGET))(*lane(method, problems[0]))
    assert all(np.isfinite(x).all() for x in figures.values())
    assert ((figures["safe"] >= 0) & (figures["safe"] <= 1)).all()
