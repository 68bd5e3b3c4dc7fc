"""``bestiary new model --from``: what is drafted from a config.json and the headers of its weights, and what is left."""

import ast
import json
import re
import subprocess
import sys

import headers
import pytest

from bestiary import ConfigError
from bestiary.core.cli.main import invoke
from bestiary.core.scaffold import defaults, known_classes
from bestiary.core.scaffold import tiny as tiny_configs

ASK = defaults.ask

CONFIG = {
    "architectures": ["OlmoForCausalLM"],
    "model_type": "quiet",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHAPES = headers.decoder(
    layers=4, hidden=1024, heads=16, kv_heads=8, head=128, features=3072, vocabulary=151936, qk_norm=True
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Asking transformers takes seconds: those who want its answers say so.
    monkeypatch.setattr(defaults, "ask", lambda question: {"": "QuietConfig"})
    return tmp_path


@pytest.fixture
def transformers(here, monkeypatch):
    monkeypatch.setattr(defaults, "ask", ASK)


@pytest.fixture
def drafted(here, capsys):
    """Draft from a config and shapes; the report, and the project's folder."""

    def run(config=CONFIG, shapes=SHAPES, name="quiet", *options):
        headers.write(here / "hf", config, shapes)
        assert invoke(["new", "model", name, "--from", "hf", "--no-input", "--json", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        return report, here / report["directory"]

    return run


def text(project, name):
    return (project / f"bestiary_{project.name.removeprefix('bestiary-').replace('-', '_')}" / f"{name}.py").read_text()


def test_a_decoder_with_qk_norms_is_placed_whole(drafted):
    report, project = drafted()
    assert (report["placed"], report["tensors"], report["left"]) == (len(SHAPES), len(SHAPES), [])
    model = text(project, "model")
    assert "q_norm=RMSNorm(c.head, eps=c.rms_norm_eps)" in model and "bias=c.attention_bias" in model
    assert "output_bias" not in model and "window" not in model
    assert 'f"{L}.attention.q_norm": f"{M}.self_attn.q_norm"' in text(project, "convert")
    assert 'architectures=("OlmoForCausalLM",)' in text(project, "plugin")
    readme = (project / "README.md").read_text()
    assert "| vocab_size | 151936 |" in readme and "| tensors placed | 47 of 47 |" in readme


def test_name_and_architecture_come_from_the_config(here, capsys):
    headers.write(here / "hf", CONFIG, SHAPES)
    assert invoke(["new", "model", "--from", "hf", "--no-input"]) == 0
    assert "47 of 47 tensors" in capsys.readouterr().out
    assert (here / "bestiary-quiet").is_dir()


def test_another_architecture_is_compared_with_the_class_that_the_config_names(drafted):
    report, project = drafted(CONFIG, SHAPES, "quiet", "--architecture", "OtherForCausalLM")
    (left,) = report["left"]
    assert "`reference` in conformance.py" in left and f"- {left}" in (project / "README.md").read_text()
    conformance = text(project, "conformance")
    assert "import OlmoForCausalLM" in conformance and "reference = staticmethod(reference)" in conformance
    assert 'architectures=("OtherForCausalLM",)' in text(project, "plugin")
    for command in (["check"], ["format", "--check"]):
        assert (
            subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", project], check=False).returncode == 0
        )


@pytest.mark.parametrize("options", [(), ("--architecture", "OtherForCausalLM")], ids=["named", "other"])
def test_a_class_that_transformers_lacks_leaves_the_reference_to_write(options, drafted):
    report, project = drafted({**CONFIG, "architectures": ["QuietForCausalLM"]}, SHAPES, "quiet", *options)
    (left,) = report["left"]
    assert re.fullmatch(
        r"`reference` in conformance.py: write it, from the model's own source; transformers \S+ has no `QuietForCausalLM`",
        left,
    )
    assert f"- {left}" in (project / "README.md").read_text()
    conformance = text(project, "conformance")
    assert "raise NotImplementedError(" in conformance and "reference = staticmethod(reference)" in conformance
    assert "has no QuietForCausalLM" in conformance
    for command in (["check"], ["format", "--check"]):
        assert (
            subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", project], check=False).returncode == 0
        )


def test_a_number_of_layers_that_the_weights_do_not_have_is_left(drafted):
    report, _ = drafted({**CONFIG, "num_hidden_layers": 10**12})
    assert report["left"] == ["key `num_hidden_layers` = `1000000000000`: the weights have 4 layers"]


def test_a_class_of_no_usable_name_is_left(drafted):
    report, project = drafted({**CONFIG, "architectures": ["../../EvilForCausalLM"]})
    (left,) = report["left"]
    assert "architectures = `['../../EvilForCausalLM']` names no class of a usable name" in left
    assert "QuietForCausalLM" in text(project, "plugin")


@pytest.mark.parametrize("named", [None, ["class"], ["A", "B"]])
def test_a_config_that_names_no_class_leaves_the_reference_to_write(named, drafted):
    report, project = drafted({**CONFIG, "architectures": named})
    assert ["write it if transformers has no class" in line for line in report["left"]] == [True]
    assert "def reference" not in text(project, "conformance")


def test_the_conformance_config_is_tiny_and_like_the_model(drafted):
    _, project = drafted({**CONFIG, "sliding_window": 4096, "layer_types": ["full_attention", "sliding_attention"] * 2})
    assigned = next(n for n in ast.walk(ast.parse(text(project, "conformance"))) if isinstance(n, ast.AnnAssign))
    tiny = ast.literal_eval(assigned.value)["tiny"]
    assert tiny["hidden_size"] < 100 and tiny["vocab_size"] < 100 and tiny["num_hidden_layers"] == 4
    assert (tiny["num_attention_heads"], tiny["num_key_value_heads"], tiny["head_dim"]) == (4, 2, 16)
    assert tiny["layer_types"] == ["full_attention", "sliding_attention"] * 2
    assert 1 < tiny["sliding_window"] < 48 and tiny["rope_theta"] == 1000000
    assert tiny["rms_norm_eps"] == 0.01


def test_the_conformance_config_has_values_that_are_no_default():
    made = dict(
        tiny_configs.config({"norm_epsilon": 1e-5, "rope_theta": 10000.0, "rope_parameters": {"rope_theta": 10000}}, {})
    )
    assert (made["norm_epsilon"], made["rope_theta"]) == ("0.01", "50000.0")
    assert '"rope_theta": 50000.0' in made["rope_parameters"]


@pytest.mark.parametrize(
    ("said", "size", "hidden"),
    [
        ({}, None, "48"),
        ({"head_dim": 128}, "16", "48"),
        ({"rope_parameters": {"partial_rotary_factor": 0.75}}, None, "64"),  # Phi-4-mini: 12 * 0.75 is odd
        ({"partial_rotary_factor": 0.25}, None, "64"),
        ({"partial_rotary_factor": 0.5}, None, "48"),
        ({"rope_scaling": {"partial_rotary_factor": 0.4}, "head_dim": 80}, "20", "48"),
        ({"partial_rotary_factor": 0.3333}, None, "48"),  # of no head: the kit says so
    ],
)
def test_the_conformance_config_rotates_pairs(said, size, hidden):
    made = dict(tiny_configs.config({"hidden_size": 512, "num_attention_heads": 4, **said}, {}))
    assert (made.get("head_dim"), made["hidden_size"]) == (size, hidden)


def test_lists_of_the_layers_keep_the_length_of_the_layers():
    found = {"n_layer": 3, "no_rope_layers": [1, 1, 0], "layer_types": ["a", "b"], "mlp_only_layers": [0, 1, 2]}
    made = dict(tiny_configs.config({**found, "eos_token_id": [3, 4, 5]}, {"n_layer": "num_hidden_layers"}))
    assert (made["n_layer"], made["no_rope_layers"], made["layer_types"]) == (
        "4",
        "[1, 0, 1, 0]",
        '["a", "b", "a", "b"]',
    )
    assert made["mlp_only_layers"] == "[0]" and made["eos_token_id"] == "[3, 4, 5]"


def test_a_tied_head_biases_and_a_fused_projection(drafted):
    shapes = {
        name: shape
        for name, shape in SHAPES.items()
        if "lm_head" not in name and "_norm.weight" not in name.replace("layernorm", "")
    }
    shapes["model.norm.weight"] = (1024,)
    for layer in range(4):
        attention = f"model.layers.{layer}.self_attn"
        for which in "qkv":
            del shapes[f"{attention}.{which}_proj.weight"]
        shapes |= {f"{attention}.qkv_proj.weight": (4096, 1024), f"{attention}.qkv_proj.bias": (4096,)}
    report, project = drafted(shapes=shapes)
    assert report["left"] == [] and report["placed"] == len(shapes)
    assert 'f"{L}.attention": split(f"{M}.self_attn.qkv_proj", into=("q", "k", "v"))' in text(project, "convert")
    assert "tie_word_embeddings: bool = True" in text(project, "config")
    assert "bias=True" in text(project, "model") and "output_bias=False" in text(project, "model")


def biased(*parts):
    """The shapes with biases of these modules of a layer."""
    shapes = dict(SHAPES)
    for name in SHAPES:
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in parts:
            shapes[f"{module}.bias"] = SHAPES[name][:1]
    return shapes


QKV, MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("said", "parts", "fields", "built"),
    [
        ({"attention_bias": True}, (*QKV, "o_proj"), {"attention_bias"}, ["bias=c.attention_bias"]),
        ({"mlp_bias": True}, MLP, {"mlp_bias", "attention_bias"}, ["bias=c.attention_bias", "bias=c.mlp_bias"]),
        (
            {"attention_bias": True, "attention_out_bias": False},
            QKV,
            {"attention_bias", "attention_out_bias"},
            ["bias=c.attention_bias", "output_bias=c.attention_out_bias"],
        ),
        (
            {"attention_bias": None, "use_bias": True},
            (*QKV, "o_proj", *MLP),
            {"use_bias"},
            ["bias=c.use_bias", "output_bias=c.use_bias"],
        ),
    ],
    ids=["attention", "mlp", "not of o", "all"],
)
@pytest.mark.parametrize("default", [False, True])
def test_a_key_of_biases_is_what_the_class_takes_where_it_is_left_out(
    default, said, parts, fields, built, drafted, monkeypatch
):
    answer = {"": "QuietConfig", **dict.fromkeys(said, default)}
    monkeypatch.setattr(defaults, "ask", lambda question: answer)
    report, project = drafted({**CONFIG, **said}, biased(*parts))
    assert report["left"] == [] and report["placed"] == report["tensors"]
    model = text(project, "model")
    assert all(one in model for one in built)
    config = {**CONFIG, **said}
    found = parsed(project, {key: value for key, value in config.items() if key not in fields})
    whole = parsed(project, config)
    assert {key for key in type(whole).model_fields if "bias" in key} == fields
    for key in fields:
        assert getattr(whole, key) is config[key]
        assert getattr(found, key) is (default if key in said else False)


@pytest.mark.parametrize(("taken", "listed"), [(True, "defaults"), (False, "left"), (None, None)])
def test_biases_that_config_json_does_not_say(taken, listed, drafted, monkeypatch):
    answer = {"": "QuietConfig", **({} if taken is None else {"attention_bias": taken})}
    monkeypatch.setattr(defaults, "ask", lambda question: answer)
    config = left_out("attention_bias")
    report, project = drafted(config, biased(*QKV, "o_proj"))
    said = {where: [line for line in report[where] if "`attention_bias`" in line] for where in ("left", "defaults")}
    assert [where for where, lines in said.items() if lines] == ([listed] if listed else [])
    assert ("bias=c.attention_bias" if taken else "bias=True") in text(project, "model")
    assert getattr(parsed(project, config), "attention_bias", True) is True


def test_a_key_of_biases_that_the_tensors_contradict_is_left(drafted):
    report, project = drafted({**CONFIG, "attention_bias": True})
    assert report["left"] == ["key `attention_bias` = `true`: the tensors say otherwise"]
    assert "bias=False" in text(project, "model")


def test_experts_a_shared_one_and_layers_without(drafted):
    config = {
        **CONFIG,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    }
    config |= {"decoder_sparse_step": 2, "shared_expert_intermediate_size": 512}
    shapes = dict(SHAPES)
    for layer in (1, 3):
        mlp = f"model.layers.{layer}.mlp"
        for part in ("gate", "up", "down"):
            del shapes[f"{mlp}.{part}_proj.weight"]
            flat = lambda size, part=part: (1024, size) if part == "down" else (size, 1024)  # noqa: E731
            shapes |= {f"{mlp}.experts.{expert}.{part}_proj.weight": flat(768) for expert in range(4)}
            shapes[f"{mlp}.shared_expert.{part}_proj.weight"] = flat(512)
        shapes |= {f"{mlp}.gate.weight": (4, 1024), f"{mlp}.shared_expert_gate.weight": (1, 1024)}
    report, project = drafted(config, shapes)
    assert report["left"] == [] and report["placed"] == len(shapes)
    rows = text(project, "convert")
    assert 'f"{L}.moe.experts.up": stack_experts(f"{M}.mlp.experts.{{}}.up_proj.weight")' in rows
    assert 'f"{L}.moe.router": f"{M}.mlp.gate"' in rows and 'f"{L}.mlp.up": f"{M}.mlp.up_proj"' in rows
    model = text(project, "model")
    assert "renormalize=c.norm_topk_prob" in model and "shared_gate=True" in model and "if self.sparse:" in model
    assert "(index + 1) % self.decoder_sparse_step == 0" in text(project, "config")


def left_out(*keys, **more):
    return {key: value for key, value in {**CONFIG, **more}.items() if key not in keys}


def test_keys_that_are_left_out_are_what_transformers_takes_and_are_listed(drafted, transformers):
    config = left_out("rms_norm_eps", "rope_theta", "hidden_act", architectures=["CwmForCausalLM"], sliding_window=64)
    report, project = drafted({**config, "layer_types": ["full_attention"] * 4})
    assert report["left"] == []
    said = {re.match(r"key `(\w+)`: config.json leaves it out", line)[1]: line for line in report["defaults"]}
    assert set(said) == {"rms_norm_eps", "rope_parameters", "hidden_act", "max_position_embeddings", "mlp_bias"}
    assert re.search(r"takes `1e-05`, as transformers \S+'s `CwmConfig` does$", said["rms_norm_eps"])
    assert '"rope_type": "llama3"' in said["rope_parameters"]
    assert all(f"- {line}" in (project / "README.md").read_text() for line in report["defaults"])
    config = parsed(project, config)
    assert (config.rms_norm_eps, config.hidden_act, config.max_position_embeddings) == (1e-5, "silu", 131072)
    assert (config.rope.kind, config.rope.theta, config.rope.factor) == ("llama3", 1e6, 16.0)
    assert parsed(project, {**CONFIG, "rope_theta": 3e4}).rope.kind == "default"
    for command in (["check"], ["format", "--check"]):
        assert (
            subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", project], check=False).returncode == 0
        )


def test_what_the_class_takes_and_the_template_lacks_is_left(drafted, transformers):
    config = left_out("hidden_act", "tie_word_embeddings", architectures=["Gemma2ForCausalLM"])
    report, _ = drafted({**config, "num_key_value_heads": 4}, SHAPES)
    left = "\n".join(report["left"])
    for key, value in (
        ("final_logit_softcapping", "30.0"),
        ("query_pre_attn_scalar", "256"),
        ("sliding_window", "4096"),
    ):
        assert re.search(
            rf"`{key}`: config.json leaves it out, and transformers \S+'s `Gemma2Config` takes `{value}`", left
        )
    assert "key `tie_word_embeddings`: config.json leaves it out, and the draft takes `true`" in left
    assert "the tensors say false" in left


@pytest.mark.parametrize("model_type, eps", [("llama", "1e-06"), ("exaone", "1e-05")])
def test_of_several_classes_the_config_says_which(model_type, eps, drafted, transformers, monkeypatch):
    """transformers lists one class of models under several types, each with defaults of its own."""
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    report, _ = drafted(left_out("rms_norm_eps", architectures=["LlamaForCausalLM"], model_type=model_type))
    assert any(f"the draft takes `{eps}`, as transformers" in line for line in report["defaults"]), report


def test_a_window_that_is_left_out_is_the_classs(drafted, transformers, monkeypatch):
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    kinds = ["sliding_attention", "full_attention"] * 2
    config = {**CONFIG, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "layer_types": kinds}
    report, project = drafted(config)
    assert any("`sliding_window`: config.json leaves it out" in line for line in report["defaults"]), report
    assert not any("sliding_window" in line for line in report["left"])
    assert "sliding_window: PositiveInt | None = 4096" in text(project, "config")


@pytest.mark.parametrize("why", ["transformers is not installed", "has no `QuietForCausalLM`", "can't say it"])
def test_without_an_answer_the_draft_says_that_it_guesses(why, drafted, monkeypatch):
    config = left_out("rms_norm_eps", "rope_theta", "hidden_act")
    if why.startswith("transformers"):
        monkeypatch.setattr(known_classes, "find_spec", lambda name: None)
    elif why.startswith("has"):
        config["architectures"] = ["QuietForCausalLM"]
    else:
        monkeypatch.setattr(defaults, "ask", lambda question: None)
    report, project = drafted(config)
    for key, value in (("rms_norm_eps", "1e-06"), ("hidden_act", '"silu"'), ("rope_parameters", "{.*10000.0}")):
        said = rf"key `{key}`: config.json leaves it out, and the draft takes `{value}`, a guess: .*{why}"
        assert any(re.fullmatch(said, line) for line in report["left"]), report["left"]
    assert parsed(project, config).rms_norm_eps == 1e-6 and report["defaults"] == []


def parsed(project, config):
    """A config as the drafted class reads it."""
    namespace = {"__name__": f"drafted_{project.name.replace('-', '_')}"}
    exec(compile(text(project, "config"), "config.py", "exec"), namespace)
    kind = namespace["QuietConfig"]
    kind.model_rebuild(_types_namespace=namespace)
    return kind.parse(config)


@pytest.mark.parametrize("taken", [None, 8, 16])
def test_key_value_heads_that_only_the_tensors_tell(taken, drafted, monkeypatch):
    answer = {"": "QuietConfig", **({} if taken is None else {"num_key_value_heads": taken})}
    monkeypatch.setattr(defaults, "ask", lambda question: answer)
    config = left_out("num_key_value_heads")
    report, project = drafted(config)
    assert report["placed"] == len(SHAPES)
    assert any("the tensors say 8" in line for line in report["left"]) == (taken == 16)
    assert parsed(project, config).num_key_value_heads == 8
    assert '"num_key_value_heads": 2' in text(project, "conformance")


def test_no_row_is_written_for_a_module_that_the_model_lacks(drafted):
    """As GPT-OSS has it: experts under names that nobody knows, beside a router that is known."""
    shapes = {name: shape for name, shape in SHAPES.items() if ".mlp." not in name and "k_norm" not in name}
    for layer in range(4):
        mlp = f"model.layers.{layer}.mlp"
        shapes |= {
            f"{mlp}.router.weight": (4, 1024),
            f"{mlp}.router.bias": (4,),
            f"{mlp}.experts.blocks": (4, 32, 1024),
        }
    report, project = drafted({**CONFIG, "num_local_experts": 4}, shapes)
    rows = text(project, "convert")
    assert "moe" not in rows and "q_norm" not in rows and "MoE" not in text(project, "model")
    assert report["placed"] == len(shapes) - 4 * 4
    left = "\n".join(report["left"])
    for name in ("mlp.router.weight", "self_attn.q_norm.weight"):
        assert re.search(rf"`model.layers.{{}}.{name}` \(4 tensors.*the parts that it belongs to", left)
    for module in ("mlp.gate", "mlp.up", "mlp.down"):
        assert f"module `{module}` of model.py: no tensor was recognised" in left


def test_the_first_run_of_a_draft_has_no_key_to_warn_of(drafted):
    """As Seed-OSS has it: dropouts, and biases that the tensors have not; two keys say it of q, k and v."""
    config = {**CONFIG, "attention_out_bias": False, "qkv_bias": False, "residual_dropout": 0.1, "mlp_bias": False}
    _, project = drafted(config)
    assert parsed(project, config).ignored_keys == ()
    with pytest.raises(ConfigError, match="qkv_bias"):
        parsed(project, {**config, "qkv_bias": True})
    for command in (["check"], ["format", "--check"]):
        assert (
            subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", project], check=False).returncode == 0
        )


def test_norms_after_attention_and_mlp(drafted):
    shapes = dict(SHAPES)
    for layer in range(4):
        shapes |= {f"model.layers.{layer}.{one}_feedforward_layernorm.weight": (1024,) for one in ("pre", "post")}
    report, project = drafted(shapes=shapes)
    assert report["left"] == []
    assert "x = x + self.post_attention_norm(self.attention(self.attention_norm(x), step))" in text(project, "model")
    assert 'f"{L}.mlp_norm": f"{M}.pre_feedforward_layernorm"' in text(project, "convert")


def test_what_has_no_place_is_listed_exactly(drafted):
    config = {**CONFIG, "final_logit_softcapping": 30.0, "surprise": 3, "rope_scaling": {"rope_type": "longrope"}}
    shapes = {**SHAPES, "model.extra.weight": (7,), "model.layers.0.self_attn.q_norm.weight": (2048,)}
    shapes |= {f"model.layers.{layer}.input_layernorm.bias": (1024,) for layer in range(4)}
    report, project = drafted(config, shapes)
    left = "\n".join(report["left"])
    assert report["placed"] == len(shapes) - 1 - 4 - 4 - 4  # k_norm goes with q_norm
    assert "tensor `model.extra.weight` ([7])" in left
    assert "tensor `model.layers.{}.input_layernorm.bias` (4 tensors, each [1024])" in left
    assert "q_norm.weight` (4 tensors" in left and "2 shapes" in left
    assert "key `surprise` = `3`: nothing reads it" in left and "key `final_logit_softcapping` = `30.0`" in left
    assert "longrope" in left and len(report["left"]) == 7
    assert all(f"- {line}" in (project / "README.md").read_text() for line in report["left"])


def test_names_nobody_knows_still_give_a_project(drafted):
    config = {
        "architectures": ["OldLMHeadModel"],
        "model_type": "old",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 96,
    }
    shapes = {"wte.weight": (96, 64), "wpe.weight": (128, 64), "ln_f.weight": (64,), "ln_f.bias": (64,)}
    shapes |= {f"h.{layer}.attn.c_attn.weight": (64, 192) for layer in range(2)}
    report, project = drafted(config, shapes, "old")
    assert (report["placed"], report["tensors"]) == (2, 6)
    assert "module `attention.q` of model.py: no tensor was recognised as its weight" in report["left"]
    assert '"n_embd": "hidden_size"' in text(project, "config")


def test_what_strangers_wrote_becomes_no_code(drafted, here):
    evil = "model.layers.0.x\"; open('pwned', 'w').write('x'); \"{{ cookiecutter }}.weight"
    config = {**CONFIG, "model_type": "{{ 7*7 }}", "architectures": ["{{ 7*7 }}"], 'a"]; raise SystemExit': 1}
    config |= {"hidden_act": '"{{ 1 }}', "note": '{{ 7*7 }}"\n```', "rope_parameters": {"rope_type": '"{{', '"}': 1}}
    head = 'a": open("pwned"), ".lm_head.weight'
    shapes = {head: SHAPES["lm_head.weight"], **SHAPES, evil: (3,), "model.layers.0.a\nb.weight": (3,)}
    report, project = drafted(config, shapes, "evil")
    assert report["placed"] == len(SHAPES) and "architecture" not in report
    for path in project.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert "pwned" not in ast.dump(tree) and "SystemExit" not in ast.dump(tree) and "49" not in path.read_text()
    assert "EvilForCausalLM" in text(project, "plugin")


def test_a_folders_name_becomes_no_code_either(here, capsys):
    name = 'a""" + open("pwned")\n`{{ 7 }}'
    headers.write(here / name, CONFIG, SHAPES)
    assert invoke(["new", "model", "quiet", "--from", name, "--no-input"]) == 0
    for path in (here / "bestiary-quiet").rglob("*.py"):
        assert "open(" not in path.read_text() and ast.parse(path.read_text())


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda hf: (hf / "config.json").unlink(), 78),
        (lambda hf: (hf / "config.json").write_text("[1]"), 78),
        (lambda hf: (hf / "model.safetensors").unlink(), 66),
        (lambda hf: (hf / "model.safetensors").write_bytes(b"x" * 20), 65),
        (lambda hf: hf.rename(hf.parent / "elsewhere"), 66),
    ],
)
def test_damaged_and_missing_files_end_in_a_sentence(damage, status, here, capsys):
    damage(headers.write(here / "hf", CONFIG, SHAPES))
    assert invoke(["new", "model", "quiet", "--from", "hf", "--no-input"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (here / "bestiary-quiet").exists()


def test_neither_torch_nor_transformers_is_imported(here):
    headers.write(here / "hf", CONFIG, SHAPES)
    code = (
        "import sys; from bestiary.core.cli.main import invoke; "
        "status = invoke(['new', 'model', 'quiet', '--from', 'hf', '--no-input']); "
        "sys.exit(status or bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
