"""Read llama2.c's ``stories15M.bin`` into a `Backbone`, and its pieces into a tokenizer.

The model is Andrej Karpathy's (llama2.c, MIT licence).
"""

import hashlib
import os
import struct
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from torch import Tensor

from quant_dllm.models.backbone import Backbone
from quant_dllm.models.config import BackboneConfig

UNKNOWN, END, MASK = "<unk>", "<|endoftext|>", "<|mdm_mask|>"
FIRST_BYTE, FIRST_PIECE = 3, 259  # llama's vocabulary: unk, bos, eos, 256 bytes, pieces
BEGIN_OF_STORY = 1  # llama's bos: what stories15M writes between two stories


def folder() -> Path:
    """Find ``stories15M``: under ``QUANT_DLLM_DATA``, else beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("QUANT_DLLM_DATA", beside)) / "stories15M"


def dice(device: str, *numbers: int) -> torch.Generator:
    """Make a generator of its own for every tuple of numbers.

    A generator on the CPU reads the low 32 bits of its seed only: shifting numbers together would
    give two workers the same dice. So they are hashed.
    """
    seed = int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:4], "little")
    return torch.Generator(device).manual_seed(seed)


def half_split(rows: Tensor, head_width: int) -> Tensor:
    """Reorder the rows of a query or key matrix from interleaved to half-split rotation."""
    return rows.unflatten(0, (-1, head_width // 2, 2)).transpose(1, 2).flatten(0, 2)


def read_model() -> Backbone:
    """Load the autoregressive model into our network; its head is tied to the embedding."""
    data = (folder() / "stories15M.bin").read_bytes()
    width, mlp, blocks, heads, kv_heads, vocab, context = struct.unpack_from("7i", data)
    config = BackboneConfig(
        width=width, blocks=blocks, heads=heads, kv_heads=kv_heads, mlp_width=mlp, vocab=vocab,
        context=context, rope_theta=10_000.0, norm_eps=1e-5, rotary_in_float32=True,
    )  # fmt: skip
    flat, at = torch.frombuffer(bytearray(data), dtype=torch.float32, offset=28), 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        size = torch.Size(shape).numel()
        at += size
        return flat[at - size : at].view(shape)

    state = {"embed.weight": take(vocab, width)}
    state["head.weight"] = state["embed.weight"]
    shapes = {
        "attention_norm": (width,), "attention.q": (width, width), "attention.k": (width, width),
        "attention.v": (width, width), "attention.out": (width, width), "mlp_norm": (width,),
        "mlp.gate": (mlp, width), "mlp.down": (width, mlp), "mlp.up": (mlp, width),
    }  # fmt: skip
    for slot, shape in shapes.items():
        for i, tensor in enumerate(take(blocks, *shape)):
            if slot in ("attention.q", "attention.k"):
                tensor = half_split(tensor, config.head_width)
            state[f"blocks.{i}.{slot}.weight"] = tensor
    state["norm.weight"] = take(width)
    model = Backbone(config)
    model.load_state_dict(state)
    return model.eval()


def read_pieces() -> list[bytes]:
    """List llama's pieces by id; a byte piece holds its byte, a word begins with a space."""
    data, at, pieces = (folder() / "tokenizer.bin").read_bytes(), 4, []
    while at < len(data):
        (length,) = struct.unpack_from("i", data, at + 4)
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces


def split_points(piece: str, rank: dict[str, int]) -> list[tuple[str, str]]:
    """List the pairs of known pieces that make up ``piece``, by the ranks of the two."""
    pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    known = [pair for pair in pairs if pair[0] in rank and pair[1] in rank]
    return sorted(known, key=lambda pair: (rank[pair[0]], rank[pair[1]]))


def close_under_merges(ids: set[int], pieces: list[bytes]) -> set[int]:
    """Add every piece that llama's merges pass through on the way to a piece of ``ids``.

    With these kept, a text made of kept pieces is cut as llama cuts it.
    """
    text = {i: pieces[i].decode("utf-8", "replace") for i in range(FIRST_PIECE, len(pieces))}
    rank = {piece: i for i, piece in sorted(text.items(), reverse=True)}
    closed, open_ = set(ids), list(ids)
    while open_:
        piece = text[open_.pop()]
        parts = list(piece)  # run llama's merges over the letters; keep what appears
        while len(parts) > 1:
            joined = [rank.get(a + b, len(pieces)) for a, b in pairwise(parts)]
            best = min(joined)
            if best == len(pieces):
                break
            i = joined.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            if best not in closed:
                closed.add(best)
        closed.update(rank[letter] for letter in piece if letter in rank)
    return closed


def build_tokenizer(ids: list[int], pieces: list[bytes]) -> Tokenizer:
    """Make a byte-fallback BPE of llama's pieces ``ids``, in that order.

    Ids of the result: 0 unknown, 1 end of text, 2–257 bytes, then ``ids``, last the mask.
    """
    words = [pieces[i].decode("utf-8").replace(" ", "▁") for i in ids]
    vocab = {UNKNOWN: 0, END: 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocab |= {word: 258 + i for i, word in enumerate(words)}
    vocab[MASK] = len(vocab)
    rank = {word: i for i, word in enumerate(words)}
    merges = [pair for word in words for pair in split_points(word, rank)]
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    special = [AddedToken(t, special=True, normalized=False) for t in (UNKNOWN, END, MASK)]
    tokenizer.add_special_tokens(special)
    return tokenizer
