"""Nothing is posted by default, whichever library tries."""

import asyncio
import http.client
import sys
import types
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from loopback import Server, servers

from harness.errors import UserError
from harness.submission import DOWNLOADING, PostingRefused, nothing_posted

requests = pytest.importorskip("requests")  # by which lmms-eval's tasks post


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "*")
    with servers() as start:
        yield start


def by_urllib(url: str, method: str) -> int:
    request = urllib.request.Request(url, b"{}" if method != "GET" else None, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return response.status


def by_requests(url: str, method: str) -> int:
    return requests.request(method, url, json={} if method != "GET" else None, timeout=30).status_code


def by_urllib3(url: str, method: str) -> int:
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request(method, url, timeout=30).status


def by_httpx(url: str, method: str, name: str = "httpx") -> int:
    httpx = pytest.importorskip(name)
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.request(method, url).status_code


def by_httpx2(url: str, method: str) -> int:
    return by_httpx(url, method, "httpx2")


def by_httpx_async(url: str, method: str) -> int:
    httpx = pytest.importorskip("httpx")

    async def ask() -> int:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return (await client.request(method, url)).status_code

    return asyncio.run(ask())


def by_aiohttp(url: str, method: str) -> int:
    aiohttp = pytest.importorskip("aiohttp")

    async def ask() -> int:
        async with aiohttp.ClientSession() as session, session.request(method, url) as response:
            return response.status

    return asyncio.run(ask())


CLIENTS = [by_urllib, by_requests, by_urllib3, by_httpx, by_httpx2, by_httpx_async, by_aiohttp]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_no_client_sends_anything_and_all_may_read(client: Callable, serve: Callable[..., Server]) -> None:
    server = serve((200, "seen"))
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        with pytest.raises(UserError, match=rf"about to be sent to 127\.0\.0\.1 \({method}\)"), nothing_posted():
            client(server.url, method)
    assert server.sent() == []
    with nothing_posted():
        assert client(server.url, "GET") == 200
    with nothing_posted(allow=["127.0.0.1"]):
        assert client(server.url, "POST") == 200
    assert client(server.url, "POST") == 200  # everything is as it was
    assert [method for method, _ in server.sent()] == ["GET", "POST", "POST"]


def swallowing(url: str, tries: list[int]) -> None:
    """As packaged tasks do: after any Exception they try again, and in the end score a 0."""
    while len(tries) < 3:
        tries.append(1)
        try:
            by_requests(url, "POST")
        except Exception:  # noqa: BLE001, S112 - as they do
            continue


def test_a_refusal_passes_code_that_swallows_exceptions(serve: Callable[..., Server]) -> None:
    server, tries = serve((200, "seen")), []
    with pytest.raises(UserError, match="about to be sent"), nothing_posted():
        swallowing(server.url, tries)
    assert tries == [1]
    assert not issubclass(PostingRefused, Exception)
    assert server.sent() == []


def test_nested_refusals_are_undone_in_order(serve: Callable[..., Server]) -> None:
    server, original = serve((200, "seen")), http.client.HTTPConnection.putrequest
    with nothing_posted(allow=["127.0.0.1"]):
        with pytest.raises(UserError), nothing_posted():
            by_urllib(server.url, "POST")
        by_urllib(server.url, "POST")
    assert http.client.HTTPConnection.putrequest is original
    assert len(server.sent()) == 1


def by_proxy(proxy: Server) -> None:
    address = f"http://127.0.0.1:{proxy.port}"
    requests.post("http://example.invalid/upload", json={}, proxies={"http": address}, timeout=30)


def by_tunnel(proxy: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    connection.set_tunnel("example.invalid", 443)
    connection.request("POST", "/upload", b"{}")


@pytest.mark.parametrize("client", [by_proxy, by_tunnel], ids=lambda client: client.__name__)
def test_allowing_a_proxy_allows_nothing_that_goes_through_it(
    client: Callable, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    proxy = serve((200, "forwarded"))
    with pytest.raises(UserError, match=r"sent to example\.invalid"), nothing_posted(allow=["127.0.0.1"]):
        client(proxy)
    assert proxy.sent() == []


def test_online_lets_the_hub_be_asked(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]) -> None:
    from huggingface_hub import constants

    server = serve((200, "[]"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1")
    with nothing_posted(online=True):
        assert by_requests(server.url, "POST") == 200
    with pytest.raises(UserError), nothing_posted():
        by_requests(server.url, "POST")
    assert len(server.sent()) == 1


def test_downloads_at_import_wait_for_online(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = types.ModuleType("nltk")
    nltk.__spec__ = types.SimpleNamespace()
    calls: list[str] = []
    nltk.download = lambda what, **options: calls.append(what)
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    (task,) = DOWNLOADING
    with nothing_posted(tasks=["videomme", task]):
        assert nltk.download("wordnet", quiet=True) is False
    assert calls == []
    for options in ({"tasks": ["videomme"]}, {"tasks": [task], "online": True}, {}):
        with nothing_posted(**options):
            nltk.download("wordnet", quiet=True)
    assert calls == ["wordnet"] * 3
