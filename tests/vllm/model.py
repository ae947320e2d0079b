"""A tiny Qwen2 with random weights and a tokenizer of its own: `python model.py DIR [--thinks | --ends]`, by the Python of
vLLM's or the trainers' environment; one that thinks says `</think>` every few tokens, and never `<think>`; one that ends has
ended its answer after a few.

Invariants: nothing is fetched; the bytes are the same on every machine (fixed corpus, fixed seed); the weights are noise,
sharp enough that sampled tokens vary and greedy ones do not hang on rounding.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 256, 2, 4, 2, 512
CONTEXT = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# Words, single digits, runs of signs, white space: as Qwen's tokenizers split.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = """
a agent an and answer are argument array as call code command description each file find for from function get
give group in is it json lookup marker message model name no number object of on one or parameter policy prompt properties
provided query read report required result return reward run say see step string system task tell terse text that the then
this to token tool trajectory type use user value want was what which with you your
"""

# Qwen's way to write a chat for a Hermes tool parser: tools in the system message, calls and results in tags.
TEMPLATE = r"""
{%- set first = messages[0].content if messages[0].role in ("system", "developer") else "You are a helpful assistant." %}
{%- if tools %}
{{- "<|im_start|>system\n" + first + "\n\n# Tools\n\n<tools>" }}
{%- for tool in tools %}{{- "\n" + tool | tojson }}{%- endfor %}
{{- "\n</tools>\n\nCall a function so:\n<tool_call>\n{\"name\": <name>, \"arguments\": <object>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role in ("system", "developer") %}{{- "<|im_start|>system\n" + first + "<|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == "user" or message.role in ("system", "developer") and not loop.first %}
{{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" }}
{%- elif message.role == "assistant" %}
{{- "<|im_start|>assistant\n" + (message.content or "") }}
{%- for call in message.tool_calls or [] %}
{{- ("\n" if message.content or not loop.first else "") + "<tool_call>\n{\"name\": \"" + call.function.name }}
{%- set arguments = call.function.arguments %}
{{- "\", \"arguments\": " + (arguments if arguments is string else arguments | tojson) }}
{{- "}\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\n" }}
{%- elif message.role == "tool" %}
{%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- "<|im_start|>user" }}{%- endif %}
{{- "\n<tool_response>\n" + message.content + "\n</tool_response>" }}
{%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- "<|im_end|>\n" }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}"""


def write_tokenizer(out: Path) -> Any:
    """A byte-level BPE of at most 900 tokens, learnt from made-up sentences."""
    rng, words = random.Random(0), WORDS.split()
    sentences = [" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(3000)]
    shapes = [json.dumps({"name": rng.choice(words), "arguments": {rng.choice(words): "x"}}) for _ in range(500)]
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(sentences + shapes, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "add_prefix_space": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE.removeprefix("\n"),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return tokenizer


def write_weights(out: Path, vocabulary: int, scales: dict[int, float]) -> None:
    """Noise, float32; a token of `scales` is so much more or less probable."""
    rng = np.random.default_rng(1234)

    def noise(*shape: int, std: float = 0.08) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    head = HIDDEN // HEADS
    keys = KV_HEADS * head
    weights = {
        "model.embed_tokens.weight": noise(vocabulary, HIDDEN, std=1.0),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": noise(vocabulary, HIDDEN, std=0.12),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        for part, rows in (("q", HIDDEN), ("k", keys), ("v", keys)):
            weights[f"{name}self_attn.{part}_proj.weight"] = noise(rows, HIDDEN)
            weights[f"{name}self_attn.{part}_proj.bias"] = noise(rows)
        weights[f"{name}self_attn.o_proj.weight"] = noise(HIDDEN, HIDDEN)
        weights[f"{name}mlp.gate_proj.weight"] = noise(INNER, HIDDEN)
        weights[f"{name}mlp.up_proj.weight"] = noise(INNER, HIDDEN)
        weights[f"{name}mlp.down_proj.weight"] = noise(HIDDEN, INNER)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}{norm}.weight"] = np.ones(HIDDEN, np.float32)
    for token, scale in scales.items():
        weights["lm_head.weight"][token] *= scale
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(out)
    vocabulary = (tokenizer.get_vocab_size() + 63) // 64 * 64
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "float32",
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    thinking = {tokenizer.token_to_id("</think>"): 2.5, tokenizer.token_to_id("<think>"): 0.0}
    scales = thinking if "--thinks" in sys.argv else {end: 2.5} if "--ends" in sys.argv else {}
    write_weights(out, vocabulary, scales)


main()
