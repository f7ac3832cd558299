"""``quant-dllm evaluate``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, AttentionBlock, Device, MaskTokenId, Model, Seed, Text


def evaluate(
    model: Model,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="The 16-bit model to compare with.")
    ] = None,
    text: Text = None,
    sequences: Annotated[int, typer.Option(help="Windows of text.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    draws: Annotated[int, typer.Option(help="Masks a window for the bound.")] = 8,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model's likelihood bound, and its distance from another model."""
    from quant_dllm.cli.show import print_facts, print_json, track
    from quant_dllm.evaluation.evaluate import evaluate as run

    found = run(
        model, against, text, sequences=sequences, length=length, draws=draws, seed=seed,
        device=device, mask_token_id=mask_token_id, attention_block=attention_block,
        track=track,
    )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
        return
    facts = {
        "bound (NELBO)": f"{found.nelbo:.4f} ± {found.nelbo_stderr:.4f} nats a token",
        "perplexity": f"at most {found.perplexity:.2f}",
    }
    if found.kl is not None and found.kl_by_mask_ratio and found.top1_by_mask_ratio:
        facts |= {
            "over the base": f"{found.nelbo_excess:+.4f} ± {found.nelbo_excess_stderr:.4f}",
            "KL to the base": f"{found.kl:.4f} ± {found.kl_stderr:.4f} nats",
            "top-1 agreement": f"{found.top1_agreement:.1%}",
        }
        for ratio, kl in found.kl_by_mask_ratio.items():
            same = found.top1_by_mask_ratio[ratio]
            facts[f"  {float(ratio):.0%} masked"] = f"KL {kl:.4f}, top-1 {same:.1%}"
    bits = found.bits
    facts |= {
        "bits a weight": f"{bits.code:.3f} codes, {bits.stored:.3f} with scales, "
        f"{bits.file:.3f} of the file",
        "measured on": f"{found.sequences} windows of {found.length} tokens, {found.draws} masks "
        f"each, seed {found.seed}, text {found.text}, {found.seconds:.0f} s",
    }
    print_facts(facts)
