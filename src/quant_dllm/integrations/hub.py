"""Upload a checkpoint to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from quant_dllm.errors import CheckpointError, RequestError
from quant_dllm.pipeline.leave import gather


def upload(out: Path, repo: str, *, private: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Upload every file of a checkpoint but hidden ones.

    Args:
        out: The checkpoint.
        repo: USER/REPO; made if it is not there.
        private: Whether a new one is private.
        dry_run: Check everything, upload nothing.

    Returns:
        Address, and bytes by file.

    Raises:
        RequestError: A name that is none, or a folder that is no checkpoint.
        CheckpointError: The Hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("USER/REPO is wanted")
    except HFValidationError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RequestError(f"{repo!r} is no name of a repository: {reason}.") from None
    gather(out)
    files = {
        str(f.relative_to(out)): f.stat().st_size
        for f in sorted(out.rglob("*"))
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(out).parts)
    }
    if not dry_run:
        api = HfApi()
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo, folder_path=out, allow_patterns=list(files),
                commit_message="Packed by quant-dllm",
            )  # fmt: skip
        except Exception as error:  # the Hub's client raises a dozen unrelated kinds
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise CheckpointError(
                f"{repo} could not be written: {reason} Check the name, the network and the token "
                "(hf auth login)."
            ) from None
    return {"url": f"https://huggingface.co/{repo}", "files": files}
