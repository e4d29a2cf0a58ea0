"""What token log-probs cost, read off the compiled or traced program: memory and matmuls."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import pytest

from jaxalign.ops.token_logps import token_logps
from tests.ops.token_logps_dense import dense_logps

L, D, V = 12, 6, 16


def shapes(length: int, width: int, vocab_size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """hidden, head and targets of one sequence."""
    return (
        jax.ShapeDtypeStruct((1, length, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab_size), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )


def with_gradients(function: Callable) -> Callable:
    return jax.value_and_grad(lambda *x: function(*x).sum(), argnums=(0, 1))


@pytest.mark.parametrize("train_head", [True, False])
def test_memory_at_32k_tokens_and_128k_vocabulary_is_at_most_a_fifth_of_dense(train_head):
    def temporary_bytes(function: Callable) -> int:
        lowered = jax.jit(with_gradients(function)).lower(*shapes(32 * 1024, 8, 128 * 1024))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    chunked = temporary_bytes(functools.partial(token_logps, train_head=train_head))
    assert chunked <= temporary_bytes(dense_logps) / 5


def test_memory_of_many_short_sequences_is_that_of_one_long_one():
    def temporary_bytes(num_sequences: int) -> int:
        hidden, head, targets = (
            jax.ShapeDtypeStruct((num_sequences, 4096 // num_sequences, *x.shape[2:]), x.dtype)
            if x.ndim != 2 or x.dtype == jnp.int32
            else x
            for x in shapes(4096, 8, 8 * 1024)
        )
        lowered = jax.jit(with_gradients(token_logps)).lower(hidden, head, targets)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(64) < 2 * temporary_bytes(1)  # of all logits at once it is four times


def test_memory_does_not_grow_with_the_number_of_chunks():
    def temporary_bytes(length: int) -> int:
        lowered = jax.jit(with_gradients(token_logps)).lower(*shapes(length, 8, 8 * 1024))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(16 * 1024) < 1.1 * temporary_bytes(4 * 1024)


def equations(jaxpr) -> Iterator:
    """All equations, those of loop bodies and called functions once each."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def matmul_shapes(function: Callable) -> list[tuple[int, ...]]:
    """Shapes of the results of all matmuls of a program."""
    traced = jax.jit(function).trace(*shapes(L, D, V))
    return [
        e.outvars[0].aval.shape for e in equations(traced.jaxpr.jaxpr) if e.primitive.name == "dot_general"
    ]


def test_matmuls_of_a_trained_head_are_those_of_dense_and_the_logits_of_several_chunks_again():
    logits, d_hidden, d_head = (1, L // 2, V), (1, L // 2, D), (D, V)
    function = functools.partial(token_logps, chunk_size=L // 2)
    assert sorted(matmul_shapes(with_gradients(function))) == sorted([logits, logits, d_hidden, d_head])


def test_logits_of_a_single_chunk_are_made_once():
    logits, d_hidden, d_head = (1, L, V), (1, L, D), (D, V)
    function = functools.partial(token_logps, chunk_size=L)
    assert sorted(matmul_shapes(with_gradients(function))) == sorted([logits, d_hidden, d_head])


def test_keeping_the_logits_of_a_single_chunk_needs_no_more_memory_than_making_them_again():
    def temporary_bytes(length: int) -> int:
        function = with_gradients(functools.partial(token_logps, chunk_size=1024))
        lowered = jax.jit(function).lower(*shapes(length, 8, 8 * 1024))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1024) <= temporary_bytes(2048)


def test_matmuls_of_a_frozen_head_are_the_logits_once_and_the_gradient_of_hidden():
    function = functools.partial(token_logps, train_head=False)
    assert matmul_shapes(with_gradients(function)) == [(1, L, V), (1, L, D)]


@pytest.mark.parametrize("train_head", [True, False])
def test_only_the_logits_are_computed_without_differentiation(train_head):
    assert matmul_shapes(functools.partial(token_logps, train_head=train_head)) == [(1, L, V)]


def test_head_tied_to_an_embedding_is_not_transposed_for_the_logits():
    def logps(hidden, embedding, targets):
        return token_logps(hidden, embedding.T, targets)

    hidden, head, targets = shapes(L, D, V)
    embedding = jax.ShapeDtypeStruct(head.shape[::-1], head.dtype)
    compiled = jax.jit(logps).lower(hidden, embedding, targets).compile()
    assert f"f32[{D},{V}]" not in compiled.as_text()
