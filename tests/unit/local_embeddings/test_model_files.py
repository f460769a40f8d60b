import json
import shutil

import pytest

from shared.infrastructure.local_embeddings import Pooling, UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles, digest
from shared.infrastructure.local_embeddings.model_files.prompts import prompt_for

ENCODER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
NORMALIZE = {"idx": 3, "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
PLAIN = [ENCODER, POOLING]


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
    assert (files.include_prompt, files.dimensions) == (True, None)
    assert [path.name for path in files.weights] == ["model.safetensors"]
    assert files.encoder_weights == files.weights


@pytest.mark.parametrize(
    ("files", "max_length"),
    [
        ({"modules": PLAIN, "sentence_bert_config": {"max_seq_length": 128}}, 128),
        ({"modules": PLAIN, "sentence_roberta_config": {"max_seq_length": 64}}, 64),
        ({"sentence_bert_config": {"max_seq_length": 128}}, 512),  # is read with modules only
        (
            {
                "modules": PLAIN,
                "sentence_bert_config": {
                    "max_seq_length": 128,
                    "tokenizer_args": {"model_max_length": 96},
                },
            },
            96,
        ),
        (
            {
                "modules": PLAIN,
                "sentence_bert_config": {"max_seq_length": 128},
                "tokenizer_config": {"model_max_length": 200},
            },
            128,
        ),
        ({"tokenizer_config": {"model_max_length": 200}}, 200),
        ({"tokenizer_config": {"max_len": 100}}, 100),
        ({"tokenizer_config": {"model_max_length": 10**30}}, 512),
        ({"modules": PLAIN, "sentence_bert_config": {"max_seq_length": 1024}}, 512),
        ({}, 512),
    ],
)
def test_the_length_comes_from_the_first_file_that_knows_it(tmp_path, files, max_length):
    model = write(tmp_path, config={"max_position_embeddings": 512}, **files)
    assert model.max_length == max_length


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "mpnet"])
@pytest.mark.parametrize("padding", [{"pad_token_id": 1}, {"pad_token_id": None}, {}])
def test_roberta_has_fewer_positions_than_rows_in_its_table(tmp_path, model_type, padding):
    config = {"model_type": model_type, "max_position_embeddings": 514} | padding
    files = write(tmp_path, config=config)
    assert (files.max_length, files.pad_token_id) == (512, 1)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
        ({"pooling_mode": ["weightedmean"]}, "weightedmean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "max+mean"),
        ({}, "mean"),
    ],
)
def test_old_and_new_pooling_files_are_read(tmp_path, config, pooling):
    model = write(tmp_path, config={}, modules=PLAIN, **{"1_Pooling__config": config})
    assert model.pooling == pooling


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({}, Pooling.MEAN),
        ({"architectures": None}, Pooling.MEAN),
        ({"architectures": ["BertForMaskedLM"]}, Pooling.MEAN),
        ({"architectures": ["Qwen3ForCausalLM"]}, Pooling.LAST_TOKEN),
        ({"architectures": ["Gemma3ForCausalLM"], "is_causal": False}, Pooling.MEAN),
    ],
)
def test_without_modules_the_pooling_is_that_of_the_architecture(tmp_path, config, pooling):
    assert write(tmp_path, config=config).plain_pooling(None) is pooling


def test_a_pooling_that_is_not_ours_is_refused_unless_overridden(tmp_path):
    config = {"pooling_mode": ["cls", "max"]}
    model = write(tmp_path, config={}, modules=PLAIN, **{"1_Pooling__config": config})
    with pytest.raises(UnsupportedModelError, match=r"cls\+max"):
        model.plain_pooling(None)
    assert model.plain_pooling(Pooling.CLS) is Pooling.CLS


@pytest.mark.parametrize(
    ("modules", "match"), [([*PLAIN, DENSE, NORMALIZE], "Dense"), ([ENCODER], "Transformer")]
)
def test_a_module_is_never_left_out_silently(tmp_path, modules, match):
    model = write(tmp_path, config={}, modules=modules)
    with pytest.raises(UnsupportedModelError, match=match):
        model.plain_pooling(Pooling.MEAN)


def test_modules_that_change_no_direction_may_be_left_out(tmp_path):
    dropout = {"path": "2_Dropout", "type": "sentence_transformers.models.Dropout"}
    model = write(tmp_path, config={}, modules=[*PLAIN, dropout, NORMALIZE, NORMALIZE])
    assert model.plain_pooling(None) is Pooling.MEAN


@pytest.mark.parametrize(
    "module",
    [
        {"path": "../../x", "type": "sentence_transformers.models.Transformer"},
        {"path": "/etc", "type": "sentence_transformers.models.Transformer"},
        {"path": "a\\..\\..\\b", "type": "sentence_transformers.models.Transformer"},
        {"path": "C:x", "type": "sentence_transformers.models.Transformer"},
        {"path": "", "type": "custom_model.Transformer"},
        {"path": "", "type": "sentence_transformers_evil.Transformer"},
        {"path": "", "type": "os.system"},
        {"path": ""},
        {"path": "", "type": "sentence_transformers.models.Router"},
    ],
)
def test_a_module_cannot_run_code_or_lie_elsewhere(tmp_path, module):
    with pytest.raises(UnsupportedModelError, match=r"never run|outside"):
        _ = write(tmp_path, config={}, modules=[module]).modules


def test_a_model_that_gives_no_embeddings_is_refused(tmp_path):
    kind = {"model_type": "CrossEncoder"}
    model = write(tmp_path, config={}, modules=PLAIN, config_sentence_transformers=kind)
    with pytest.raises(UnsupportedModelError, match="CrossEncoder"):
        _ = model.max_length


@pytest.mark.parametrize(
    "option", [{"transformer_task": "fill-mask"}, {"processing_kwargs": {"text": {}}}]
)
def test_options_that_are_not_ours_are_refused(tmp_path, option):
    model = write(tmp_path, config={}, modules=PLAIN, sentence_bert_config=option)
    with pytest.raises(UnsupportedModelError, match="options"):
        _ = model.max_length


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({}, "", ""),
        ({"query": "q: "}, "q: ", ""),
        ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"corpus": "c: ", "passage": "p: "}, "", "p: "),
        ({"corpus": "c: "}, "", "c: "),
        ({"document": "", "passage": "p: "}, "", ""),
        ({"document": None, "query": None}, "", ""),
        ({"clustering": "x: "}, "", ""),
    ],
)
def test_queries_and_documents_have_the_models_prompts(tmp_path, prompts, query, document):
    config = {"prompts": prompts}
    files = write(tmp_path, config={}, modules=PLAIN, config_sentence_transformers=config)
    assert prompt_for(files.prompts, "query") == query
    assert prompt_for(files.prompts, "document") == document
    assert files.default_prompt == ""


@pytest.mark.parametrize(
    ("name", "prompt"), [("q", "ask "), (None, ""), ("query", ""), ("document", "")]
)
def test_the_default_prompt_is_one_of_the_prompts(tmp_path, name, prompt):
    config = {"prompts": {"q": "ask "}, "default_prompt_name": name}
    files = write(tmp_path, config={}, modules=PLAIN, config_sentence_transformers=config)
    assert files.default_prompt == prompt
    (tmp_path / "modules.json").unlink()
    assert (ModelFiles(tmp_path).default_prompt, ModelFiles(tmp_path).prompts) == ("", {})


def test_a_default_prompt_that_is_not_there_is_refused(tmp_path):
    config = {"prompts": {"q": "ask "}, "default_prompt_name": "r"}
    files = write(tmp_path, config={}, modules=PLAIN, config_sentence_transformers=config)
    with pytest.raises(UnsupportedModelError, match="'r'"):
        _ = files.default_prompt


PICKLES = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-00001-of-00002.bin",
    "model.pt",
    "model.pkl",
]


@pytest.mark.parametrize("name", PICKLES)
def test_weights_that_are_only_a_pickle_are_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UnsupportedModelError, match="pickle"):
        _ = write(tmp_path, config={}).weights


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path):
    for name in (*PICKLES, "model.safetensors", "old.safetensors"):
        (tmp_path / name).touch()
    assert write(tmp_path, config={}).weights == [tmp_path / "model.safetensors"]


def test_weights_in_shards_are_those_of_the_index(tmp_path):
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in (*names, "other.safetensors"):
        (tmp_path / name).touch()
    index = {"weight_map": {"b": names[1], "a": names[0], "c": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert write(tmp_path, config={}).weights == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "gone.safetensors", "x.bin"]
)
def test_a_shard_cannot_be_a_pickle_or_lie_elsewhere(tmp_path, name):
    root = tmp_path / "model"
    root.mkdir()
    for path in (tmp_path / "x.safetensors", root / "x.bin"):
        path.touch()
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UnsupportedModelError, match="names"):
        _ = write(root, config={}).weights


def test_an_adapter_is_refused_since_its_model_lies_elsewhere(tmp_path):
    model = write(tmp_path, config={}, adapter_config={"base_model_name_or_path": "/elsewhere"})
    with pytest.raises(UnsupportedModelError, match="adapter"):
        _ = model.weights


def test_weights_may_be_a_link_as_in_a_hubs_cache(tmp_path):
    root, blob = tmp_path / "snapshots" / "1", tmp_path / "blobs" / "abc"
    root.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (root / "model.safetensors").symlink_to("../../blobs/abc")
    assert ModelFiles(root).weights_digest == ModelFiles(root).weights_digest
    assert write(root, config={}).weights == [root / "model.safetensors"]


@pytest.mark.parametrize("text", ["", "{", "not json", "[1]", "[" * 100_000, '"text"'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        _ = ModelFiles(tmp_path).config


@pytest.mark.parametrize("text", ["{}", "[1]", "3"])
def test_a_broken_list_of_modules_is_named(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"modules\.json"):
        _ = ModelFiles(tmp_path).modules


def test_an_empty_directory_is_no_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        _ = ModelFiles(tmp_path).config


CHANGES = [
    ("tokenizer.json", "[UNK]", "[unk]"),
    ("tokenizer_config.json", '"do_lower_case": true', '"do_lower_case": false'),
    ("tokenizer_config.json", "{", '{"truncation_side": "left", '),
    ("config.json", "1e-12", "1e-05"),
    ("sentence_bert_config.json", "false", "true"),
    ("1_Pooling/config.json", "{", '{"include_prompt": false, '),
    (
        "config_sentence_transformers.json",
        "{",
        '{"prompts": {"q": "ask "}, "default_prompt_name": "q", ',
    ),
    (
        "modules.json",
        "[",
        '[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"},',
    ),
]
HARMLESS = [
    ("README.md", "", "more"),
    ("config.json", "4.8.2", "5.0.0"),
    ("config.json", '"bert"', '"bert"  '),
    ("config_sentence_transformers.json", "{", '{"similarity_fn_name": "dot", '),
    ("config_sentence_transformers.json", "{", '{"prompts": {"query": "ask "}, '),
    ("1_Pooling/config.json", '"pooling_mode_cls_token": false,', ""),
    ("modules.json", "2_Normalize", "2_Other"),
]


def test_the_fingerprint_changes_with_all_that_changes_a_vector_and_nothing_else(minilm, tmp_path):
    root = tmp_path / "model"
    shutil.copytree(minilm, root, ignore=shutil.ignore_patterns("*.safetensors"))

    def fingerprint(weights="w", max_length=256, pooling="mean", dtype="float32"):
        return ModelFiles(root).fingerprint(weights, max_length, pooling, dtype)

    def changed(name, old, new):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))
        result = fingerprint()
        (root / name).write_text(text)
        return result

    seen = [
        fingerprint(),
        fingerprint(weights="v"),
        fingerprint(max_length=128),
        fingerprint(pooling="cls"),
        fingerprint(dtype="bfloat16"),
        *(changed(*change) for change in CHANGES),
    ]
    assert len(set(seen)) == len(seen)
    assert {changed(*change) for change in HARMLESS} == {seen[0]}


def test_a_digest_keeps_its_fields_apart():
    assert digest("ab", "c") != digest("a", "bc")
