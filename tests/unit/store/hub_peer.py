"""Models made by transformers go through hub_copy and come back: same weights, same logits.

Usage: hub_peer.py HUB_COPY. Wants torch and transformers, in this Python or in the one that TRAINERD_PEERS_PYTHON
names; without them it is skipped (exit 77): CI never installs torch.
"""
import os
import subprocess
import sys
import tempfile

try:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
except ImportError:
    peers = os.environ.pop("TRAINERD_PEERS_PYTHON", None)
    if not peers:
        sys.exit(77)
    os.execv(peers, [peers] + sys.argv)


def check(hub_copy, folder, tied, stored, asked, shard_size):
    config = Qwen3Config(vocab_size=320, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, intermediate_size=160, max_position_embeddings=128,
                         tie_word_embeddings=tied)
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(config).to(stored).eval()
    source, target = os.path.join(folder, "in"), os.path.join(folder, "out")
    model.save_pretrained(source, max_shard_size=shard_size)
    subprocess.run([hub_copy, source, target, asked], check=True)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[asked]
    back = Qwen3ForCausalLM.from_pretrained(target, dtype="auto").eval()
    model = Qwen3ForCausalLM.from_pretrained(source, dtype=dtype).eval()  # .to(dtype) would round RoPE's frequencies
    want = model.state_dict()
    got = back.state_dict()
    assert want.keys() == got.keys(), want.keys() ^ got.keys()
    for name in want:
        assert got[name].dtype == dtype, (name, got[name].dtype)
        assert torch.equal(got[name], want[name]), name
    tokens = torch.arange(20).reshape(1, 20) * 7 % 320
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, model(tokens).logits)


def main():
    count = 0
    for tied in (False, True):
        for stored in (torch.float32, torch.bfloat16, torch.float16):
            for asked in ("bf16", "fp32"):
                for shard_size in ("1GB", "100KB"):
                    with tempfile.TemporaryDirectory() as folder:
                        check(sys.argv[1], folder, tied, stored, asked, shard_size)
                    count += 1
    print(count, "models through and back")


if __name__ == "__main__":
    main()
