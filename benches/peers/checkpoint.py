"""Writes a checkpoint with random weights of GPT-2 small's shape or, with a second argument "llama", of a Llama of about that size, and a
tokenizer that serves to be loaded."""

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = sys.argv[1]
torch.manual_seed(0)
if sys.argv[2:] == ["llama"]:
    shape = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50257, max_position_embeddings=1024, tie_word_embeddings=True, **shape))
else:
    model = GPT2LMHeadModel(GPT2Config(n_ctx=1024))  # a field that the hub's own file has, and TransformerLens 3.9 reads
with torch.no_grad():  # gains and biases that a trained model has, so that processing has something to do
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.02)
        elif ".ln_" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(50256)} | {"<|endoftext|>": 50256}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="t0"
)
tokenizer.save_pretrained(folder)
model.save_pretrained(folder)
