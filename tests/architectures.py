"""Values of small configurations of transformers, of texts and of images."""

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 200,
    "max_position_embeddings": 66,
}
VISION = {name: SMALL[name] for name in SMALL if name.startswith(("hidden", "num", "inter"))} | {
    "image_size": 32,
    "patch_size": 8,
}
