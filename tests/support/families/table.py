"""The table of families: each one's tiny configuration, tokenizer, and what an export of it must do.

Sizes are small, and every attention window is shorter than the conversations that are scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Sizes that nearly every configuration of transformers has.
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SIZES = {**_TOWER, "max_position_embeddings": 512}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 16}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = 16


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    Attributes:
        name: Its name in the table.
        model_type: The model type of transformers.
        sizes: Arguments of the configuration.
        text: The kind of its tokenizer: of `tokenizers.encoder_tokenizer` for an encoder, of `chat_bases.chat_base`
            for a decoder.
        decodes: Whether it is a decoder.
        reward: Part of the line with which an export as a reward model is refused; empty if it must be right.
        policy: The same for an export as a policy.
        why: The reason of a refusal, in transformers, torch or ONNX themselves.
        example: A published model of the family.
    """

    name: str
    model_type: str
    sizes: Mapping[str, Any]
    text: str
    decodes: bool = True
    reward: str = ""
    policy: str = ""
    why: str = ""
    example: str = ""


def _encoder(
    name: str, model_type: str, text: str, example: str, *, reward: str = "", why: str = "", **sizes: Any
) -> Family:
    return Family(name, model_type, {**_SIZES, **sizes}, text, False, reward, why=why, example=example)


def _decoder(name: str, model_type: str, text: str, example: str, sizes: Mapping[str, Any], **rest: Any) -> Family:
    return Family(name, model_type, sizes, text, example=example, **rest)


_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_LOCAL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

ENCODERS = (
    _encoder("BERT", "bert", "wordpiece", "cross-encoder/ms-marco-MiniLM-L6-v2"),
    _encoder("RoBERTa", "roberta", "bytes", "cross-encoder/stsb-roberta-base", max_position_embeddings=514),
    _encoder("XLM-RoBERTa", "xlm-roberta", "unigram", "BAAI/bge-reranker-v2-m3", max_position_embeddings=514),
    _encoder("CamemBERT", "camembert", "unigram", "antoinelouis/crossencoder-camembert-base-mmarcoFR"),
    _encoder("data2vec-text", "data2vec-text", "bytes", "facebook/data2vec-text-base"),
    Family(
        "DistilBERT",
        "distilbert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 512},
        "wordpiece",
        False,
        example="distilbert-base-uncased",
    ),
    _encoder("ALBERT", "albert", "unigram", "albert-base-v2", embedding_size=16),
    _encoder("ELECTRA", "electra", "wordpiece", "cross-encoder/ms-marco-electra-base", embedding_size=16),
    _encoder(
        "MobileBERT",
        "mobilebert",
        "wordpiece",
        "google/mobilebert-uncased",
        embedding_size=16,
        intra_bottleneck_size=32,
        true_hidden_size=32,
    ),
    _encoder(
        "DeBERTa",
        "deberta",
        "bytes_bert",
        "OpenAssistant/reward-model-deberta-base",
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        type_vocab_size=0,
        pooler_hidden_size=32,
    ),
    _encoder(
        "DeBERTa-v3",
        "deberta-v2",
        "unigram",
        "OpenAssistant/reward-model-deberta-v3-large-v2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
        position_biased_input=False,
        pooler_hidden_size=32,
    ),
    _encoder("MPNet", "mpnet", "bytes", "microsoft/mpnet-base", max_position_embeddings=514),
    _encoder("BigBird", "big_bird", "unigram", "google/bigbird-roberta-base", attention_type="original_full"),
    _encoder(
        "ConvBERT",
        "convbert",
        "wordpiece",
        "YituTech/conv-bert-base",
        embedding_size=32,
        reward="padding after a text changes",
        why="its convolutions read the padding after a text",
    ),
    _encoder("RoFormer", "roformer", "wordpiece", "junnyu/roformer_chinese_base", embedding_size=32),
    _encoder("RemBERT", "rembert", "unigram", "google/rembert", input_embedding_size=16, output_embedding_size=32),
    _encoder(
        "Longformer",
        "longformer",
        "bytes",
        "allenai/longformer-base-4096",
        attention_window=[16, 16],
        max_position_embeddings=514,
        reward="torch cannot make an ONNX graph of it",
        why="its code branches on the values of the mask, which torch.export does not trace",
    ),
    _encoder(
        "ModernBERT",
        "modernbert",
        "bytes_bert",
        "Alibaba-NLP/gte-reranker-modernbert-base",
        local_attention=WINDOW,
        global_attn_every_n_layers=2,
    ),
    _encoder("EuroBERT", "eurobert", "bytes_bert", "EuroBERT/EuroBERT-210m", num_key_value_heads=2),
    _encoder("NomicBERT", "nomic_bert", "wordpiece", "nomic-ai/nomic-embed-text-v1.5"),
    _encoder("GTE", "gte", "unigram", "Alibaba-NLP/gte-multilingual-reranker-base"),
    _encoder("Jina v3", "jina_embeddings_v3", "unigram", "jinaai/jina-embeddings-v3"),
    _encoder("MegatronBERT", "megatron-bert", "wordpiece", "nvidia/megatron-bert-uncased-345m"),
    _encoder("ERNIE", "ernie", "wordpiece", "nghuyong/ernie-3.0-base-zh"),
    _encoder("SqueezeBERT", "squeezebert", "wordpiece", "squeezebert/squeezebert-uncased", embedding_size=32),
    _encoder(
        "Nystromformer",
        "nystromformer",
        "unigram",
        "uw-madison/nystromformer-512",
        reward="padding after a text changes",
        why="its landmarks are means over segments of the padded length",
    ),
)

DECODERS = (
    _decoder("Llama 2", "llama", "inst", "meta-llama/Llama-2-7b-chat-hf", _SIZES),
    _decoder(
        "Llama 3",
        "llama",
        "headers",
        "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        {
            **_GROUPED,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    _decoder(
        "Mistral", "mistral", "inst_first", "mistralai/Mistral-7B-Instruct-v0.1", {**_GROUPED, "sliding_window": WINDOW}
    ),
    _decoder(
        "Mixtral", "mixtral", "inst_first", "mistralai/Mixtral-8x7B-Instruct-v0.1", {**_GROUPED, "num_local_experts": 4}
    ),
    _decoder("Ministral", "ministral", "inst_first", "mistralai/Ministral-8B-Instruct-2410", {**_WIDE, **_LOCAL}),
    _decoder("Qwen2", "qwen2", "chatml", "internlm/internlm2-1_8b-reward", _GROUPED),
    _decoder(
        "Qwen2 with a window",
        "qwen2",
        "chatml",
        "Qwen/Qwen2-7B-Instruct",
        {**_GROUPED, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    ),
    _decoder("Qwen3", "qwen3", "reasoning", "Skywork/Skywork-Reward-V2-Qwen3-8B", _WIDE),
    _decoder(
        "Qwen2-MoE",
        "qwen2_moe",
        "chatml",
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        {**_GROUPED, **_MOE, "shared_expert_intermediate_size": 32},
    ),
    _decoder("Qwen3-MoE", "qwen3_moe", "reasoning", "Qwen/Qwen3-30B-A3B", {**_WIDE, **_MOE}),
    _decoder("Gemma", "gemma", "no_system", "google/gemma-2b-it", {**_WIDE, "hidden_activation": "gelu_pytorch_tanh"}),
    _decoder(
        "Gemma 2",
        "gemma2",
        "no_system",
        "Skywork/Skywork-Reward-Gemma-2-27B-v0.2",
        {**_WIDE, **_LOCAL, "query_pre_attn_scalar": 16},
    ),
    _decoder(
        "Gemma 3", "gemma3_text", "no_system", "google/gemma-3-1b-it", {**_WIDE, **_LOCAL, "query_pre_attn_scalar": 16}
    ),
    _decoder(
        "Gemma 3 (multimodal)",
        "gemma3",
        "no_system",
        "google/gemma-3-4b-it",
        {
            "text_config": {**_WIDE, **_LOCAL, "query_pre_attn_scalar": 16},
            "vision_config": {**_TOWER, "image_size": 16, "patch_size": 8},
            "mm_tokens_per_image": 4,
        },
    ),
    _decoder("Phi", "phi", "built_markers", "microsoft/phi-2", _SIZES),
    _decoder(
        "Phi-3", "phi3", "built_markers", "microsoft/Phi-3-mini-4k-instruct", {**_GROUPED, "sliding_window": WINDOW}
    ),
    _decoder(
        "Phi-3 (longrope)",
        "phi3",
        "built_markers",
        "microsoft/Phi-3-mini-128k-instruct",
        {
            **_GROUPED,
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 4.0, 8.0],
                "original_max_position_embeddings": 512,
            },
        },
    ),
    _decoder(
        "PhiMoE", "phimoe", "built_markers", "microsoft/Phi-3.5-MoE-instruct", {**_GROUPED, "num_local_experts": 4}
    ),
    _decoder("OLMo", "olmo", "built_markers", "allenai/OLMo-7B-Instruct", _SIZES),
    _decoder("OLMo 2", "olmo2", "built_markers", "allenai/OLMo-2-1124-7B-RM", _SIZES),
    _decoder("OLMo 3", "olmo3", "chatml", "allenai/Olmo-3-7B-Instruct", {**_GROUPED, **_LOCAL}),
    _decoder("OLMoE", "olmoe", "built_markers", "allenai/OLMoE-1B-7B-0924-Instruct", {**_GROUPED, **_MOE}),
    _decoder("SmolLM3", "smollm3", "reasoning", "HuggingFaceTB/SmolLM3-3B", {**_GROUPED, "no_rope_layers": [1, 0]}),
    Family(
        "GPT-2",
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "chatml",
        example="openai-community/gpt2",
    ),
    Family(
        "GPT-Neo",
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 512,
        },
        "chatml",
        example="EleutherAI/gpt-neo-1.3B",
        reward="not local",
        why="its local layers take windows of columns, in buffers of their own",
    ),
    _decoder("GPT-NeoX", "gpt_neox", "chatml", "EleutherAI/pythia-1.4b", {**_SIZES, "rotary_pct": 0.5}),
    Family(
        "GPT-J",
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 512},
        "chatml",
        example="EleutherAI/gpt-j-6b",
    ),
    Family(
        "GPT-BigCode",
        "gpt_bigcode",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "chatml",
        example="bigcode/starcoder",
    ),
    Family(
        "OPT",
        "opt",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 512,
        },
        "chatml",
        example="facebook/opt-1.3b",
    ),
    _decoder("StarCoder2", "starcoder2", "chatml", "bigcode/starcoder2-7b", {**_GROUPED, "sliding_window": WINDOW}),
    _decoder("StableLM", "stablelm", "chatml", "stabilityai/stablelm-2-zephyr-1_6b", _GROUPED),
    _decoder(
        "Falcon",
        "falcon",
        "chatml",
        "tiiuae/falcon-7b-instruct",
        {**_TOWER, "alibi": False, "new_decoder_architecture": False},
    ),
    _decoder(
        "Falcon (alibi)",
        "falcon",
        "chatml",
        "tiiuae/falcon-rw-1b",
        {**_TOWER, "alibi": True, "multi_query": False},
        reward="ONNX Runtime cannot run the graph",
        why="its biases are bfloat16, which ONNX Runtime does not multiply on a CPU",
    ),
    Family(
        "BLOOM", "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "chatml", example="bigscience/bloomz-560m"
    ),
    Family(
        "MPT",
        "mpt",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
        "chatml",
        example="mosaicml/mpt-7b",
        reward="columns of its row instead of positions",
        why="its class takes biases on distances by column, the same for all rows",
    ),
    _decoder(
        "gpt-oss",
        "gpt_oss",
        "chatml",
        "openai/gpt-oss-20b",
        {**_WIDE, **_LOCAL, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": _ROTARY},
    ),
    _decoder(
        "DeepSeek-V3",
        "deepseek_v3",
        "chatml",
        "deepseek-ai/DeepSeek-V3",
        {
            **_SIZES,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    _decoder("Granite", "granite", "built_markers", "ibm-granite/granite-3.3-8b-instruct", _GROUPED),
    _decoder("Cohere", "cohere", "chatml", "CohereLabs/c4ai-command-r-v01", _GROUPED),
    _decoder("Cohere 2", "cohere2", "chatml", "CohereLabs/c4ai-command-r7b-12-2024", {**_WIDE, **_LOCAL}),
    _decoder("EXAONE 4", "exaone4", "chatml", "LGAI-EXAONE/EXAONE-4.0-1.2B", {**_WIDE, **_LOCAL}),
    _decoder("GLM-4", "glm4", "chatml", "zai-org/GLM-4-9B-0414", _WIDE),
    _decoder("Seed-OSS", "seed_oss", "chatml", "ByteDance-Seed/Seed-OSS-36B-Instruct", _WIDE),
    _decoder("Nemotron", "nemotron", "chatml", "nvidia/Minitron-4B-Base", _GROUPED),
    _decoder(
        "Llama 4",
        "llama4_text",
        "headers",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        {
            **_WIDE,
            "attention_chunk_size": WINDOW,
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
        },
        reward="complex-valued",
        why="its rotations are complex numbers, which torch does not export to ONNX",
    ),
    _decoder(
        "ModernBERT decoder",
        "modernbert-decoder",
        "chatml",
        "jhu-clsp/ettin-decoder-400m",
        {**_SIZES, "local_attention": WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    _decoder(
        "Llama with dynamic NTK",
        "llama",
        "inst",
        "",
        {**_SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    _decoder(
        "Llama with YaRN",
        "llama",
        "inst",
        "",
        {
            **_SIZES,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    _decoder(
        "Qwen3-Next",
        "qwen3_next",
        "reasoning",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        {
            **_WIDE,
            **_MOE,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        reward="linear_attention",
        why="its layers carry a state from token to token, so a row cannot hold several answers",
    ),
    _decoder(
        "Qwen3.5",
        "qwen3_5_text",
        "reasoning",
        "Qwen/Qwen3.5-0.8B",
        {
            **_WIDE,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        reward="linear_attention",
        why="its layers carry a state from token to token, so a row cannot hold several answers",
    ),
    _decoder(
        "LFM2",
        "lfm2",
        "chatml",
        "LiquidAI/LFM2-1.2B",
        {**_GROUPED, "layer_types": ["conv", "full_attention"]},
        reward="conv",
        why="its layers carry a state from token to token, so a row cannot hold several answers",
    ),
    Family(
        "Mamba",
        "mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        "chatml",
        reward="linear_attention",
        why="its layers carry a state from token to token, so a row cannot hold several answers",
        example="state-spaces/mamba-1.4b-hf",
    ),
)

FAMILIES = (*ENCODERS, *DECODERS)
