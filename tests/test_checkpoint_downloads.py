"""A download that breaks off is told apart from a name that is wrong."""

import pytest
import transformers
from huggingface_hub.errors import HfHubHTTPError

from ropepatch.checkpoint import downloads
from ropepatch.checkpoint.downloads import broke_off
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.errors import CheckpointError


class Answer:
    """As much of a response as errors of the Hub look at."""

    def __init__(self, status_code):
        self.status_code = status_code
        self.headers = {}
        self.request = None
        self.text = ""


def transport_error():
    """An error of whichever package moves the bytes here, by its base class."""
    base = HfHubHTTPError.__mro__[1]
    return base("peer closed connection without sending complete message body")


def raised(outer, cause):
    try:
        try:
            raise cause
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.fixture
def asked(monkeypatch):
    """What is asked of a Hub that can be reached, and has nothing."""
    urls = []

    def answer(url):
        urls.append(url)
        raise HfHubHTTPError("nothing", response=Answer(404))

    monkeypatch.setattr(downloads, "get_hf_file_metadata", answer)
    return urls


@pytest.fixture
def unreachable(monkeypatch):
    def fail(url):
        raise transport_error()

    monkeypatch.setattr(downloads, "get_hf_file_metadata", fail)


def fail_with(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)


@pytest.mark.parametrize("opener", [open_model, open_tokenizer])
@pytest.mark.parametrize(
    "error",
    [
        transport_error(),
        raised(OSError("We could not load it"), transport_error()),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        HfHubHTTPError("502 Bad Gateway", response=Answer(502)),
    ],
    ids=["transport", "wrapped", "reset", "timeout", "server"],
)
def test_a_download_that_broke_off_says_to_run_it_again(monkeypatch, asked, opener, error):
    fail_with(monkeypatch, error)
    with pytest.raises(CheckpointError, match=r"what has arrived is kept: run the same command"):
        opener("some/model")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_name_that_the_hub_does_not_give_out_is_not_tried_again(monkeypatch, asked, status):
    error = raised(OSError("no such thing"), HfHubHTTPError("refused", response=Answer(status)))
    fail_with(monkeypatch, error)
    with pytest.raises(CheckpointError, match=r"not on the Hub: no such thing"):
        open_model("some/model")


def test_the_answer_too_many_requests_is_worth_another_try():
    assert broke_off(HfHubHTTPError("slow down", response=Answer(429)))


@pytest.mark.parametrize("opener", [open_model, open_tokenizer])
def test_a_hub_that_cannot_be_reached_is_told_before_libraries_try(
    monkeypatch, unreachable, opener
):
    fail_with(monkeypatch, AssertionError("they try for half a minute"))
    with pytest.raises(CheckpointError, match=r"could not start \(peer closed connection"):
        opener("some/model")


def test_of_the_hub_only_what_is_not_kept_is_asked(monkeypatch, asked, tmp_path):
    fail_with(monkeypatch, OSError("no such thing"))
    kept = {"some/model": str(tmp_path / "config.json")}
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda name, file: kept.get(name))
    for name in ("some/model", "another/model"):
        with pytest.raises(CheckpointError, match="no such thing"):
            open_model(name)
    (url,) = asked
    assert url.endswith("/another/model/resolve/main/config.json")


def test_errors_of_programs_are_not_taken_for_those_of_connections(monkeypatch, asked):
    fail_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        open_model("some/model")


def test_local_checkpoints_have_no_downloads(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    fail_with(monkeypatch, TimeoutError("a slow disk"))
    with pytest.raises(CheckpointError, match="cannot be loaded: a slow disk"):
        open_model(str(tmp_path))
