"""Makes tests/fixtures/adapterhub: bottleneck adapters of AdapterHub's library on the bases of tests/fixtures/golden, and what greedy
generation with them gives.

    python tools/adapterhub/make.py [FAMILY ...]

Needs the bases that tools/golden/make.py has written, and an environment of its own (requirements.txt). Everything is seeded.
"""

import json
import logging
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

# Nothing here may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import adapters
import torch
import transformers

# Behind the packages: the folder has an adapters.py of its own.
sys.path.append(str(Path(__file__).resolve().parents[1] / "golden"))

import rand
import reference

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
BASES, ROOT = FIXTURES / "golden", FIXTURES / "adapterhub"
# As in tools/golden/make.py.
CLEAR_MARGIN = 5e-3
LEAST_CHANGE = 0.05
ATTEMPTS = 400
# Length of the prompt.
PROMPTS = {"short": 4, "long": 30}
# The name that is in the files.
NAME = "bn"


@dataclass(frozen=True)
class Adapter:
    name: str
    config: adapters.AdapterConfig


def seq(**changes):
    return adapters.SeqBnConfig(**{"reduction_factor": 4, **changes})


def double(**changes):
    return adapters.DoubleSeqBnConfig(**{"reduction_factor": 5, **changes})


def par(**changes):
    return adapters.ParBnConfig(**{"reduction_factor": 2, **changes})


def plus(**changes):
    return adapters.AdapterPlusConfig(**{"reduction_factor": 4, "stochastic_depth": 0.0, **changes})


def compacter(**changes):
    return adapters.CompacterConfig(**{"reduction_factor": 4, **changes})


# Those that no other adapter here has.
NON_LINEARITIES = [
    "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "laplace", "leaky_relu",
    "linear", "mish", "quick_gelu", "relu2", "relu6", "sigmoid", "silu",
]

ALL = [
    Adapter("seq_bn", seq()),
    Adapter("seq_bn_by_layer", seq(reduction_factor={"0": 2.5, "default": 100})),
    Adapter("seq_bn_both", seq(mh_adapter=True, non_linearity="leakyrelu", scaling="learned")),
    Adapter("double_seq_bn", double()),
    Adapter("double_seq_bn_mh", double(output_adapter=False, non_linearity="tanh", scaling=0.7)),
    Adapter("double_seq_bn_left_out", double(leave_out=[0], non_linearity="gelu")),
    Adapter("par_bn", par()),
    Adapter("par_bn_mh", par(mh_adapter=True, output_adapter=False, scaling="channel")),
    Adapter("par_bn_both", par(mh_adapter=True, scaling="learned")),
    Adapter("adapter_plus", plus()),
    Adapter("residual_normed", seq(residual_before_ln=False)),
    Adapter("without_residual", double(original_ln_after=False)),
    Adapter("ln_before", seq(ln_before=True)),
    Adapter("ln_after", double(ln_after=True)),
    Adapter("ln_after_residual", seq(ln_after=True, adapter_residual_before_ln=True)),
    Adapter("ln_after_sum", seq(ln_after=True, adapter_residual_before_ln=True, residual_before_ln=False)),
    Adapter("ln_both_prelu", double(ln_before=True, ln_after=True, non_linearity="prelu", residual_before_ln=False)),
    Adapter("ln_both_par", par(ln_before=True, ln_after=True, scaling="channel")),
    Adapter("compacter", compacter()),
    Adapter("compacter_plus_plus", adapters.CompacterPlusPlusConfig(reduction_factor=4)),
    Adapter("compacter_own_rules", compacter(shared_phm_rule=False, factorized_phm_rule=True, factorized_phm_W=False, phm_dim=2)),
    Adapter("compacter_shared", compacter(shared_W_phm=True, phm_rank=2, factorized_phm_rule=True, phm_bias=False, scaling="channel")),
    *(Adapter(f"f_{name}", double(non_linearity=name)) for name in NON_LINEARITIES),
]

# Two families that the library has written out, one into which it hooks itself.
HOOKED_INTO = ["qwen2"]
FAMILIES = {
    "llama": [adapter.name for adapter in ALL],
    "mistral": ["seq_bn", "par_bn_both", "ln_after_residual", "compacter"],
    "qwen2": ["double_seq_bn", "double_seq_bn_mh", "ln_after", "compacter"],
}

HOOKED = adapters.AdapterModelInterface(
    adapter_methods=["bottleneck"],
    model_embeddings="embed_tokens",
    model_layers="layers",
    layer_self_attn="self_attn",
    layer_cross_attn=None,
    attn_q_proj="q_proj",
    attn_k_proj="k_proj",
    attn_v_proj="v_proj",
    attn_o_proj="o_proj",
    layer_intermediate_proj="mlp.up_proj",
    layer_output_proj="mlp.down_proj",
    layer_pre_self_attn="input_layernorm",
    layer_pre_ffn="post_attention_layernorm",
)


def load_base(family: str):
    folder = BASES / family / "base"
    # The spelling that this transformers knows.
    config = transformers.AutoConfig.for_model(**json.loads((folder / "config.v4.json").read_text()))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, pad_token_id=0, do_sample=False)
    return model.eval()


def initialised(family: str):
    model = load_base(family)
    adapters.init(model, interface=HOOKED if family in HOOKED_INTO else None)
    return model


def randomise(model, *names: str) -> None:
    """Random values for every parameter of the adapter, so that nothing is a neutral element."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if f".{NAME}." not in name:
                continue
            at = (*names, name)
            last = name.rsplit(".", 1)[1]
            if last == "scaling" or "norm" in name and last == "weight" or p.dim() == 1 and name.endswith("adapter_down.0.weight"):
                p.copy_(rand.normal(p.shape, 0.3, *at) + 1.0)
            elif last in ("bias", "b"):
                p.copy_(rand.normal(p.shape, 0.3, *at))
            elif last == "weight" and p.dim() == 1:
                p.copy_(rand.uniform(p.shape, 0.1, 0.6, *at))
            elif last == "weight":
                p.copy_(rand.normal(p.shape, 1.2 / p.shape[-1] ** 0.5, *at))
            else:
                p.copy_(rand.normal(p.shape, 0.5, *at))


def build(family: str, adapter: Adapter, out: Path):
    model = initialised(family)
    model.add_adapter(NAME, config=adapter.config)
    randomise(model, family, adapter.name)
    model.set_active_adapters(NAME)
    out.mkdir(parents=True)
    try:
        model.save_adapter(str(out), NAME, with_head=False, use_safetensors=True)
    except RuntimeError:
        # Two modules share a tensor, which the library cannot save as safetensors.
        model.save_adapter(str(out), NAME, with_head=False)
    config = out / "adapter_config.json"
    text = json.loads(config.read_text())
    text["model_name"] = f"polydelta/{family}"
    config.write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")
    return model.eval()


def choose(model, base, family: str, adapter: str, prompt: str) -> reference.Trace:
    vocab = base.config.vocab_size
    for attempt in range(ATTEMPTS):
        ids = rand.token_ids(PROMPTS[prompt], vocab, "adapterhub", family, adapter, prompt, attempt)
        trace = reference.greedy(model, ids)
        clear = min(trace.margins) >= CLEAR_MARGIN and len(set(trace.ids)) >= 4
        if clear and reference.difference_from(base, trace) > LEAST_CHANGE:
            return trace
    raise AssertionError(f"no usable prompt for {family}/{adapter}/{prompt}")


def make_adapter(family: str, adapter: Adapter) -> list[dict]:
    out = ROOT / family / "adapters" / adapter.name
    in_memory = build(family, adapter, out)
    # The files are the truth: everything below runs on what they give on a fresh base.
    model = initialised(family)
    is_safe = (out / "adapter.safetensors").is_file()
    model.load_adapter(str(out), set_active=True, with_head=False, use_safetensors=is_safe)
    model.eval()
    base, cases = load_base(family), []
    for prompt in PROMPTS if not adapter.name.startswith("f_") else ["short"]:
        trace = choose(model, base, family, adapter.name, prompt)
        gap = (reference.last_logits(model, trace.prompt) - reference.last_logits(in_memory, trace.prompt)).abs().max().item()
        assert gap < 1e-5, f"{family}/{adapter.name}: the files give other logits than the model they were saved from: {gap}"
        if family in HOOKED_INTO:
            # Layers that the library has written out do not find the cache of this transformers.
            worst = reference.check_cached(model, trace)
            assert worst < reference.SAME, (family, adapter.name, prompt, worst)
        cases.append(trace.case(f"{adapter.name}/{prompt}", adapter.name, {}))
    return cases


def main() -> int:
    names = sys.argv[1:] or list(FAMILIES)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    versions = {"transformers": transformers.__version__, "adapters": adapters.__version__, "torch": torch.__version__.split("+")[0]}
    for family in names:
        shutil.rmtree(ROOT / family, ignore_errors=True)
        wanted = [adapter for adapter in ALL if adapter.name in FAMILIES[family]]
        cases = [case for adapter in wanted for case in make_adapter(family, adapter)]
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        (ROOT / family / "cases.json").write_text(json.dumps(versions)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
        print(f"{family}: {len(cases)} cases", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
