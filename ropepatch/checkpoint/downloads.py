"""Downloads from the Hub that broke off, told apart from names that are wrong."""

from collections.abc import Iterator
from contextlib import suppress

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

#: Packages that move the bytes; huggingface_hub has used several, and `datasets` others.
_TRANSPORTS = {
    "aiohttp",
    "hf_xet",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "requests",
    "urllib3",
}
_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = 500  #: this status and above


def require_hub(source: str) -> None:
    """Raise at once where a checkpoint would have to be downloaded and the Hub cannot be reached.

    Libraries ask again and again, for half a minute, before they say so; they say best what an
    answer of the Hub means.
    """
    if not isinstance(try_to_load_from_cache(source, "config.json"), str):
        with suppress(HfHubHTTPError):
            get_hf_file_metadata(hf_hub_url(source, "config.json"))


def broke_off(error: BaseException) -> bool:
    """Whether an error comes from a connection, so that the same download may work later."""
    statuses = []
    by_transport = False
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        statuses += [response.status_code] if response is not None else []
        package = type(cause).__module__.partition(".")[0]
        by_transport |= package in _TRANSPORTS or isinstance(cause, ConnectionError | TimeoutError)
    if statuses:  # the Hub answered
        return any(status >= _SERVER_ERRORS or status == _TOO_MANY_REQUESTS for status in statuses)
    return by_transport


def again(reason: str) -> str:
    """What to say, after the name of what was wanted, of a download that broke off."""
    return (
        f"the download from the Hub broke off or could not start ({reason}); what has arrived is "
        "kept: run the same command again to go on"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
