"""config.json in the spelling of transformers 4, made from the one that transformers 5 writes."""

import copy


def to_v4(config: dict) -> dict:
    """v5 (`dtype`, `rope_parameters`, `layer_types`) to v4 (`torch_dtype`, `rope_theta`, `rope_scaling`, family fields)."""
    out = copy.deepcopy(config)
    family = out["model_type"]
    out["torch_dtype"] = out.pop("dtype")
    out["transformers_version"] = "4.44.2"
    layer_types = out.pop("layer_types", None)
    rope = out.pop("rope_parameters")
    if family == "gemma3_text":
        return _gemma3(out, rope, layer_types)
    out["rope_theta"] = rope.pop("rope_theta")
    partial = rope.pop("partial_rotary_factor", None)
    if partial not in (None, 1.0):
        out["partial_rotary_factor"] = partial
    kind = rope.pop("rope_type")
    if kind == "default":
        out["rope_scaling"] = None
    elif family == "phi3":
        # Phi-3 keeps the original length at the top level and writes the older key `type`.
        out["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
        out["rope_scaling"] = {"type": kind, **rope}
    else:
        out["rope_scaling"] = {"rope_type": kind, **rope}
    if family == "qwen3_moe":
        out["num_experts"] = out.pop("num_local_experts")
    if family == "qwen2" and not out["use_sliding_window"]:
        # Real Qwen2 files name a window and switch it off.
        out["sliding_window"] = 16
    return out


def _gemma3(out: dict, rope: dict, layer_types: list[str]) -> dict:
    full, local = rope["full_attention"], rope["sliding_attention"]
    assert local["rope_type"] == "default"
    out["rope_theta"] = full.pop("rope_theta")
    out["rope_local_base_freq"] = local["rope_theta"]
    kind = full.pop("rope_type")
    out["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **full}
    # Every n-th layer is global, counted from 1.
    out.pop("_sliding_window_pattern", None)
    pattern = layer_types.index("full_attention") + 1
    out["sliding_window_pattern"] = pattern
    expected = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(len(layer_types))]
    assert layer_types == expected, "the v4 spelling knows only a regular pattern"
    return out
