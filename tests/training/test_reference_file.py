"""The reference pass and its file: found by a hash of all that it depends on, refused where one of them differs."""

import dataclasses
import json

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from jaxalign.config import parse_config
from jaxalign.hf.checkpoint import tokenizer_fingerprint
from jaxalign.hf.read import open_checkpoint
from jaxalign.run.reference import reference_ingredients
from jaxalign.training.reference import (
    NonFiniteReferenceError,
    ReferenceConfig,
    ReferenceMismatchError,
    compute_reference,
    mutual_information,
    read_reference,
    reference_key,
    write_reference,
)
from tests import tiny
from tests.training import toy

INGREDIENTS = {"model": "abc", "data": "def", "max_response_length": 32}
ARRAYS = {
    "logps": np.array([[-20.0, -24.0], [-3.0, -5.0], [-1.0, -2.0]], np.float32),
    "mi": np.array([[0.5, 0.25], [0.1, 0.2], [0.0, -0.1]], np.float32),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "reference" / "train.safetensors"
    write_reference(path, ARRAYS, INGREDIENTS)
    return path


def test_file_gives_back_the_arrays(file):
    arrays = read_reference(file, INGREDIENTS, 3)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == np.float32


def test_columns_of_a_larger_array_are_written_as_they_are(tmp_path):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"logps": wide[:, ::2], "mi": wide[:, 1::2]}
    write_reference(tmp_path / "file", arrays, INGREDIENTS)
    np.testing.assert_array_equal(read_reference(tmp_path / "file", INGREDIENTS, 3)["mi"], wide[:, 1::2])


def test_each_differing_ingredient_is_named_with_both_values(file):
    changed = INGREDIENTS | {"model": "xyz", "max_response_length": 64}
    with pytest.raises(ReferenceMismatchError) as error:
        read_reference(file, changed, 3)
    assert "model: file has abc, run has xyz" in str(error.value)
    assert "max_response_length: file has 32, run has 64" in str(error.value)
    assert "data" not in str(error.value).split("\n", 1)[1]


def test_ingredient_that_only_one_side_has_is_a_difference(file):
    with pytest.raises(ReferenceMismatchError, match="dtype: file has None, run has bfloat16"):
        read_reference(file, INGREDIENTS | {"dtype": "bfloat16"}, 3)


def test_file_of_something_else_is_refused(tmp_path):
    save_file(ARRAYS, tmp_path / "weights.safetensors")
    with pytest.raises(ReferenceMismatchError, match="model: file has None, run has abc"):
        read_reference(tmp_path / "weights.safetensors", INGREDIENTS, 3)


def test_another_number_of_pairs_is_refused(file):
    with pytest.raises(ReferenceMismatchError, match=r"expected logps and mi of shape \(4, 2\); delete it"):
        read_reference(file, INGREDIENTS, 4)


def test_missing_array_is_refused(tmp_path):
    write_reference(tmp_path / "file", {"logps": ARRAYS["logps"]}, INGREDIENTS)
    with pytest.raises(ReferenceMismatchError, match="expected logps and mi"):
        read_reference(tmp_path / "file", INGREDIENTS, 3)


def test_file_of_another_pass_is_called_by_its_name_and_holds_its_own_arrays(tmp_path):
    options = {"names": ("logps",), "what": "margin log-probs", "remedy": "move it away"}
    write_reference(tmp_path / "file", {"logps": ARRAYS["logps"]}, INGREDIENTS)
    assert read_reference(tmp_path / "file", INGREDIENTS, 3, **options).keys() == {"logps"}
    remedy = "; move it away to compute the margin log-probs again"
    for ingredients, num_pairs, message in (
        ({}, 3, f"holds the margin log-probs of something else{remedy}"),
        (INGREDIENTS, 4, rf"expected logps of shape \(4, 2\){remedy}"),
    ):
        with pytest.raises(ReferenceMismatchError, match=message):
            read_reference(tmp_path / "file", ingredients, num_pairs, **options)


def test_write_leaves_nothing_but_the_final_file(file):
    assert [path.name for path in file.parent.iterdir()] == ["train.safetensors"]


def test_failed_write_leaves_the_old_file_whole(file):
    before = file.read_bytes()
    with pytest.raises(TypeError):
        write_reference(file, ARRAYS, {"model": object()})
    assert file.read_bytes() == before


def test_write_replaces_an_older_file(file):
    write_reference(file, {name: 2 * array for name, array in ARRAYS.items()}, INGREDIENTS)
    np.testing.assert_array_equal(load_file(file)["logps"], 2 * ARRAYS["logps"])


def test_order_of_the_ingredients_does_not_matter():
    assert reference_key(dict(reversed(INGREDIENTS.items()))) == reference_key(INGREDIENTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Plain settings of a tiny run, and the real fingerprints of its parts."""
    folder = tmp_path_factory.mktemp("run")
    settings = tiny.run_settings(folder)
    fingerprints = {
        "model": open_checkpoint(folder / "model").fingerprint(),
        "tokenizer": tokenizer_fingerprint(tiny.make_tokenizer()),
        "data train": toy.make_dataset(np.eye(3)).fingerprint(),
    }
    return settings, fingerprints


def key_of(run, *, fingerprints=None, rows=range(3), with_mi=True, **sections) -> str:
    """The key of the run with some fingerprints, rows or settings replaced."""
    settings, own = run
    config = parse_config({name: part | sections.get(name, {}) for name, part in settings.items()}, "test")
    return reference_key(
        reference_ingredients(
            config, own | (fingerprints or {}), "train", np.array(rows, np.int32), with_mi=with_mi
        )
    )


def test_key_is_the_same_for_the_same_run(run):
    assert key_of(run) == key_of(run)


@pytest.mark.parametrize(
    "section",
    [
        {"data": {"max_prompt_length": 63}},
        {"data": {"max_response_length": 31}},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"param_dtype": "bfloat16", "lora": {"rank": 2}}},
    ],
    ids=str,
)
def test_key_changes_with_lengths_and_dtypes(run, section):
    assert key_of(run, **section) != key_of(run)


@pytest.mark.parametrize(
    "section",
    [
        {"optimizer": {"learning_rate": 1e-4}},
        {"loss": {"beta": 0.2}},
        {"train": {"seed": 1}},
        {"mesh": {"data": 8}},
    ],
    ids=str,
)
def test_key_does_not_change_with_what_the_reference_does_not_see(run, section):
    assert key_of(run, **section) == key_of(run)


def test_key_changes_with_the_rows_and_with_mutual_information(run):
    keys = {key_of(run), key_of(run, rows=[0, 1]), key_of(run, rows=[0, 2]), key_of(run, with_mi=False)}
    assert len(keys) == 4


def test_key_changes_with_one_weight(run, tmp_path):
    model = tiny.write_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert key_of(run, fingerprints={"model": open_checkpoint(model).fingerprint()}) != key_of(run)


def test_key_changes_with_the_model_configuration(run, tmp_path):
    model = tiny.write_model(tmp_path / "model", rope_theta=20000.0)
    assert key_of(run, fingerprints={"model": open_checkpoint(model).fingerprint()}) != key_of(run)


def test_key_does_not_depend_on_where_the_model_lies(run, tmp_path):
    model = tiny.write_model(tmp_path / "elsewhere")
    assert key_of(run, fingerprints={"model": open_checkpoint(model).fingerprint()}) == key_of(run)


def test_key_changes_with_the_chat_template(run):
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template += " "
    assert key_of(run, fingerprints={"tokenizer": tokenizer_fingerprint(tokenizer)}) != key_of(run)


def test_key_changes_with_one_token_of_the_data(run):
    dataset = toy.make_dataset(np.eye(3))
    chosen = (dataset.chosen_ids[0] + 1, *dataset.chosen_ids[1:])
    changed = dataclasses.replace(dataset, chosen_ids=chosen).fingerprint()
    assert key_of(run, fingerprints={"data train": changed}) != key_of(run)


def test_mutual_information_is_the_gain_per_token():
    # METHOD: I(x; y) = [log p(y|x) - log p(y)] / |y|
    logps, alone = np.array([[-20.0, -24.0]], np.float32), np.array([[-25.0, -23.0]], np.float32)
    mi = mutual_information(logps, alone, np.array([[10, 8]], np.int32))
    np.testing.assert_allclose(mi, [[0.5, -0.125]])
    assert mi.dtype == np.float32


def bigram_logps(dataset, _name) -> np.ndarray:
    """[n, 2] under a model in which a token depends on the one before it alone."""
    table = np.random.default_rng(0).normal(size=(toy.V, toy.V))
    table -= np.logaddexp.reduce(table, axis=1, keepdims=True)

    def total(prompt, response) -> float:
        row = np.concatenate([prompt[-1:], response])
        return float(table[row[:-1], row[1:]].sum())

    branches = (dataset.chosen_ids, dataset.rejected_ids)
    sums = [[total(p, ids[i]) for ids in branches] for i, p in enumerate(dataset.prompt_ids)]
    return np.array(sums, np.float32)


def test_reference_holds_log_probs_and_the_gain_over_an_empty_prompt():
    dataset = toy.make_dataset(np.eye(3))
    arrays = compute_reference(dataset, bigram_logps, with_mi=True)
    with_prompt = bigram_logps(dataset, "")
    alone = bigram_logps(dataclasses.replace(dataset, prompt_ids=(np.zeros(1, np.int32),) * 3), "")
    lengths = [[len(c), len(r)] for c, r in zip(dataset.chosen_ids, dataset.rejected_ids, strict=True)]
    np.testing.assert_array_equal(arrays["logps"], with_prompt)
    np.testing.assert_allclose(arrays["mi"], (with_prompt - alone) / lengths, rtol=1e-5, atol=1e-6)
    assert arrays["mi"].any()


def test_pass_without_prompts_is_left_out_where_no_loss_reads_it():
    names = []

    def branch_logps(dataset, name):
        names.append(name)
        return bigram_logps(dataset, name)

    arrays = compute_reference(toy.make_dataset(np.eye(3)), branch_logps, with_mi=False)
    assert names == ["logps"]
    assert arrays["mi"].shape == (3, 2)
    assert not arrays["mi"].any()


@pytest.mark.parametrize("content", [b"", b"half", b"\xff" * 64])
def test_damaged_file_is_refused_with_the_remedy(tmp_path, content):
    path = tmp_path / "reference.safetensors"
    path.write_bytes(content)
    message = r"reference\.safetensors is not a whole reference file .*; delete it"
    with pytest.raises(ReferenceMismatchError, match=message):
        read_reference(path, {}, 4)


def test_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ReferenceMismatchError, match="is not a whole reference file"):
        read_reference(tmp_path, {}, 4)


def test_ingredients_that_are_no_json_are_refused(tmp_path):
    path = tmp_path / "reference.safetensors"
    save_file({"mi": np.zeros((4, 2), np.float32)}, path, metadata={"ingredients": "{"})
    with pytest.raises(ReferenceMismatchError, match="is not a whole reference file"):
        read_reference(path, {}, 4)


@pytest.mark.parametrize(("broken", "what"), [("logps", ""), ("alone", " without prompt")])
def test_non_finite_value_raises_and_names_the_row(broken, what):
    def branch_logps(dataset, name):
        logps = bigram_logps(dataset, name)
        logps[1:, 0] = np.nan if name == broken else logps[1:, 0]
        return logps

    message = f"reference log-probs{what} are not finite for 2 pairs, first at toy:1; check the model"
    with pytest.raises(NonFiniteReferenceError, match=message):
        compute_reference(toy.make_dataset(np.eye(3)), branch_logps, with_mi=True)


def test_given_file_and_cache_together_are_refused():
    with pytest.raises(ValidationError, match=r"give reference\.file or reference.cache_dir, not both"):
        ReferenceConfig(file="a.safetensors", cache_dir="cache")


def test_metadata_is_readable_without_this_library(file):
    header = file.read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["ingredients"]) == INGREDIENTS
