"""Verdicts, first changes and the search, on estimates with given figures."""

import dataclasses
import io

import pytest
from rich.console import Console

from jaxalign.config import parse_config
from jaxalign.models.config import decoder_config_from_hf
from jaxalign.models.presets import ARCHITECTURES
from jaxalign.parallel.mesh import MeshError
from jaxalign.parallel.topology import CHIPS, GIB, Topology
from jaxalign.run.plan.costs import Costs
from jaxalign.run.plan.estimate import Estimate
from jaxalign.run.plan.report import as_dict, count_text, first_change, print_estimate, size_text, verdict
from jaxalign.run.plan.search import search
from jaxalign.run.plan.workload import assumed_workload
from tests import tiny

SLICE = Topology("v5e:2x4", CHIPS["v5e"], (2, 4), ())
MODEL = decoder_config_from_hf(ARCHITECTURES["llama3-8b"])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    settings = tiny.run_settings(
        tmp_path_factory.mktemp("run"),
        train={"batch_size": 16, "num_micro_batches": 2},
        mesh={"data": 1, "fsdp": 8},
        model={"remat": "full"},
    )
    return parse_config(settings, "test")


@pytest.fixture(scope="module")
def estimate(config):
    """Compute takes 2 s, memory 1 s, the interconnect 1 s; half of the FLOPs must be done; 5 of 15.75 GiB."""
    return Estimate(
        topology=SLICE,
        mesh={"data": 1, "fsdp": 8, "tensor": 1},
        remat="full",
        num_micro_batches=2,
        workload=assumed_workload(config, MODEL, 8, 16, groups=8, multiple=16),
        memory={"trained parameters": 2 * GIB, "activations and other temporaries": 3 * GIB},
        required_flops=int(197e12),
        costs=Costs(int(2 * 197e12), int(2 * 197e12), int(197e11), int(819e9), (), 0, 0),
        collectives={},
        seconds={"compute": 2.0, "memory": 1.0, "interconnect": 1.0},
        compile_seconds=3.0,
    )


def changed(estimate, **fields):
    return dataclasses.replace(estimate, **fields)


def too_large(estimate, **fields):
    memory = {"trained parameters": 20 * GIB}
    return changed(estimate, memory=memory, costs=None, seconds={}, collectives={}, **fields)


def test_verdict_names_memory_bound_and_mfu(estimate):
    assert verdict(estimate) == (
        "fits: 5.00 GiB of 15.75 GiB per device; bound by compute: a step takes at least 2 s, MFU at most 50%"
    )


def test_verdict_says_what_is_lacking(estimate):
    assert (
        verdict(too_large(estimate)) == "does not fit: 20.00 GiB per device are needed, 15.75 GiB are there"
    )


def test_recomputing_less_comes_first_where_there_is_memory(config, estimate):
    assert first_change(config, estimate).startswith("model.remat: dots")
    tight = changed(estimate, memory={"trained parameters": 15 * GIB})
    assert first_change(config, tight) == "none: compute is the limit, as it should be"


def test_what_does_not_fit_is_recomputed_then_split(config, estimate):
    assert first_change(config, too_large(estimate, remat="dots")) == "model.remat: full"
    one = config.model_copy(update={"train": config.train.model_copy(update={"num_micro_batches": 1})})
    assert first_change(one, too_large(estimate)) == "train.num_micro_batches: 2"
    assert first_change(config, too_large(estimate)) == "mesh.tensor: 2 with mesh.fsdp: 4"
    everywhere = too_large(estimate, mesh={"data": 1, "fsdp": 8, "tensor": 8})
    assert first_change(config, everywhere).startswith("a larger slice")


def test_interconnect_asks_for_fewer_micro_batches(config, estimate):
    slow = changed(estimate, seconds={"compute": 1.0, "memory": 1.0, "interconnect": 2.0})
    assert first_change(config, slow).startswith("train.num_micro_batches: 1, as weights are moved once")
    once = config.model_copy(update={"train": config.train.model_copy(update={"num_micro_batches": 1})})
    assert first_change(once, slow).startswith("a larger train.batch_size")
    wide = changed(slow, mesh={"data": 1, "fsdp": 64, "tensor": 1})
    assert first_change(once, wide).startswith(
        "mesh.fsdp: 16 with mesh.data: 4: of transfers between 64 devices"
    )
    split = changed(slow, mesh={"data": 1, "fsdp": 8, "tensor": 8})
    assert first_change(once, split) == "mesh.tensor: 4 with mesh.fsdp: 16"


def test_printed_figures_are_called_bounds(config, estimate):
    out = io.StringIO()
    print_estimate(config, estimate, Console(file=out, width=200))
    assert "Bounds, not measurements" in out.getvalue()
    assert "No TPU was used" in out.getvalue()
    assert "verdict" in out.getvalue()


def test_printed_table_says_what_was_not_counted(config, estimate):
    out = io.StringIO()
    uncounted = changed(estimate, costs=dataclasses.replace(estimate.costs, unknown_loops=1))
    print_estimate(config, uncounted, Console(file=out, width=200))
    assert "1 loops of unknown length were counted once" in out.getvalue()


def test_float32_is_shown_as_what_it_is_in_bfloat16(config, estimate):
    out = io.StringIO()
    exact = changed(estimate, costs=dataclasses.replace(estimate.costs, bfloat16_flops=int(12 * 197e12)))
    print_estimate(config, exact, Console(file=out, width=200))
    assert "these in bfloat16, as chips do float32" in out.getvalue()
    flops = as_dict(config, exact)["flops"]
    assert flops["as_bfloat16"] == 6 * flops["compiled"]


def test_json_has_the_bound_and_none_where_nothing_was_compiled(config, estimate):
    figures = as_dict(config, estimate)
    assert figures["bound_seconds"]["step"] == 2.0
    assert figures["mfu_bound"] == pytest.approx(0.5)
    assert figures["mfu_without_overlap"] == pytest.approx(0.25)
    lacking = as_dict(config, too_large(estimate))
    assert (lacking["fits"], lacking["mfu_bound"], lacking["flops"]["compiled"]) == (False, None, None)


def test_texts_have_units_that_suit():
    assert [size_text(n) for n in (12, 3 * 1024, 5 * GIB)] == ["12 B", "3 KiB", "5.00 GiB"]
    assert [count_text(n) for n in (12, 3.2e9, 4.5e12)] == ["12", "3.2 G", "4.50 T"]


def cost_model(estimate):
    """Weights cross the mesh per micro-batch, less with tensor parallelism; no recomputation needs much memory."""

    def estimated(candidate):
        num_micro, tensor = candidate.train.num_micro_batches, candidate.mesh.tensor
        compute = {"full": 4.0, "dots": 3.5, "none": 3.0}[candidate.model.remat] * (
            1.2 if tensor > 2 else 1.0
        )
        memory = {"full": 4, "dots": 8, "none": 24}[candidate.model.remat] * GIB // num_micro
        fields = {"remat": candidate.model.remat, "num_micro_batches": num_micro}
        if memory > SLICE.chip.hbm_bytes:
            return too_large(estimate, **fields)
        seconds = {"compute": compute, "memory": 1.0, "interconnect": 4.0 * num_micro / tensor}
        return changed(estimate, seconds=seconds, memory={"all": memory}, **fields)

    return estimated


def test_search_finds_the_best_of_its_neighbours_and_never_tries_one_twice(config, estimate):
    seen = []
    found = search(
        config, MODEL, 8, cost_model(estimate), lambda tried, _: seen.append(tried.model_dump_json())
    )
    best = found[0][0]
    # Without micro-batches "none" does not fit, and with two the interconnect is slower than what it saves.
    assert (best.model.remat, best.train.num_micro_batches, best.mesh.tensor) == ("dots", 1, 2)
    assert len(seen) == len(set(seen))
    assert all(tried[0].train.batch_size == config.train.batch_size for tried in found)
    assert [max(e.seconds.values()) for _, e in found] == sorted(max(e.seconds.values()) for _, e in found)


def test_search_gives_nothing_where_nothing_fits(config, estimate):
    assert search(config, MODEL, 8, lambda _: too_large(estimate), lambda *_: None) == []


def test_search_leaves_out_meshes_that_the_slice_cannot_have(config, estimate):
    estimated = cost_model(estimate)

    def on_a_row_of_chips(candidate):
        if candidate.mesh.tensor > 1:
            raise MeshError("mesh ... cannot be laid on chips")
        return estimated(candidate)

    found = search(config, MODEL, 8, on_a_row_of_chips, lambda *_: None)
    assert found
    assert all(tried.mesh.tensor == 1 for tried, _ in found)


def test_search_from_a_mesh_that_the_slice_cannot_have_says_so(config):
    def refused(candidate):
        raise MeshError("mesh ... cannot be laid on chips")

    with pytest.raises(MeshError, match="cannot be laid on chips"):
        search(config, MODEL, 8, refused, lambda *_: None)


def test_search_takes_a_bound_that_is_four_per_cent_lower_before_less_work(config, estimate):
    def estimated(candidate):
        split = candidate.mesh.tensor > 1
        seconds = {"compute": 1.0, "memory": 0.9} if split else {"compute": 1.04, "memory": 0.1}
        return changed(estimate, seconds=seconds)

    best, _ = search(config, MODEL, 8, estimated, lambda *_: None)[0]
    assert best.mesh.tensor > 1
