import json
import shutil

import pytest

from shared.infrastructure.local_embeddings import Pooling, UnsupportedModelError
from shared.infrastructure.local_embeddings.files import ModelFiles, digest

ENCODER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def write(root, **files):
    """Write JSON files; a double underscore in a name stands for a slash."""
    for name, content in files.items():
        path = root / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return ModelFiles(root)


def test_minilm_is_read_as_sentence_transformers_reads_it(minilm):
    files = ModelFiles(minilm)
    assert (files.max_length, files.pooling, files.max_positions) == (256, "mean", 512)
    assert (files.prompts, files.default_prompt, files.lowercases) == ({}, "", False)
    assert [path.name for path in files.weights] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "max_length"),
    [
        ({"sentence_bert_config": {"max_seq_length": 128}}, 128),
        ({"sentence_roberta_config": {"max_seq_length": 64}}, 64),
        ({"tokenizer_config": {"model_max_length": 200}}, 200),
        ({"tokenizer_config": {"model_max_length": 10**30}}, 512),
        ({}, 512),
    ],
)
def test_the_length_comes_from_the_first_file_that_knows_it(tmp_path, files, max_length):
    model = write(tmp_path, config={"max_position_embeddings": 512}, **files)
    assert model.max_length == max_length


def test_roberta_has_fewer_positions_than_rows_in_its_table(tmp_path):
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert write(tmp_path, config=config).max_length == 512


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "max+mean"),
        ({}, "mean"),
    ],
)
def test_old_and_new_pooling_files_are_read(tmp_path, config, pooling):
    model = write(tmp_path, config={}, modules=[ENCODER, POOLING], **{"1_Pooling__config": config})
    assert model.pooling == pooling


def test_without_modules_the_pooling_is_the_mean(tmp_path):
    assert write(tmp_path, config={}).plain_pooling(None) is Pooling.MEAN


def test_a_pooling_that_is_not_ours_is_refused_unless_overridden(tmp_path):
    config = {"pooling_mode": "weightedmean"}
    model = write(tmp_path, config={}, modules=[ENCODER, POOLING], **{"1_Pooling__config": config})
    with pytest.raises(UnsupportedModelError, match="weightedmean"):
        model.plain_pooling(None)
    assert model.plain_pooling(Pooling.CLS) is Pooling.CLS


def test_a_dense_module_is_never_left_out_silently(tmp_path):
    model = write(tmp_path, config={}, modules=[ENCODER, POOLING, DENSE])
    with pytest.raises(UnsupportedModelError, match="Dense"):
        model.plain_pooling(Pooling.MEAN)


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused(tmp_path):
    model = write(
        tmp_path,
        config={},
        modules=[ENCODER, POOLING],
        config_sentence_transformers={"prompts": {"q": "ask "}, "default_prompt_name": "q"},
        **{"1_Pooling__config": {"include_prompt": False}},
    )
    with pytest.raises(UnsupportedModelError, match="prompt"):
        _ = model.default_prompt


def test_weights_that_are_only_a_pickle_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedModelError, match="pickle"):
        _ = write(tmp_path, config={}).weights


@pytest.mark.parametrize("text", ["", "{", "not json"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        _ = ModelFiles(tmp_path).config


def test_an_empty_directory_is_no_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        _ = ModelFiles(tmp_path).config


def test_the_fingerprint_changes_with_all_that_changes_a_vector(minilm, tmp_path):
    root = tmp_path / "model"
    small = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(minilm, root, ignore=small)

    def fingerprint(weights="w", max_length=256, pooling="mean", dtype="float32"):
        return ModelFiles(root).fingerprint(weights, max_length, pooling, dtype)

    seen = [
        fingerprint(),
        fingerprint(weights="v"),
        fingerprint(max_length=128),
        fingerprint(pooling="cls"),
        fingerprint(dtype="bfloat16"),
    ]
    for name, old, new in [
        ("tokenizer.json", "[UNK]", "[unk]"),
        ("config.json", "1e-12", "1e-05"),
        ("sentence_bert_config.json", "false", "true"),
    ]:
        text = (root / name).read_text()
        (root / name).write_text(text.replace(old, new))
        seen.append(fingerprint())
        (root / name).write_text(text)
    assert len(set(seen)) == len(seen)
    assert fingerprint() == seen[0]


def test_a_digest_keeps_its_fields_apart():
    assert digest("ab", "c") != digest("a", "bc")
